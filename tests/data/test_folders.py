import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import CONFIG, loader_of, write_classes

from flashkat.data.datasets import check_splits
from flashkat.data.folders import open_split
from flashkat.errors import InputError


def as_it_is(dataset):
    dataset.transform = lambda image: image
    return dataset


# --- finding a split --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "asked"),
    [
        *((name, "val") for name in ("val", "validation", "valid", "eval")),
        *((name, "train") for name in ("train", "training")),
        ("val", "validation"),
        ("training", "training"),
        ("test", "test"),
        ("fold-3", "fold-3"),
    ],
)
def test_names_of_splits(tmp_path, folder, asked):
    write_classes(tmp_path / folder, ["cat", "dog"])
    dataset = open_split(tmp_path, asked)
    assert len(dataset) == 6
    assert Path(dataset.filename(0, absolute=True)).parent.parent == tmp_path / folder


def test_the_name_itself_comes_first(tmp_path):
    for name in ("val", "valid", "validation", "test"):
        write_classes(tmp_path / name, [name])
    for name in ("val", "valid", "validation", "test"):
        assert open_split(tmp_path, name).classes == [name]


def test_folder_of_the_classes_itself(tmp_path):
    write_classes(tmp_path, ["cat", "dog"])
    assert open_split(tmp_path, "val").classes == ["cat", "dog"]
    assert open_split(str(tmp_path), "val").classes == ["cat", "dog"]
    for split in ("train", "test"):
        with pytest.raises(InputError, match=f"has no folder named {split}"):
            open_split(tmp_path, split)


def test_training_images_are_not_taken_for_evaluation_images(tmp_path):
    write_classes(tmp_path / "train", ["cat", "dog"])
    with pytest.raises(InputError, match="has no folder named val or validation"):
        open_split(tmp_path, "val")


def test_classes_are_numbered_in_the_order_of_their_names(tmp_path):
    pixels = write_classes(tmp_path / "val", ["n02", "n01", "n03"], count=2)
    dataset = as_it_is(open_split(tmp_path, "val"))
    assert dataset.classes == ["n01", "n02", "n03"]
    assert len(dataset) == 6
    for index in range(6):
        path = Path(dataset.filename(index, absolute=True))
        image, target = dataset[index]
        assert dataset.classes[target] == path.parent.name
        assert np.array_equal(np.asarray(image), pixels[path])


def test_nested_images_and_other_files(tmp_path):
    write_classes(tmp_path / "val", ["cat", "dog"])
    (tmp_path / "val" / "cat" / "more").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "cat" / "more" / "3.JPEG")
    (tmp_path / "val" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "val" / "README.md").write_text("nor this")
    assert len(open_split(tmp_path, "val")) == 7


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "no data folder at"),
        (lambda root: root.write_text("a file"), "no data folder at"),
        (lambda root: (root / "val").mkdir(parents=True), "has no class folders: images belong in"),
        (lambda root: (root / "val" / "cat").mkdir(parents=True), "has no images in its class folders"),
        (lambda root: root.mkdir(), "has no class folders"),
    ],
)
def test_no_data(tmp_path, make, words):
    make(tmp_path / "data")
    with pytest.raises(InputError, match=words):
        open_split(tmp_path / "data", "val")


# --- classes of two splits --------------------------------------------------------------------------------------------


def splits(root, train, val):
    write_classes(root / "train", train, count=1)
    write_classes(root / "val", val, count=1)
    return open_split(root, "train"), open_split(root, "val")


def test_same_classes(tmp_path):
    check_splits(*splits(tmp_path, ["cat", "dog"], ["dog", "cat"]))


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        (["cat", "dog"], ["cat"], r"val has no images of classes that .*train has: dog\. Add images, or remove"),
        (["cat"], ["cat", "dog"], r"train has no images of classes that .*val has: dog\."),
        (["cat", "dog"], ["cat", "emu"], r"val has no images of classes that .*train has: dog\."),
        (list("abcde"), ["e"], r": a, b, c, d\. Add"),
        (list("abcdefgh"), ["h"], r": a, b, c, d, e and 2 more\. Add"),
    ],
)
def test_different_classes(tmp_path, train, val, words):
    with pytest.raises(InputError, match=words):
        check_splits(*splits(tmp_path, train, val))


