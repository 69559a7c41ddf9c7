"""The rooms of the package: small folders, imports that go one way, and a test file for each module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/flashkat"
MOST_FILES = 12

# Every room imports from rooms on lower floors alone.
FLOORS = [
    {"defaults", "errors", "ops"},
    {"system", "nn"},
    {"checkpoints", "data"},
    {"models"},
    {"evaluation", "compat"},
    {"training", "tools"},
    {"cli"},
    {"__init__", "__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# What no one reads as source.
NO_SOURCES = {"results", "demo", "__pycache__"}
NO_SUFFIXES = {".so", ".pyc", ".svg", ".png"}


def modules(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*.py") if not path.stem.startswith("__"))


def room_of(path):
    return path.parts[0].removesuffix(".py")


def imports(path):
    """The modules of this package that a file imports, by name, wherever in the file."""
    package = ["flashkat", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_rooms(path):
    names = (name.split(".") for name in imports(path))
    return {words[1] for words in names if words[0] == "flashkat" and words[1:2] and words[1] in FLOOR_OF}


@pytest.mark.parametrize("path", modules(PACKAGE), ids=str)
def test_every_module_has_its_tests(path):
    assert (ROOT / "tests" / path.with_name(f"test_{path.name}")).is_file()


@pytest.mark.parametrize(
    "path", [Path(name) / path for name in ("benchmarks", "dev") for path in modules(ROOT / name)], ids=str
)
def test_every_script_has_its_tests(path):
    assert (ROOT / "tests" / path.with_name(f"test_{path.name}")).is_file()


def test_every_test_file_has_its_module():
    """But for those of the project itself."""
    homes = {"benchmarks": ROOT, "dev": ROOT, "project": None}
    orphans = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        inside = path.relative_to(ROOT / "tests")
        home = homes.get(room_of(inside), PACKAGE)
        if home is not None and not (home / inside.with_name(path.name.removeprefix("test_"))).is_file():
            orphans.append(str(inside))
    assert orphans == []


def test_helpers_of_tests_lie_above_the_rooms():
    """Beside test files there are none, which a reader would look for a module of."""
    beside = {path.name for path in (ROOT / "tests").glob("*/**/*.py") if not path.name.startswith("test_")}
    assert beside <= {"conftest.py"}


@pytest.mark.parametrize("name", ["src/flashkat", "tests", "benchmarks", "docs"])
def test_no_folder_holds_more_than_a_dozen_files(name):
    folders = [path for path in (ROOT / name, *(ROOT / name).rglob("*")) if path.is_dir()]
    crowded = {
        str(folder.relative_to(ROOT)): count
        for folder in folders
        if not NO_SOURCES & set(folder.parts)
        and (count := sum(path.is_file() and path.suffix not in NO_SUFFIXES for path in folder.iterdir())) > MOST_FILES
    }
    assert crowded == {}


def test_every_room_is_on_a_floor():
    assert {room_of(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")} == FLOOR_OF.keys()


@pytest.mark.parametrize("room", sorted(FLOOR_OF))
def test_imports_go_down(room):
    upwards = {
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in PACKAGE.rglob("*.py")
        if room_of(path.relative_to(PACKAGE)) == room
        for other in imported_rooms(path)
        if other != room and FLOOR_OF[other] >= FLOOR_OF[room]
    }
    assert upwards == set()


def test_namespaces_of_flags_stay_in_the_command_line():
    found = [str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "Namespace" in path.read_text()]
    assert [path for path in found if not path.startswith("cli/")] == []
