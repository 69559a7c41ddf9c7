"""``flashkat data split``."""

import pytest
from tiny import write_images

from flashkat.cli.main import main
from flashkat.data.folders import open_split


@pytest.fixture
def data(tmp_path):
    """Ten images in each of two class folders."""
    write_images(tmp_path / "all", train=10, val=0)
    (tmp_path / "all" / "train").rename(tmp_path / "d")
    return tmp_path / "d"


def files(root):
    return {str(path.relative_to(root)) for path in root.rglob("*.png")}


def test_links_to_every_image(data, tmp_path, capsys):
    before = {path: path.read_bytes() for path in data.rglob("*.png")}
    (data / "notes.txt").write_text("no image")
    assert main(["data", "split", str(data), str(tmp_path / "new"), "--val-fraction", "0.3"]) == 0
    out, err = capsys.readouterr()
    assert out == f"Linked 14 training and 6 evaluation images in {tmp_path / 'new'}\n"
    assert err.splitlines() == [
        f"{data}: left out 1 file that is no image (notes.txt)",
        f"{data}: 6 of 20 images are held out",
    ]
    links = [path for path in (tmp_path / "new").rglob("*.png") if path.is_symlink()]
    assert {path.resolve(): path.read_bytes() for path in links} == before
    assert len(links) == 20
    # The same images as in training with --val-fraction.
    held_out = open_split(data, "validation", val_fraction=0.3)
    assert files(tmp_path / "new" / "val") == set(held_out.filenames())
    assert len(open_split(tmp_path / "new", "train")) == 14


def test_links_move_with_the_images(data, tmp_path):
    (tmp_path / "place").mkdir()
    data.rename(tmp_path / "place" / "d")
    assert main(["data", "split", str(tmp_path / "place" / "d"), str(tmp_path / "place" / "new")]) == 0
    (tmp_path / "place").rename(tmp_path / "other")
    assert len(open_split(tmp_path / "other" / "new", "val")) == 4


def test_a_folder_beyond_a_link(data, tmp_path):
    """The system goes to the parent of where the link leads."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    data.rename(tmp_path / "far" / "d")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    assert main(["data", "split", f"{tmp_path}/link/../d", str(tmp_path / "new")]) == 0
    links = list((tmp_path / "new").rglob("*.png"))
    assert len(links) == 20
    assert all(link.exists() for link in links)


def test_what_cannot_be_divided(data, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    (tmp_path / "d.tar").write_bytes(b"")
    write_images(tmp_path / "whole")
    for folder, output, words in (
        (data, tmp_path / "full", "is there already and not empty"),
        (tmp_path / "d.tar", tmp_path / "new", "is an archive, which links cannot divide"),
        (tmp_path / "whole", tmp_path / "new", "whole is divided already: name the folder of its training images"),
        (tmp_path / "nothing", tmp_path / "new", "no data folder at"),
        (data, data / "new", "whose images it would add to: choose a folder beside it"),
    ):
        assert main(["data", "split", str(folder), str(output)]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert not (data / "new").exists()


def test_a_class_of_one_image_is_refused(data, tmp_path, capsys):
    """Training refuses splits of other classes."""
    first, *others = sorted(data.iterdir())[0].iterdir()
    for path in others:
        path.unlink()
    assert main(["data", "split", str(data), str(tmp_path / "new")]) == 2
    error = f"{data} has one image of {first.parent.name}, which cannot be in both splits: add images, or train on it"
    assert error in capsys.readouterr().err
    for path in data.rglob("*.png"):
        if path.name != first.name:
            path.unlink()
    assert main(["data", "split", str(data), str(tmp_path / "new")]) == 2
    assert (
        f"{data} has one image of {', '.join(sorted(each.name for each in data.iterdir()))}" in capsys.readouterr().err
    )
    assert not (tmp_path / "new").exists()


def test_only_the_class_of_one_image_is_named(data, tmp_path, capsys):
    """Without the other class, the folder in the class folder would look like a class."""
    one, several = sorted(data.iterdir())
    for path in [*one.iterdir()][1:]:
        path.unlink()
    several.rename(tmp_path / "inner")
    several.mkdir()
    (tmp_path / "inner").rename(several / "inner")
    assert main(["data", "split", str(data), str(tmp_path / "new")]) == 2
    assert f"{data} has one image of {one.name}, which cannot be" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["0", "1", "-0.1"])
def test_shares_that_divide_nothing(data, tmp_path, share, capsys):
    with pytest.raises(SystemExit):
        main(["data", "split", str(data), str(tmp_path / "new"), "--val-fraction", share])
    assert "--val-fraction" in capsys.readouterr().err
