"""The README's map and commands are true, and those of the pages that it leads to."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _mapped_paths():
    """Paths of the README's file map, from its indentation."""
    block = next(block for block in README.split("```")[1::2] if block.startswith("\nsrc/flashkat/"))
    folders: list[tuple[int, str]] = []
    for line in block.strip().splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        while folders and folders[-1][0] >= indent:
            folders.pop()
        path = "".join(folder for _, folder in folders) + name
        if name.endswith("/"):
            folders.append((indent, name))
        yield path


def test_every_module_is_on_the_map_and_every_path_exists():
    mapped = set(_mapped_paths())
    assert not [path for path in mapped if not (ROOT / path).exists()]
    modules = {
        str(path.relative_to(ROOT))
        for folder in ("src", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    } | {path.name for path in ROOT.glob("*.py")}
    assert modules == {path for path in mapped if path.endswith(".py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_work(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text()) if not link.startswith("http")]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)):
        assert f"\n{target}:" in makefile, target


def test_python_examples_run():
    examples = re.findall(r"```python\n(.*?)```", "\n".join(page.read_text() for page in PAGES), re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        exec(example, {})


def test_accuracy_of_the_demo_is_the_committed_one():
    result = json.loads((ROOT / "docs/demo/result.json").read_text())
    assert f"{result['top1']:.2f}% of the 360" in README
