"""The README and the documentation are true: links, commands, Python examples, the file map, the demo's accuracy."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text() for path in (*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/**/*.md")))
}
# Links that also work on PyPI: https://github.com/flashkat/flashkat/blob/main/PATH, or raw for pictures.
REPOSITORY = re.compile(r"https://github\.com/flashkat/flashkat/(?:blob|raw|tree)/main/")


def _mapped_paths():
    """Paths of the file map, from its indentation."""
    blocks = PAGES["docs/design/rooms.md"].split("```")[1::2]
    block = next(block for block in blocks if block.startswith("\nsrc/flashkat/"))
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
        for folder in ("src", "benchmarks", "dev")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    } | {path.name for path in ROOT.glob("*.py")}
    assert modules == {path for path in mapped if path.endswith(".py")}


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_work(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page])
    here = [REPOSITORY.sub("", link) for link in links if REPOSITORY.match(link)]
    beside = [link for link in links if not link.startswith("http")]
    assert not [link for link in here if not (ROOT / link).exists()]
    assert not [link for link in beside if not (ROOT / page).parent.joinpath(link).exists()]


def test_links_of_the_readme_work_on_pypi():
    assert not re.findall(r"\]\((?!https://)[^)]*\)", PAGES["README.md"])


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", "\n".join(PAGES.values()), re.MULTILINE)):
        assert f"\n{target}:" in makefile, target


EXAMPLES = [
    pytest.param(example, id=f"{page}-{number}")
    for page, text in PAGES.items()
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_python_examples_run(example):
    exec(example, {})


def test_accuracy_of_the_demo_is_the_committed_one():
    result = json.loads((ROOT / "docs/demo/result.json").read_text())
    assert f"{result['top1']:.2f}% of the 360" in PAGES["docs/tutorials/digits.md"]
