"""Which images of folders and archives are found, and their classes."""

import io
import os
import socket
import tarfile

import numpy as np
import pytest
from PIL import Image
from timm.data import create_dataset

from flashkat.data.folders import open_split
from flashkat.data.images import image_suffixes
from flashkat.data.scan import read_class_map, scan
from flashkat.errors import InputError


def write(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / path)
    return root


def as_bytes(colour=0):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "png")
    return file.getvalue()


def pack(path, members, **more):
    """An archive of members, by their names; returns its path."""
    with tarfile.open(path, "w", **more) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def archived(root, path):
    return pack(path, {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()})


def found(images):
    classes = list(images.class_to_idx)
    return {name: classes[images[index][1]] for index, name in enumerate(images.filenames())}


@pytest.fixture(params=["folder", "archive"])
def place(request, tmp_path):
    """A function that makes a folder, or an archive of it."""
    return lambda root: root if request.param == "folder" else archived(root, tmp_path / "split.tar")


NAMES = ["b/10.png", "b/9.png", "a10/1.png", "a9/x2.png", "a9/x10.jpg", "a9/X3.jpeg", "Zebra/0.png", "a9/1²2.png"]


def test_order_is_timms(tmp_path, place):
    root = place(write(tmp_path / "split", *NAMES[:-1]))
    ours, timms = scan(root), create_dataset("", root=root, search_split=False).reader
    names = getattr(timms, "class_to_idx", None) or timms.class_name_to_idx
    assert ours.class_to_idx == names
    assert list(ours.class_to_idx) == list(names)
    assert ours.filenames() == timms.filenames()
    assert [ours[index][1] for index in range(len(ours))] == [timms[index][1] for index in range(len(timms))]


def test_a_name_that_timm_cannot_sort(tmp_path, place):
    assert len(scan(place(write(tmp_path / "split", *NAMES)))) == len(NAMES)


def test_classes_that_hold_folders(tmp_path, place):
    root = write(tmp_path / "split", "a/2023/0.png", "a/2024/1.png", "b/2023/0.png", "b/2.png", "b/2024/x/3.png")
    assert found(scan(place(root))) == {
        **{"a/2023/0.png": "a", "a/2024/1.png": "a"},
        **{"b/2023/0.png": "b", "b/2.png": "b", "b/2024/x/3.png": "b"},
    }


def test_a_single_folder_around_the_classes(tmp_path, place):
    root = write(tmp_path / "split", "data/train/a/0.png", "data/train/b/1.png")
    assert list(scan(place(root)).class_to_idx) == ["a", "b"]
    assert list(scan(write(tmp_path / "one", "a/0.png", "a/more/1.png")).class_to_idx) == ["a"]


def test_all_formats_of_pillow(tmp_path, place):
    names = [f"a/0{suffix}" for suffix in (".webp", ".tif", ".tiff", ".bmp", ".gif", ".png", ".jpg", ".ppm")]
    images = scan(place(write(tmp_path / "split", *names, "b/upper.WEBP")))
    assert set(images.filenames()) == {*names, "b/upper.WEBP"}
    assert not images.notes
    # Ghostscript runs what is in these; the others are not images.
    assert image_suffixes().isdisjoint({".eps", ".ps", ".pdf", ".h5", ".mpg"})


