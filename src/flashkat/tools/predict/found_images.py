"""The images that a command line names: files, folders, patterns, and names on standard input."""

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ...data.scan import image_paths
from ...errors import InputError, explain

__all__ = ["find_images"]

_STANDARD_INPUT = "-"


def find_images(names: Sequence[str], lines: Iterable[str]) -> list[Path]:
    """Return the files that names stand for, in their order.

    A file stands for itself, whether it is there or not. A folder stands for its images, however deep, in the order
    of their names. Links are followed. Hidden files and folders are left out. A pattern with ``*``, ``?`` or ``[``
    stands for what it matches, and ``**`` for any depth.

    Args:
        names: files, folders and patterns; ``-`` stands for the names in ``lines``.
        lines: a name each.

    Raises:
        InputError: a folder holds no images or cannot be read, a pattern matches nothing, or there are no names.
    """
    found = [path for name in _names(names, lines) for path in _expanded(name)]
    if not found:
        raise InputError("standard input names no images: give one a line")
    return found


def _names(names: Sequence[str], lines: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name == _STANDARD_INPUT:
            yield from (line.rstrip("\r\n") for line in lines if line.strip())
        else:
            yield name


def _expanded(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        images = _images_in(path)
        if not images:
            raise InputError(f"{path} holds no images: name a folder with images, or files")
        return images
    if path.exists() or not glob.has_magic(name):
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207 - Path.glob takes no absolute pattern
    images = [each for match in matches for each in (_images_in(match) if match.is_dir() else [match])]
    if not images:
        raise InputError(f"{name} matches no images: check the pattern")
    return list(dict.fromkeys(images))


def _images_in(folder: Path) -> list[Path]:
    with explain(f"cannot read {folder}"):
        return image_paths(folder)