def test_grey_and_transparent_images_have_their_colours(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    Image.new("L", (8, 8), 100).save(tmp_path / "val" / "cat" / "0.png")
    Image.new("RGBA", (8, 8), (10, 20, 30, 255)).save(tmp_path / "val" / "cat" / "1.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 150, 50])
    palette.save(tmp_path / "val" / "cat" / "2.png")
    dataset = as_it_is(open_split(tmp_path, "val"))
    assert [dataset[index][0].getpixel((4, 4)) for index in range(3)] == [(100,) * 3, (10, 20, 30), (200, 150, 50)]


@pytest.mark.parametrize("damage", ["text", "empty", "truncated"])
def test_damaged_image_is_an_error_that_names_it(tmp_path, damage):
    write_classes(tmp_path / "val", ["cat", "dog"])
    broken = tmp_path / "val" / "dog" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes({"text": b"not a picture", "empty": b"", "truncated": whole[: len(whole) // 2]}[damage])
    dataset = open_split(tmp_path, "val")
    with pytest.raises(InputError) as caught:
        list(loader_of(dataset, CONFIG, 2, 0))
    assert str(caught.value) == f"cannot decode the image {broken}: replace or remove it"


def test_why_an_image_cannot_be_decoded(tmp_path, monkeypatch):
    write_classes(tmp_path / "val", ["cat"])
    dataset = open_split(tmp_path, "val")
    (tmp_path / "val" / "cat" / "0.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match=r"0.png: it is a pointer of Git LFS, .*: git lfs pull fetches that$"):
        dataset[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    with pytest.raises(
        InputError, match=r"1.png: it has more pixels than Pillow decodes, make it smaller or remove it$"
    ):
        dataset[1]


def test_an_image_that_vanished_is_an_error_that_names_it(tmp_path):
    write_classes(tmp_path / "val", ["cat", "dog"])
    dataset = open_split(tmp_path, "val")
    gone = Path(dataset.filename(4, absolute=True))
    gone.unlink()
    with pytest.raises((InputError, FileNotFoundError), match=str(gone)):
        dataset[4]


# --- evaluation images that are held out ------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "train", "training"])
def test_images_are_held_out_of_the_training_images(tmp_path, folder):
    pixels = write_classes(tmp_path / "d" / folder, ["cat", "dog"], count=5)
    parts = [open_split(tmp_path / "d", split, "", "RGB", 0.4, split == "train") for split in ("train", "validation")]
    assert [len(part) for part in parts] == [6, 4]
    assert {Path(name) for part in parts for name in part.filenames(absolute=True)} == pixels.keys()
    check_splits(*parts)
    # Another split is what it is.
    write_classes(tmp_path / "d" / "test", ["cat", "dog"])
    assert len(open_split(tmp_path / "d", "test", val_fraction=0.4)) == 6


def test_nothing_is_held_out_beside_images_to_evaluate(tmp_path):
    for split in ("train", "valid"):
        write_classes(tmp_path / split, ["cat", "dog"])
    for is_training in (True, False):
        with pytest.raises(InputError, match="valid holds images to evaluate already: leave out --val-fraction"):
            open_split(tmp_path, "train" if is_training else "val", "", "RGB", 0.1, is_training)
    with pytest.raises(InputError, match=r"divides the training images of .*: leave out --train-split other"):
        open_split(tmp_path, "other", "", "RGB", 0.1, True)


def test_folders_that_are_there_are_named(tmp_path):
    for name in ("Train", "fold1", "a", "b", "c"):
        write_classes(tmp_path / name, ["cat", "dog"])
    with pytest.raises(
        InputError, match="no folder named train or training, but Train, a, b, c and 1 more: name one in"
    ):
        open_split(tmp_path, "train")


@pytest.mark.parametrize("name", ["train.tar.gz", "train.zip", "training.tgz"])
def test_compressed_archives_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    write_classes(tmp_path / "val", ["cat"])
    for root in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=rf"{name} is compressed, so images in it .*: unpack it"):
            open_split(root, "train")


@pytest.mark.parametrize("is_archive", [False, True])
def test_splits_are_not_taken_for_classes(tmp_path, is_archive):
    for split in ("train", "val"):
        write_classes(tmp_path / "data" / split, ["cat", "dog"])
    place, split = tmp_path, "data"
    if is_archive:
        place, split = tmp_path / "data.tar", "val"
        with tarfile.open(place, "w") as archive:
            archive.add(tmp_path / "data", "data")
    with pytest.raises(InputError, match="holds the splits train, val, not classes: name one split alone"):
        open_split(place, split)
