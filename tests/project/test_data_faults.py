"""Data sets as people have them, through the command line: what is read, what is said, what is refused."""

import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import resample_abs_pos_embed

from flashkat.cli.main import main

SMALL = ["--model", "kat_tiny_patch16_224", "--img-size", "16", "--opt", "adamw", "--warmup-epochs", "0", "-b", "8"]
SMALL += ["--model-kwargs", "patch_size=8", "embed_dim=16", "depth=1", "num_heads=2"]
SMALL += ["-j", "0", "--device", "cpu", "--output", "out", "--experiment", "r"]
CHECKPOINT = "out/r/last.pth.tar"


def make(root, suffix="png", mode="RGB"):
    """Eight images of each of two colours in both splits."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for channel, name in enumerate("ab"):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(8):
                pixels = random.integers(0, 80, (16, 16, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).convert(mode).save(folder / f"{number}.{suffix}")


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "d")
    return tmp_path / "d"


@pytest.fixture
def run(capsys):
    """A function that runs a command, and returns its status and all that it printed."""

    def run(command, *flags):
        more = [*SMALL, "--epochs", "1"] if command == "train" else ["-j", "0", "--device", "cpu"]
        status = main([command, *(flags[:1]), *more, *flags[1:]])
        output = capsys.readouterr()
        return status, output.out + output.err

    return run


def classes():
    return torch.load(CHECKPOINT, weights_only=True)["classes"]


def test_classes_with_subfolders(data, run):
    for folder in [path for path in data.glob("*/*") if path.is_dir()]:
        for number in range(8):
            year = folder / ("2023" if number < 4 else "2024")
            year.mkdir(exist_ok=True)
            (folder / f"{number}.png").rename(year / f"{number}.png")
    assert "16 training and 16 evaluation images, 2 classes" in run("train", "d")[1]
    assert classes() == ["a", "b"]


def test_no_evaluation_for_an_empty_split(run):
    status, output = run("train", "d", "--val-split", "", "--model-ema")
    assert status == 0
    assert "16 training and no evaluation images" in output
    assert "There is no evaluation, as --val-split is empty" in output
    assert "top-1" not in output.partition("Epoch 1/1  ")[2]
    assert run("train", "d", "--val-split", "", "--sched", "plateau")[0] == 2


@pytest.mark.parametrize("command", ["train", "validate", "plot"])
def test_other_splits_need_a_name(run, command):
    assert run("train", "d")[0] == 0
    flags = {
        "train": ["d", "--train-split", ""],
        "validate": ["d", "--split", "", "--checkpoint", CHECKPOINT],
        "plot": [CHECKPOINT, "--data", "d", "--split", ""],
    }
    status, output = run(command, *flags[command])
    assert status == 2
    assert "a split has no name" in output.splitlines()[-1]


def test_hidden_and_stray_files(data, run):
    for place in ("train/a", "val/b"):
        (data / place / ".ipynb_checkpoints").mkdir()
        shutil.copy(data / place / "0.png", data / place / ".ipynb_checkpoints" / "0-checkpoint.png")
    (data / "train" / "a" / "._0.png").write_bytes(bytes(200))
    for split in ("train", "val"):
        shutil.copy(data / split / "a" / "0.png", data / split / "cover.png")
    status, output = run("train", "d")
    assert status == 0
    assert "16 training and 16 evaluation images, 2 classes" in output
    assert output.count("1 image beside the class folders (cover.png)") == 2
    assert classes() == ["a", "b"]
    status, output = run("validate", "d", "--checkpoint", CHECKPOINT)
    assert (status, output.count("1 image beside the class folders (cover.png)")) == (0, 1)


def test_other_image_files(data, run):
    for suffix, name in (("webp", "c"), ("tif", "e"), ("bmp", "f"), ("gif", "g")):
        make(data.parent / suffix, suffix)
        for split in ("train", "val"):
            shutil.copytree(data.parent / suffix / split / "a", data / split / name)
    shutil.copy(data / "train" / "c" / "7.webp", data / "train" / "b" / "more.webp")
    assert "49 training and 48 evaluation images, 6 classes" in run("train", "d")[1]
    assert classes() == ["a", "b", "c", "e", "f", "g"]
    assert run("train", "webp")[0] == 0


def test_channels_of_images(data, run):
    shutil.rmtree(data)
    make(data, mode="RGBA")
    status, output = run("train", "d", "--in-chans", "4")
    assert status == 2
    assert "--input-img-mode RGBA" in output.splitlines()[-1]
    assert run("train", "d", "--in-chans", "4", "--input-img-mode", "RGBA")[0] == 0
    assert run("validate", "d", "--checkpoint", CHECKPOINT)[0] == 0
    assert run("plot", CHECKPOINT, "--data", "d", "-o", "p.png")[0] == 0


@pytest.mark.parametrize("flags", [[], ["--in-chans", "1"], ["--in-chans", "1", "--input-img-mode", "I;16"]], ids=str)
def test_sixteen_bits_are_learned_as_eight(data, run, flags):
    for split in ("train", "val"):
        for place, name in enumerate("ab"):
            for number in range(8):
                pixels = np.full((16, 16), 1000 + place * 25600, np.uint16)
                Image.fromarray(pixels).save(data / split / name / f"{number}.png")
    status, output = run("train", "d", "--no-aug", "--epochs", "12", "--val-interval", "12", "--lr", "1e-2", *flags)
    assert status == 0
    assert "top-1 100.00%" in next(line for line in output.splitlines() if line.startswith("Epoch 12/12"))


def test_positions_of_oblong_images(run):
    """Validating at another size, and starting with as many positions on another grid."""
    tall = ["--input-size", "3", "32", "16", "--model-kwargs", "patch_size=4", "embed_dim=16", "depth=1", "num_heads=2"]
    assert run("train", "d", *tall)[0] == 0
    status, output = run("validate", "d", "--checkpoint", CHECKPOINT, "--input-size", "3", "64", "32")
    assert status == 0, output
    wide = [*tall, "--input-size", "3", "16", "32", "--initial-checkpoint", CHECKPOINT, "--experiment", "wide"]
    status, output = run("train", "d", *wide, "--lr", "1e-12")
    assert status == 0
    assert f"the position embedding is resampled: 8 x 4 in {CHECKPOINT}, 4 x 8 here" in output
    old, new = (torch.load(f"out/{name}/last.pth.tar", weights_only=True)["state_dict"] for name in ("r", "wide"))
    expected = resample_abs_pos_embed(old["pos_embed"], (4, 8), old_size=(8, 4))
    torch.testing.assert_close(new["pos_embed"], expected, rtol=0, atol=1e-6)


def test_a_folder_without_splits(data, run):
    """What training holds out, evaluation and pictures take."""
    (data / "train").rename(data.parent / "all")
    status, output = run("train", "all")
    assert status == 2
    assert "no folder named train or training, but a, b" in output
    assert "--val-fraction 0.1" in output
    status, output = run("train", "all", "--val-fraction", "0.25")
    assert status == 0
    assert "12 training and 4 evaluation images, 2 classes" in output
    assert output.count("all: 4 of 16 images are held out") == 1
    for flags in (
        ["validate", "all", "--checkpoint", CHECKPOINT],
        ["validate", "all", "--checkpoint", CHECKPOINT, "--dataset", "folder"],
        ["plot", CHECKPOINT, "--data", "all", "-o", "p.png"],
    ):
        status, output = run(*flags)
        assert status == 0
        assert output.count("all: 4 of 16 images are held out") == 1
    (data.parent / "all").rename(data.parent / "moved")
    status, output = run("validate", "moved", "--checkpoint", CHECKPOINT)
    assert status == 0
    assert output.count("moved: 4 of 16 images are held out") == 1
    (data.parent / "moved" / "a" / "0.png").rename(data.parent / "moved" / "a" / "other.png")
    for path in (data.parent / "moved" / "b").iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    status, output = run("validate", "moved", "--checkpoint", CHECKPOINT)
    assert status == 0
    assert "All images are evaluated. The run held out 0.25 of each class of all" in output
    assert "held out of" not in run("validate", "d", "--checkpoint", CHECKPOINT)[1]


def test_other_images_that_are_held_out_are_named(data, run):
    """New images, and another share, can hold out images that the run has trained on."""
    (data / "train").rename(data.parent / "all")
    flags = ["all", "--val-fraction", "0.25"]
    assert run("train", *flags)[0] == 0
    line = f"all holds out other images than it did for {CHECKPOINT}: the run may have trained on some of these"
    resumed = ["train", *flags, "--resume", CHECKPOINT, "--epochs", "2", "--experiment", "more"]
    validated = ["validate", "all", "--checkpoint", CHECKPOINT]
    for argv in (resumed, validated):
        status, output = run(*argv)
        assert status == 0, output
        assert line not in output
    assert run("validate", "all", "--checkpoint", CHECKPOINT, "--val-fraction", "0.5")[1].count(line) == 1
    for number in range(20, 60):
        shutil.copy(data.parent / "all" / "a" / "0.png", data.parent / "all" / "a" / f"{number}.png")
    for argv in ([*resumed[:-1], "other"], validated):
        status, output = run(*argv)
        assert status == 0, output
        assert output.count(line) == 1
    assert line not in run("validate", "d", "--checkpoint", CHECKPOINT)[1]


def test_held_out_images_need_no_split(data, run):
    assert run("train", "d", "--val-fraction", "0.25")[0] == 2
    assert run("train", "d", "--val-fraction", "0.25", "--val-split", "test")[0] == 2
    status, output = run("train", "d", "--val-fraction", "0.25", "--dataset", "torch/mnist")
    assert status == 2
    assert "divides folders and archives" in output


@pytest.mark.parametrize("flags", [["d", "--val-split", "train"], ["d.tar"]], ids=str)
def test_evaluation_on_the_images_of_training_is_said(data, run, flags):
    with tarfile.open("d.tar", "w") as archive:
        archive.add(data / "train", "d")
    status, output = run("train", *flags)
    assert status == 0
    assert output.count("Evaluation sees the images of training, d") == 1


def test_large_images_are_read_without_a_word_of_pillows(data, run, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    assert run("train", "d")[0] == 0
    assert not [each for each in recwarn if issubclass(each.category, Image.DecompressionBombWarning)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    status, output = run("train", "d")
    assert status == 2
    assert "cannot decode the image" in output.splitlines()[-1]
