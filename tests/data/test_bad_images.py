"""Images that cannot be read: replaced, counted and listed, in training and in evaluation."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from flashkat.cli.main import main
from flashkat.data.bad_images import SKIPPED, bad_image_names, check_bad_images
from flashkat.data.config import Data
from flashkat.data.datasets import open_dataset
from flashkat.errors import InputError

TINY = ["--model", "kat_tiny_patch16_224", "--img-size", "16", "-b", "4", "--device", "cpu"]
TINY += ["--model-kwargs", "patch_size=8", "embed_dim=16", "depth=1", "num_heads=2"]
ONE_EPOCH = [*TINY, "--epochs", "1", "--opt", "adamw", "--warmup-epochs", "0", "--experiment", "r"]


def write(root, split="train", count=8):
    """Images of two classes, whose brightness is their number."""
    for place, name in enumerate("ab"):
        folder = root / split / name
        folder.mkdir(parents=True)
        for number in range(count):
            level = 10 * (place * count + number)
            Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(folder / f"{number}.png")
    return root


def break_file(path, damage):
    whole = path.read_bytes()
    content = {
        "corrupt": whole[:60] + bytes(len(whole) - 60),
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"no picture",
    }
    if damage == "gone":
        path.unlink()
    elif damage == "bomb":
        # The header of a picture of 65,535 x 65,535 pixels.
        Image.new("1", (65535, 4)).save(path, "ppm")
        path.write_bytes(path.read_bytes().replace(b"65535 4", b"65535 65535"))
    else:
        path.write_bytes(content[damage])


def opened(root, split="train", limit=0.5, **more):
    data = Data(data_dir=str(root), skip_bad_images=True, max_bad_images=limit, **more)
    dataset = open_dataset(data, split, is_training=split == "train")
    dataset.transform = lambda image: image.getpixel((0, 0))[0]
    return dataset


@pytest.mark.parametrize("damage", ["corrupt", "truncated", "empty", "text", "gone", "bomb"])
def test_the_next_image_takes_the_place(tmp_path, damage):
    dataset = opened(write(tmp_path))
    break_file(tmp_path / "train" / "a" / "3.png", damage)
    assert [dataset[index] for index in range(2, 6)] == [(20, 0), (40, 0), (40, 0), (50, 0)]
    assert bad_image_names([dataset]) == [str(tmp_path / "train" / "a" / "3.png")]


def test_replacements_wrap_around_and_have_their_own_class(tmp_path):
    dataset = opened(write(tmp_path))
    for name in ("a/7", "b/6", "b/7"):
        break_file(tmp_path / "train" / f"{name}.png", "empty")
    assert [dataset[index] for index in (7, 14, 15)] == [(80, 1), (0, 0), (0, 0)]
    assert len(bad_image_names([dataset])) == 3


def test_evaluation_marks_what_does_not_count(tmp_path):
    dataset = opened(write(tmp_path, "val"), "val")
    break_file(tmp_path / "val" / "a" / "3.png", "empty")
    assert [dataset[index][1] for index in range(2, 5)] == [0, SKIPPED, 0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files here")
def test_files_that_never_end_are_left_out(tmp_path):
    os.mkfifo(write(tmp_path) / "train" / "a" / "8.png")
    dataset = opened(tmp_path)
    assert len(dataset) == 16
    assert "1 named pipe, socket or device (a/8.png)" in dataset.notes[0]


@pytest.mark.parametrize("limit", [0.1, 1.0])
def test_too_many_are_an_error(tmp_path, limit):
    dataset = opened(write(tmp_path), limit=limit)
    for path in tmp_path.rglob("*.png"):
        break_file(path, "empty")
    words = "2 of 16 images cannot be read, a larger share than --max-bad-images 0.1" if limit < 1 else "no image can"
    with pytest.raises(InputError, match=words):
        dataset[0]


def test_loader_processes_share_what_they_found(tmp_path):
    dataset = opened(write(tmp_path))
    for name in ("a/1", "b/5"):
        break_file(tmp_path / "train" / f"{name}.png", "truncated")
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=2)
    assert [len(target) for _, target in loader] == [4, 4, 4, 4]
    assert bad_image_names([dataset]) == [str(tmp_path / "train" / name) for name in ("a/1.png", "b/5.png")]


def test_training_and_validation(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(write(tmp_path / "d"), "val")
    train, val = tmp_path / "d" / "train" / "a" / "3.png", tmp_path / "d" / "val" / "b" / "7.png"
    break_file(train, "truncated")
    break_file(val, "empty")
    flags = ["--skip-bad-images", "--max-bad-images", "0.1", "-j", "2"]
    assert main(["train", "d", *ONE_EPOCH, *flags, "--output", "out"]) == 0
    assert "Images that cannot be read, in whose place others were taken: 2" in capsys.readouterr().out
    listed = (tmp_path / "out" / "r" / "bad-images.txt").read_text().splitlines()
    assert listed == ["d/train/a/3.png", "d/val/b/7.png"]

    checkpoint = ["validate", "d", "--checkpoint", "out/r/last.pth.tar", "-b", "4", "--device", "cpu", "-j", "0"]
    assert main([*checkpoint, *flags[:3], "--metrics-avg", "micro"]) == 0
    error = capsys.readouterr().err
    assert "Images that cannot be read, which do not count: 1\nd/val/b/7.png" in error
    val.unlink()
    assert main([*checkpoint, "--metrics-avg", "micro"]) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "Acc@1" in line][-1] in error


def test_too_many_are_an_error_although_they_cannot_be_listed(tmp_path):
    dataset = opened(write(tmp_path))
    dataset.bad.is_bad[:] = True
    with pytest.raises(InputError, match="16 of 16 images cannot be read"):
        check_bad_images([dataset])


def test_training_without_the_flag(tmp_path, capsys):
    write(write(tmp_path / "d"), "val")
    break_file(tmp_path / "d" / "train" / "a" / "3.png", "truncated")
    assert main(["train", str(tmp_path / "d"), *ONE_EPOCH, "-j", "0", "--output", str(tmp_path / "out")]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.endswith("train/a/3.png: replace or remove it")


def test_more_than_the_limit_ends_training(tmp_path, capsys):
    write(write(tmp_path / "d"), "val")
    break_file(tmp_path / "d" / "train" / "a" / "3.png", "truncated")
    flags = ["--skip-bad-images", "-j", "1", "--output", str(tmp_path / "out")]
    assert main(["train", str(tmp_path / "d"), *ONE_EPOCH, *flags]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert "1 of 16 images cannot be read, a larger share than --max-bad-images 0.01" in error
    assert "train/a/3.png" in error


def test_reassessed_labels_need_every_image(tmp_path, capsys):
    write(tmp_path / "d", "val")
    flags = ["--num-classes", "2", "--skip-bad-images", "--real-labels", "x.json", "-j", "0"]
    assert main(["validate", str(tmp_path / "d"), *TINY, *flags]) == 2
    assert "leave out --skip-bad-images" in capsys.readouterr().err
