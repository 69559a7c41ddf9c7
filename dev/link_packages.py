"""Link installed packages, with all that they require, into another virtual environment.

This takes a second where installing PyTorch once more takes minutes: ``make test-wheel`` tests the wheel so.
"""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["link", "main", "required"]


def required(names: Iterable[str]) -> list[Distribution]:
    """Return the installed packages of these names and all that they require, without extras nobody asks for.

    Raises:
        importlib.metadata.PackageNotFoundError: one of them is not installed.
    """
    found: dict[str, tuple[Distribution, set[str]]] = {}
    asked = [Requirement(name) for name in names]
    while asked:
        wanted = asked.pop()
        key = re.sub("[-_.]+", "-", wanted.name).lower()
        package, extras = found.setdefault(key, (distribution(wanted.name), set()))
        new = {"", *wanted.extras} - extras
        extras |= new
        for requirement in map(Requirement, package.requires or ()):
            marker = requirement.marker
            if any(marker is None or marker.evaluate({"extra": extra}) for extra in new):
                asked.append(requirement)
    return [package for package, _ in found.values()]


def link(packages: Iterable[Distribution], folder: Path) -> None:
    """Link what packages have installed into a folder of packages. Commands and an editable package are left out."""
    for package in packages:
        root = Path(str(package.locate_file("")))
        source = json.loads(package.read_text("direct_url.json") or "{}")
        if source.get("dir_info", {}).get("editable"):
            continue
        for name in sorted({path.parts[0] for path in package.files or ()} - {"..", "__pycache__"}):
            target = folder / name
            if not target.exists():
                target.symlink_to(root / name)


def main(argv: Sequence[str] | None = None) -> None:
    """Link the packages that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path, help="folder of a virtual environment")
    parser.add_argument("packages", nargs="+", help="names of packages, with [extras] if wanted")
    args = parser.parse_args(argv)
    (folder,) = args.environment.glob("lib/python*/site-packages")
    link(required(args.packages), folder)


if __name__ == "__main__":
    main()
