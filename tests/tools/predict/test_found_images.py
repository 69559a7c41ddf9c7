"""The images that names stand for."""

from pathlib import Path

import pytest

from flashkat.errors import InputError
from flashkat.tools.predict.found_images import find_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("b.png", "a.JPG", "notes.txt", "deep/er/c.webp", "deep/[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["b.png", "missing.png", "notes.txt"], ["b.png", "missing.png", "notes.txt"]),
        (["."], ["a.JPG", "b.png", "deep/[1].png", "deep/er/c.webp"]),
        (["*.png"], ["b.png"]),
        (["**/*.webp", "b.png"], ["deep/er/c.webp", "b.png"]),
        (["de*"], ["deep/[1].png", "deep/er/c.webp"]),
        (["deep/[1].png"], ["deep/[1].png"]),  # a name, as there is such a file
        (["-"], ["b.png", "deep/er/c.webp", "x y.png"]),
        (["a.JPG", "-", "b.png"], ["a.JPG", "b.png", "deep/er/c.webp", "x y.png", "b.png"]),
    ],
)
def test_names(names, found, folder):
    assert find_images(names, ["b.png\n", "\n", "deep/er\r\n", "x y.png"]) == [Path(name) for name in found]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", "empty holds no images: name a folder with images"),
        ("*.gif", r"\*\.gif matches no images: check the pattern"),
        ("-", "standard input names no images: give one a line"),
    ],
)
def test_names_of_nothing(name, words, folder):
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=words):
        find_images([name], ["\n"])


def test_a_folder_follows_links_and_leaves_out_hidden_names(folder, tmp_path_factory):
    """As in training."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for place in (
        elsewhere / "d.png",
        folder / "deep" / "._b.png",
        folder / "deep" / ".thumbs" / "e.png",
        folder / "deep" / "album.png" / "f.png",
    ):
        place.parent.mkdir(exist_ok=True)
        place.touch()
    for name, aim in {"link": elsewhere, "around": folder / "deep", "itself": "itself", "no.png": "nowhere"}.items():
        (folder / "deep" / name).symlink_to(aim)
    assert find_images(["deep"], []) == [Path(f"deep/{name}") for name in ("[1].png", "er/c.webp", "link/d.png")]
    assert find_images(["deep/.thumbs"], []) == [Path("deep/.thumbs/e.png")]