def test_what_is_left_out_is_counted(tmp_path, place):
    root = write(tmp_path / "split", "a/0.png", "b/0.png", "cover.png")
    for name in ("a/.ipynb_checkpoints/0-checkpoint.png", "a/._0.png", "a/x.jpg/0.png", "a/notes.txt", "list.csv"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    images = scan(place(root))
    assert found(images) == {"a/0.png": "a", "b/0.png": "b"}
    (note,) = images.notes
    for words in (
        "1 image beside the class folders (cover.png)",
        "2 hidden files or folders (a/._0.png, ...)",
        "1 folder named like an image (a/x.jpg",
        "2 files that are no images (a/notes.txt, ...)",
    ):
        assert words in note


def test_class_folders_without_images(tmp_path):
    root = write(tmp_path / "split", "a/0.png", "b/0.png")
    (root / "c" / "more").mkdir(parents=True)
    (root / "a" / "more").mkdir()
    (root / "c" / "notes.txt").write_text("nothing")
    (note,) = scan(root).notes
    assert "1 class folder without images (c)" in note
    with tarfile.open(tmp_path / "split.tar", "w") as archive:
        archive.add(root, "data")
    (note,) = scan(tmp_path / "split.tar").notes
    assert "1 class folder without images (data/c)" in note


def names_of(images):
    return set(images.filenames())


def test_parts_hold_a_share_of_each_class(tmp_path, place):
    root = place(write(tmp_path / "split", *(f"a/{n}.png" for n in range(20)), *(f"b/{n}.png" for n in range(10))))
    images = scan(root)
    trained, held_out = (images.part(0.2, is_held_out) for is_held_out in (False, True))
    assert names_of(trained) | names_of(held_out) == names_of(images)
    assert not names_of(trained) & names_of(held_out)
    assert [held_out[index][1] for index in range(len(held_out))] == [0] * 4 + [1] * 2
    assert [found(held_out)[name] for name in held_out.filenames()] == ["a"] * 4 + ["b"] * 2
    assert trained.class_to_idx == held_out.class_to_idx == {"a": 0, "b": 1}
    assert held_out.notes == trained.notes == [f"{root}: 6 of 30 images are held out"]
    assert held_out[0][0].read() == images[images.filenames().index(held_out.filename(0))][0].read()


def test_parts_depend_on_names_alone(tmp_path):
    roots = [write(tmp_path / name, *(f"a/{n}.png" for n in range(9))) for name in ("one", "two")]
    for path in (roots[1] / "a").iterdir():
        path.write_bytes(as_bytes(7))
    one, two = (names_of(scan(root).part(0.4, True)) for root in roots)
    assert one == two
    assert len(one) == 4
    # Adding a class changes nothing of the others, and most images stay where they are in a class that grows.
    write(roots[1], "b/0.png", "b/1.png", *(f"a/{n}.png" for n in range(9, 11)))
    assert len(names_of(scan(roots[1]).part(0.4, True)) & one) >= 2


@pytest.mark.parametrize("prefix", ["", "./", "data/train/"])
def test_parts_of_an_archive_are_those_of_the_folder(tmp_path, prefix):
    """Otherwise a checkpoint of one would be evaluated on images of the other that it was trained on."""
    root = write(tmp_path / "split", *(f"{name}/more/{n}.png" for n in range(20) for name in "ab"))
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}
    whole = pack(tmp_path / "whole.tar", {f"{prefix}{name}": content for name, content in files.items()})
    inner = {
        f"{prefix}{name}.tar": pack(
            tmp_path / f"{name}.tar", {path[2:]: content for path, content in files.items() if path[0] == name}
        ).read_bytes()
        for name in "ab"
    }
    expected = names_of(scan(root).part(0.4, True))
    assert {name.removeprefix(prefix) for name in names_of(scan(whole).part(0.4, True))} == expected
    nested = names_of(scan(pack(tmp_path / "nested.tar", inner)).part(0.4, True))
    assert {name.removeprefix(prefix).replace(".tar", "") for name in nested} == expected


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_parts_of_small_classes(tmp_path, share):
    root = write(tmp_path / "split", "a/0.png", "b/0.png", "b/1.png", "c/0.png")
    held_out = scan(root).part(share, True)
    assert list(found(held_out).values()) == ["b"]
    assert held_out.notes == [f"{root}: 1 of 4 images are held out, but for 2 classes of one image"]


