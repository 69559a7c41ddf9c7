"""The README's map and commands are true."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


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


def test_links_to_files_work():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)):
        assert f"\n{target}:" in makefile, target


def test_python_examples_run():
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        exec(example, {})


def test_accuracy_of_the_demo_is_the_committed_one():
    result = json.loads((ROOT / "docs/demo/result.json").read_text())
    assert f"{result['top1']:.2f}% of the 360" in README