def test_links(tmp_path):
    root = write(tmp_path / "split", "a/0.png", "b/0.png")
    (root / "a" / "gone.png").symlink_to(tmp_path / "nothing.png")
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "self.png").symlink_to("self.png")
    (root / "c").symlink_to(root / "b")
    images = scan(root)
    assert found(images) == {"a/0.png": "a", "b/0.png": "b", "c/0.png": "c"}
    assert "3 links to nothing or to a folder around them" in images.notes[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files here")
def test_pipes_and_sockets_are_named(tmp_path, monkeypatch):
    root = write(tmp_path / "split", "a/0.png", "b/0.png")
    os.mkfifo(root / "a" / "1.png")
    monkeypatch.chdir(root / "b")  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("1.png")
        images = scan(root)
    assert found(images) == {"a/0.png": "a", "b/0.png": "b"}
    assert "2 named pipes, sockets or devices (a/1.png, ...)" in images.notes[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files here")
def test_a_pipe_that_takes_the_place_of_an_image_is_refused(tmp_path):
    """Its reader would wait for ever."""
    images = scan(write(tmp_path / "split", "a/0.png", "b/0.png"))
    (tmp_path / "split" / "a" / "0.png").unlink()
    os.mkfifo(tmp_path / "split" / "a" / "0.png")
    with pytest.raises(OSError, match=r"a/0\.png is no ordinary file"):
        images[0]


def test_class_map(tmp_path, place):
    root = place(write(tmp_path / "split", "a/0.png", "b/0.png", "c/0.png"))
    images = scan(root, {"c": 0, "a": 1})
    assert found(images) == {"a/0.png": "a", "c/0.png": "c"}
    assert images.class_to_idx == {"c": 0, "a": 1}
    assert "1 image whose class the class map lacks (b/0.png)" in images.notes[0]


@pytest.mark.parametrize("text", ["c\na d\n", "c\r\na d", "\ufeffc\r\n  a d \r\n\r\n\n", "\ufeffc\na d"])
def test_texts_of_class_maps(tmp_path, text):
    (tmp_path / "map.txt").write_bytes(text.encode())
    assert read_class_map(str(tmp_path / "map.txt")) == {"c": 0, "a d": 1}
    assert read_class_map("map.txt", tmp_path) == {"c": 0, "a d": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a\nb\na\n", "has the name a again in line 3"),
        (b"a\n\nb\n", "has no name in line 2"),
        (b"\xff\xfe\n", "cannot read --class-map"),
        (None, "no class map at"),
    ],
)
def test_class_maps_that_are_none(tmp_path, text, words):
    if text is not None:
        (tmp_path / "map.txt").write_bytes(text)
    with pytest.raises(InputError, match=words):
        read_class_map(str(tmp_path / "map.txt"))


def test_escapes_in_names_are_not_printed(tmp_path):
    images = scan(write(tmp_path / "split", "a/0.png", "\x1b[31m.png"))
    assert "(\\x1b[31m.png)" in images.notes[0]


def test_archives_in_an_archive(tmp_path):
    inner = {name: pack(tmp_path / f"{name}.tar", {f"{name}_{n}.png": as_bytes(n) for n in (2, 10)}) for name in "ba"}
    path = pack(tmp_path / "split.tar", {f"{name}.tar": file.read_bytes() for name, file in inner.items()})
    ours, timms = scan(path), create_dataset("", root=path, search_split=False).reader
    assert found(ours) == {f"{name}.tar/{name}_{n}.png": name for name in "ba" for n in (2, 10)}
    assert ours.filenames(basename=True) == timms.filenames()
    for index in range(4):
        assert ours[index][0].read() == timms[index][0].read()
        assert ours[index][1] == timms[index][1]


def test_an_archive_of_one_file_without_an_end(tmp_path):
    inner = pack(tmp_path / "a.tar", {"0.png": as_bytes()}).read_bytes()[:1024]
    path = pack(tmp_path / "split.tar", {"a.tar": inner, "b/1.png": as_bytes()})
    assert found(scan(path)) == {"a.tar/0.png": "a", "b/1.png": "b"}


def test_the_last_of_several_members_of_one_name_counts(tmp_path):
    """tar extracts that. As two images, one could be trained on and the other held out."""
    path = pack(tmp_path / "split.tar", {f"{name}/{n}.png": as_bytes(1) for name in "ab" for n in range(4)})
    with tarfile.open(path, "a") as archive:
        for name in ("a/0.png", "./b/3.png"):
            info = tarfile.TarInfo(name)
            info.size = len(as_bytes(9))
            archive.addfile(info, io.BytesIO(as_bytes(9)))
    images = scan(path)
    assert len(images) == 8
    assert images[images.filenames().index("a/0.png")][0].read() == as_bytes(9)
    assert images[images.filenames().index("./b/3.png")][0].read() == as_bytes(9)
    (note,) = images.notes
    assert "2 members that later ones of their names replace (./b/3.png, ...)" in note


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_damaged_archive_is_an_error(tmp_path, damage):
    path = pack(tmp_path / "split.tar", {f"{name}/0.png": as_bytes() for name in "abc"})
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[1100:]
    else:
        content[1024:1100] = b"x" * 76
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"split.tar"):
        open_split(path, "val")


def test_images_of_archives_can_be_read_by_several_processes(tmp_path):
    path = pack(tmp_path / "split.tar", {f"a/{n}.png": as_bytes(n) for n in range(8)})
    dataset = open_split(path, "val")
    dataset.transform = np.asarray
    from torch.utils.data import DataLoader

    images = [
        image for batch in DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=list) for image, _ in batch
    ]
    assert [int(image[0, 0, 0]) for image in images] == list(range(8))
