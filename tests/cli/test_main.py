"""Bad input through the real command: one line that says what is wrong, exit status 2, and nothing written."""

import contextlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from foreign import MakesFile, google_arrays
from PIL import Image
from processes import interrupted, started

from flashkat import checkpoints
from flashkat.cli import main as module
from flashkat.cli.main import main

KWARGS = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
TINY = ["--img-size", "8", "--model-kwargs", *(f"{key}={value}" for key, value in KWARGS.items())]
KAT = ["--model", "kat_tiny_patch16_224", *TINY]
TRAIN = [*KAT, "-j", "0", "-b", "4", "--epochs", "1"]
COMMAND = Path(sys.executable).with_name("flashkat")


def write_images(root, classes=("dark", "light"), train=6, val=2):
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for index, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                level = 255 * (index + 1) / (len(classes) + 1)
                pixels = generator.normal(level, 20, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def status_of(argv):
    try:
        return main([str(argument) for argument in argv])
    except SystemExit as error:
        return error.code


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoint(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    assert status_of(["train", images, *TRAIN, "--output", output, "--experiment", "run"]) == 0
    return output / "run" / "last.pth.tar"


@pytest.fixture(scope="module")
def vit_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("vit") / "vit.pth.tar"
    model = timm.create_model("vit_tiny_patch16_224", img_size=8, num_classes=2, **KWARGS)
    args = {"model_kwargs": KWARGS, "img_size": 8, "num_classes": 2}
    checkpoints.write(path, {"arch": "vit_tiny_patch16_224", "args": args, "state_dict": model.state_dict()})
    return path


@pytest.fixture
def command(tmp_path, monkeypatch, capfd, no_curves):
    """Runs the command in an empty folder: its exit status, its output, the lines of its errors, what it wrote."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*argv):
        before = set(tmp_path.rglob("*"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            warnings.simplefilter("ignore", DeprecationWarning)
            status = status_of(argv)
        out, err = capfd.readouterr()
        # pytest takes warnings away from where a user would see them.
        return status, out, err.splitlines() + [str(warning) for warning in caught], set(tmp_path.rglob("*")) - before

    return run


@pytest.fixture
def refuse(command):
    """Runs a command that has to be refused and returns its line."""

    def run(*argv):
        status, out, lines, written = command(*argv)
        assert status == 2
        assert len(lines) == 1, lines
        assert ": error: " in lines[0]
        assert lines[0].startswith("flashkat")
        assert not written
        assert "--result" not in out
        return lines[0].split(": error: ", 1)[1]

    return run


# --- data folders -----------------------------------------------------------------------------------------------------


def _no_classes(root):
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        (root / split / "0.png").write_bytes(b"")
    return root / "train", root / "val"


def _no_images(root):
    for split in ("train", "val"):
        (root / split / "dark").mkdir(parents=True)
        (root / split / "dark" / "notes.txt").write_text("no image")
    return root / "train", root / "val"


def _missing(root):
    return root, root


@pytest.mark.parametrize("make", [_missing, _no_classes, _no_images])
@pytest.mark.parametrize("name", ["train", "validate", "plot"])
def test_a_data_folder_without_data(name, make, refuse, checkpoint, tmp_path):
    root = tmp_path / "images"
    train_folder, val_folder = make(root)
    argv = {
        "train": ["train", root, *TRAIN],
        "validate": ["validate", root, "-j", "0", "--checkpoint", checkpoint],
        "plot": ["plot", checkpoint, "--data", root, "-j", "0", "-o", "picture.png"],
    }
    message = refuse(*argv[name])
    assert str(train_folder if name == "train" else val_folder) in message
    assert any(words in message for words in ("no data folder", "no class folders", "no images"))


def test_a_file_for_a_data_folder(refuse, tmp_path):
    file = tmp_path / "images.txt"
    file.write_text("")
    assert f"no data folder at {file}" in refuse("train", file, *TRAIN)
    file = tmp_path / "images.zip"
    file.write_text("")
    assert f"{file} is compressed, so images in it cannot be read one by one: unpack it" in refuse(
        "train", file, *TRAIN
    )


@pytest.mark.parametrize(("gone", "flags"), [("train", []), ("val", []), (None, ["--val-split", "test"])])
def test_a_split_that_is_not_there(refuse, tmp_path, gone, flags):
    root = write_images(tmp_path / "images")
    if gone:
        shutil.rmtree(root / gone)
    assert (gone or "test") in refuse("train", root, *TRAIN, *flags)


@pytest.mark.parametrize(("less", "more"), [("train", "val"), ("val", "train")])
def test_different_classes_in_the_splits(refuse, tmp_path, less, more):
    root = write_images(tmp_path / "images", classes=("cat", "dog", "emu"))
    shutil.rmtree(root / less / "dog")
    message = refuse("train", root, *TRAIN)
    assert str(root / less) in message
    assert str(root / more) in message
    assert message.endswith(": dog. Add images, or remove these classes")


def test_renamed_class(refuse, tmp_path):
    root = write_images(tmp_path / "images", classes=("cat", "dog"))
    (root / "val" / "dog").rename(root / "val" / "wolf")
    assert "dog" in refuse("train", root, *TRAIN)


@pytest.mark.parametrize("split", ["train", "val"])
def test_undecodable_image_while_training(command, tmp_path, split):
    root = write_images(tmp_path / "images")
    broken = root / split / "dark" / "broken.png"
    broken.write_text("not a picture")
    status, _, lines, written = command(
        # Batches of all images, so that none is left out of the first epoch.
        *("train", root, *TRAIN, "-b", "13" if split == "train" else "12")
    )
    assert status == 2
    assert len(lines) == 1
    assert str(broken) in lines[0]
    assert not [path for path in written if path.is_file()]


def test_an_undecodable_image_leaves_no_empty_folders(command, tmp_path):
    root = write_images(tmp_path / "images")
    (root / "val" / "dark" / "broken.png").write_text("not a picture")
    status, _, _, written = command("train", root, *TRAIN)
    assert status == 2
    assert not written


def test_a_refused_run_leaves_other_runs_alone(command, images, tmp_path):
    root = write_images(tmp_path / "images")
    (root / "val" / "dark" / "broken.png").write_text("not a picture")
    assert command("train", images, *TRAIN, "--experiment", "good")[0] == 0
    kept = {path: path.read_bytes() for path in Path("output/train/good").iterdir()}
    assert kept
    status, _, _, written = command("train", root, *TRAIN, "--experiment", "good")
    assert status == 2
    assert not written
    assert kept == {path: path.read_bytes() for path in Path("output/train/good").iterdir()}


@pytest.mark.parametrize("name", ["broken.png", "broken.jpg"])
def test_truncated_image(command, tmp_path, name):
    root = write_images(tmp_path / "images")
    broken = root / "val" / "light" / name
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(broken)
    assert command("train", root, *TRAIN, "--experiment", "whole")[0] == 0
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    status, _, lines, written = command("train", root, *TRAIN, "--experiment", "cut")
    assert status == 2
    assert len(lines) == 1
    assert str(broken) in lines[0]
    assert not written


def test_undecodable_image_while_validating(command, tmp_path, checkpoint):
    root = write_images(tmp_path / "images")
    broken = root / "val" / "light" / "broken.jpeg"
    broken.write_text("not a picture")
    status, out, lines, written = command("validate", root, "--checkpoint", checkpoint, "-j", "0")
    assert status == 2
    assert str(broken) in lines[-1]
    assert [line for line in lines if "error" in line or "Traceback" in line] == lines[-1:]
    assert not written
    assert not out


def test_undecodable_image_while_plotting(refuse, tmp_path, checkpoint):
    root = write_images(tmp_path / "images")
    (root / "val" / "light" / "broken.png").write_text("not a picture")
    message = refuse("plot", checkpoint, "--data", root, "-j", "0", "-o", tmp_path / "picture.png")
    assert str(root / "val" / "light" / "broken.png") in message


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("kat_tiny_patch16_225", "kat_tiny_patch16_224"),
        ("kat_small_swsh_patch16_224", "kat_small_swish_patch16_224"),
        ("flash_kat_bas_patch16_224", "flash_kat_base_patch16_224"),
        pytest.param("kat_tiny", "kat_tiny_patch16_224"),
    ],
)
def test_unregistered_model(refuse, images, name, nearest):
    message = refuse("train", images, *TRAIN, "--model", name)
    assert repr(name) in message
    assert nearest in message


def test_groups_that_do_not_divide_the_channels(refuse, images):
    kwargs = [f"{key}={value}" for key, value in KWARGS.items()]
    message = refuse("train", images, *TRAIN, "--model-kwargs", *kwargs, "den_groups=3")
    assert "16 channels" in message
    assert "3 groups" in message


def test_unknown_model_argument(refuse, images):
    assert "patchsize" in refuse("train", images, *TRAIN, "--model-kwargs", "patchsize=4")


def test_fewer_outputs_than_classes(refuse, images):
    assert "--num-classes 1" in refuse("train", images, *TRAIN, "--num-classes", "1")


# --- checkpoints ------------------------------------------------------------------------------------------------------

READERS = [
    "validate",
    "plot",
]


@pytest.fixture
def refuse_to_read(refuse, images):
    def run(reader, path, *flags):
        places = {"validate": ["validate", images, "--checkpoint", path], "plot": ["plot", path]}
        return refuse(*places[reader], "-j", "0", *flags)

    return run


@pytest.mark.parametrize("reader", READERS)
def test_missing_checkpoint(refuse_to_read, reader, tmp_path):
    assert f"no checkpoint at {tmp_path / 'last.pth.tar'}" in refuse_to_read(reader, tmp_path / "last.pth.tar")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("reader", READERS)
def test_truncated_checkpoint(refuse_to_read, reader, share, checkpoint, tmp_path):
    path = tmp_path / "cut.pth.tar"
    path.write_bytes(checkpoint.read_bytes()[: int(share * checkpoint.stat().st_size)])
    message = refuse_to_read(reader, path)
    assert str(path) in message
    assert "truncated or damaged" in message


@pytest.mark.parametrize("reader", READERS)
def test_checkpoint_of_another_model(refuse_to_read, reader, checkpoint):
    message = refuse_to_read(reader, checkpoint, "--model", "vit_tiny_patch16_224", *TINY)
    assert "is of another model than vit_tiny_patch16_224" in message
    assert "blocks.0.mlp.act1.denominator" in message


@pytest.mark.parametrize(
    "argv", [["train", "--initial-checkpoint"], ["train", "--pretrained-path"], ["validate", "--checkpoint"]]
)
def test_weights_of_another_size_are_told_as_they_are_in_the_file(refuse, images, tmp_path, argv):
    wider = timm.create_model("kat_tiny_patch16_224", img_size=16, num_classes=2, **{**KWARGS, "embed_dim": 32})
    torch.save(wider.state_dict(), tmp_path / "wider.pth")
    command, flag = argv
    message = refuse(command, images, *KAT, "-j", "0", "-b", "4", flag, tmp_path / "wider.pth")
    assert "is of another model than kat_tiny_patch16_224 as asked for" in message
    assert "pos_embed (1, 17, 32) for (1, 5, 16)" in message


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", ["Dear diary, today I trained a network.\n", "config: ''\ndata_dir: images\n"])
def test_text_file_for_a_checkpoint(refuse_to_read, reader, text, tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text(text)
    assert f"{path} is not a checkpoint" in refuse_to_read(reader, path)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(torch.save, id="zip"),
        pytest.param(lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False), id="legacy"),
        pytest.param(lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2)), id="pickle 2"),
        pytest.param(
            lambda value, path: path.write_bytes(pickle.dumps(value, protocol=4)),
            id="pickle 4",
        ),
    ],
)
def test_checkpoint_that_would_run_code(refuse_to_read, write, tmp_path):
    made, path = tmp_path / "made", tmp_path / "evil.pth"
    write({"state_dict": MakesFile(made)}, path)
    # It does make the file where code is run.
    pickle.loads(pickle.dumps(MakesFile(made)))
    made.unlink()
    assert str(path) in refuse_to_read("plot", path)
    assert not made.exists()


def test_checkpoint_that_would_run_code_is_called_that(refuse_to_read, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    assert "run code" in refuse_to_read("plot", tmp_path / "evil.pth")


@pytest.mark.parametrize("reader", READERS)
def test_whole_modules_are_not_loaded(refuse_to_read, reader, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    assert "run code" in refuse_to_read(reader, tmp_path / "module.pth")


@pytest.mark.parametrize("reader", READERS)
def test_averaged_weights_that_are_not_there(refuse_to_read, reader, checkpoint):
    assert "leave out --use-ema" in refuse_to_read(reader, checkpoint, "--use-ema")


@pytest.mark.parametrize(
    "content",
    [{}, {"state_dict": {}}, {"state_dict": {"weight": 3}}, [torch.ones(2)], {"epoch": 3, "optimizer": {}}],
)
def test_checkpoint_without_weights(refuse_to_read, content, tmp_path):
    torch.save(content, tmp_path / "empty.pth")
    assert "holds no state_dict" in refuse_to_read("plot", tmp_path / "empty.pth")


@pytest.mark.parametrize("reader", READERS)
def test_npz_that_lacks_a_key(refuse_to_read, reader, tmp_path):
    vit = timm.create_model("vit_tiny_patch16_224", img_size=8, num_classes=2, **KWARGS)
    arrays = google_arrays(vit)
    del arrays["Transformer/encoder_norm/bias"]
    np.savez(tmp_path / "vit.npz", **arrays)
    message = refuse_to_read(reader, tmp_path / "vit.npz", "--model", "vit_tiny_patch16_224", *TINY)
    assert f"{tmp_path / 'vit.npz'} is not of one of Google's original ViTs: 1 missing" in message
    assert "Transformer/encoder_norm/bias" in message


@pytest.mark.parametrize("reader", READERS)
def test_partial_loading_of_nothing(refuse_to_read, reader, tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    assert "is of another model" in refuse_to_read(reader, tmp_path / "other.pth", "--partial", *KAT)


# --- export -----------------------------------------------------------------------------------------------------------


def test_export_of_a_checkpoint_of_another_architecture(refuse, vit_checkpoint):
    assert "of a model without rationals" in refuse("export", vit_checkpoint, "-o", "kat.pth")


def test_export_to_an_unknown_format(refuse, checkpoint):
    message = refuse("export", checkpoint, "-o", "kat.pth", "--format", "onnx")
    assert "'onnx'" in message
    assert "flashkat" in message


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("nowhere/kat.pth", "no folder nowhere to write kat.pth to"),
        ("kat.engine", "end it in .onnx, .pt2, .pth, "),
        ("kat.onxn", "end it in .onnx, .pt2, .pth, "),
        ("kat", "end it in .onnx, .pt2, .pth, "),
        ("/dev/null/kat.pth", "no folder /dev/null"),
        ("/proc/kat.pth", "/proc"),
    ],
)
def test_export_that_cannot_be_written(refuse, checkpoint, output, words):
    assert words in refuse("export", checkpoint, "-o", output)


def test_export_to_a_folder_or_over_the_checkpoint(refuse, checkpoint, tmp_path):
    (tmp_path / "kat.pth").mkdir()
    assert "it is a folder" in refuse("export", checkpoint, "-o", tmp_path / "kat.pth")
    before = checkpoint.read_bytes()
    link = tmp_path / "link.pth.tar"
    link.symlink_to(checkpoint)
    for output in (checkpoint, link):
        assert "is the checkpoint itself" in refuse("export", checkpoint, "-o", output)
    assert checkpoint.read_bytes() == before


def test_export_that_fails_halfway(refuse, checkpoint, monkeypatch, tmp_path):
    (tmp_path / "work" / "kat.pth").write_bytes(b"what was there")

    def full(state, file):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert "No space left on device" in refuse("export", checkpoint, "-o", "kat.pth")
    assert (tmp_path / "work" / "kat.pth").read_bytes() == b"what was there"


def test_export_of_no_checkpoint(refuse, checkpoint, tmp_path):
    assert "no checkpoint at" in refuse("export", tmp_path / "no.pth", "-o", "kat.pth")
    assert "leave out --use-ema" in refuse("export", checkpoint, "-o", "kat.pth", "--use-ema")


# --- flops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["kat_tiny_patch16"], "did you mean 'kat_tiny_patch16_224'"),
        (["test_resnet"], "test_resnet is not a Vision Transformer"),
        (["kat_tiny_patch16_224", "--model-kwargs", "den_groups=7"], "7 groups"),
        (["kat_tiny_patch16_224", "--img-size", "0"], "--img-size"),
        (["kat_tiny_patch16_224", "--model-kwargs", "img_size=no"], "img_size is a side in pixels"),
        (["local-dir:nowhere"], "nowhere"),
    ],
)
def test_flops_of_what_cannot_be_made(refuse, argv, words):
    assert words in refuse("flops", *argv)


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--opt-kwargs", "foo=3"], ["--opt sgd with --opt-kwargs foo=3: there is no argument foo"]),
        (["--epohcs", "3"], ["--epohcs", "did you mean --epochs"]),
        (["--modle=x"], ["--modle", "did you mean --model"]),
        (["-b", "13"], ["12 images", "batch of 13", "--batch-size"]),
        (["-b", "0"], ["--batch-size", "at least 1"]),
        (["-b", "many"], ["--batch-size", "'many'"]),
        (["-j", "-1"], ["--workers", "at least 0"]),
        (["--lr", "fast"], ["--lr", "'fast'"]),
        (["--device", "gpu"], ["no device 'gpu'", "cpu, cuda or cuda:N"]),
        (["--device", "cuda:99"], ["no device 'cuda:99'"]),
        (["--mean", "0.5", "0.5"], ["--mean takes 1 or 3 numbers, not 2"]),
        (["--std", "1", "1", "1", "1"], ["--std takes 1 or 3 numbers, not 4"]),
        (["--amp-dtype", "int8"], ["--amp-dtype", "bfloat16"]),
        (["--drop", "3"], ["--drop", "at most 1"]),
        (["--scale", "0.9", "0.1"], ["--scale", "smaller number first, not 0.9 0.1"]),
        (["--ratio", "2", "1"], ["--ratio", "smaller number first"]),
        (["--experiment", ".."], ["--experiment", "'..'"]),
        (["--experiment", "../other"], ["--experiment", "'../other'"]),
        (["--experiment", "/elsewhere"], ["--experiment", "'/elsewhere'"]),
        (["more"], ["unknown argument more"]),
    ],
)
def test_bad_flags(refuse, images, flags, words):
    message = refuse("train", images, *TRAIN, *flags)
    for some in words:
        assert some in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--opt", "adamww"], "no optimiser 'adamww' for --opt: did you mean 'adamw'?"),
        (["--opt", "lookahead_sgdd"], "no optimiser 'lookahead_sgdd' for --opt: did you mean 'sgd'?"),
        (["--sched", "cosin"], "no schedule 'cosin' for --sched: did you mean 'cosine'?"),
        (["--aa", "foo"], "no augmentation 'foo' for --aa: give rand, augmix,"),
        (["--aa", "rand-m9-x3"], "no augmentation 'rand-m9-x3' for --aa: "),
        (["--model", "kat_tinny"], "no model is registered as 'kat_tinny': did you mean 'kat_tiny_patch16_224'?"),
    ],
)
def test_a_name_is_looked_up_before_the_data(refuse, flags, words):
    assert words in refuse("train", "no such folder", *TRAIN, *flags)


def test_missing_and_unknown_commands(refuse):
    assert "COMMAND" in refuse()
    assert "invalid choice: 'tran', did you mean 'train'; flashkat --help" in refuse("tran", "somewhere")
    assert "'train'" in refuse("xyz", "somewhere")
    assert "DIR" in refuse("train")
    assert "digits" in refuse("data", "mnist", "somewhere")


@pytest.mark.parametrize(
    "flags",
    [
        ["--model-kwargs", "depth"],
        ["--model-kwargs", "num_classes=2"],
        ["--interpolation", "sharp"],
        ["--train-interpolation", "sharp"],
        ["--aa", "manual"],
        ["--crop-pct", "0"],
        ["--scale", "0", "0"],
        ["--ratio", "0", "1"],
        ["--color-jitter", "-1"],
        ["--smoothing", "2"],
        ["--mixup", "-1"],
        ["--cutmix", "1", "-b", "3"],
        ["--seed", "-1"],
        ["--seed", "18446744073709551616"],
        ["--device", "meta"],
    ],
    ids=" ".join,
)
def test_values_that_timm_or_torch_cannot_use(refuse, images, flags):
    refuse("train", images, *TRAIN, *flags)


@pytest.mark.parametrize("flags", [["--momentum", "-1"], ["--lr", "-1"]], ids=" ".join)
def test_bad_values_for_a_good_optimiser_are_named(refuse, images, flags):
    assert "no optimiser 'sgd'" not in refuse("train", images, *TRAIN, *flags)


@pytest.mark.parametrize("below", ["", "runs"])
def test_unwritable_output(refuse, images, tmp_path, below):
    file = tmp_path / "results"
    file.write_text("in the way")
    assert f"cannot write to {file / below}" in refuse("train", images, *TRAIN, "--output", file / below)
    assert file.read_text() == "in the way"


# --- other commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["picture.gif", "picture", "picture.png.txt"])
def test_unknown_picture_format(refuse, checkpoint, name):
    message = refuse("plot", checkpoint, "-o", name)
    assert name in message
    assert ".svg" in message


def test_a_missing_checkpoint_goes_before_its_missing_folder(refuse, tmp_path):
    assert "no checkpoint at" in refuse("plot", tmp_path / "nowhere" / "last.pth.tar")


def test_picture_in_a_folder_that_is_not_there(refuse, checkpoint, tmp_path):
    assert f"no folder {tmp_path / 'pictures'}" in refuse("plot", checkpoint, "-o", tmp_path / "pictures" / "a.png")


def test_a_folder_in_place_of_the_picture(refuse, checkpoint, tmp_path):
    (tmp_path / "picture.png").mkdir()
    refuse("plot", checkpoint, "-o", tmp_path / "picture.png")


def test_model_without_rationals(refuse, vit_checkpoint):
    assert "vit_tiny_patch16_224 has no rationals to draw" in refuse("plot", vit_checkpoint)


def test_digits_do_not_overwrite(refuse, tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")
    assert "choose another folder or remove it" in refuse("data", "digits", folder)
    assert "choose another folder or remove it" in refuse("data", "digits", folder / "mine.txt")
    assert "cannot write to" in refuse("data", "digits", folder / "mine.txt" / "digits")
    assert (folder / "mine.txt").read_text() == "precious"


# --- how a command ends -----------------------------------------------------------------------------------------------


def test_interrupt_while_training(command, images, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("flashkat.training.loop.evaluate", interrupt)
    status, out, lines, written = command("train", images, *TRAIN)
    assert status == 130
    assert lines == ["flashkat train: error: interrupted before there was a checkpoint"]
    assert "Train: 1/1" in out
    assert not [path for path in written if path.is_file()]


def test_reader_of_the_output_has_gone(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    try:
        assert main(["doctor"]) == 1
    finally:
        # As Python does at its end, where a failure makes two more lines.
        with contextlib.suppress(BrokenPipeError):
            stream.close()


needs_command = pytest.mark.skipif(not COMMAND.exists(), reason="the command is not installed beside this Python")


@needs_command
def test_a_real_process_refuses(tmp_path):
    done = started(COMMAND, "train", tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"flashkat train: error: no data folder at {tmp_path / 'nowhere'}\n"


@pytest.mark.parametrize(("name", "split"), [("train", "train"), ("validate", "val")])
def test_errors_of_loader_processes(command, checkpoint, tmp_path, name, split):
    """They come by another way."""
    root = write_images(tmp_path / "images")
    broken = root / split / "light" / "broken.png"
    broken.write_text("not a picture")
    flags = {"train": [*TRAIN, "-b", "13"], "validate": ["--checkpoint", checkpoint]}
    status, _, lines, written = command(name, root, *flags[name], "-j", "2")
    assert status == 2
    assert lines[-1].startswith(f"flashkat {name}: error: ")
    assert str(broken) in lines[-1]
    assert len(lines) == 1 or name == "validate"
    assert not [path for path in written if path.is_file()]


@needs_command
@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a group of processes")
def test_real_process_interrupted_with_workers(images, tmp_path):
    command = [COMMAND, "train", images, *TRAIN, "-j", 2, "--epochs", 100000, "--experiment", "long"]
    status, err = interrupted(command, tmp_path)
    assert status == 130
    folder = tmp_path / "output" / "train" / "long"
    # In a hundredth of cases Python adds that a loader process lost its connection.
    line = err.partition("\n")[0]
    newest = line.removeprefix("flashkat train: error: stopped: go on with the same flags and --resume ")
    assert (tmp_path / newest).is_file(), line
    # The files are complete.
    rows = (folder / "summary.csv").read_text().splitlines()
    assert len(rows) >= 3
    assert checkpoints.read(folder / "last.pth.tar")["epoch"] >= len(rows) - 2
    assert not list(folder.glob("*.partial"))


def test_a_package_that_is_not_there_is_named(command, monkeypatch):
    monkeypatch.delitem(sys.modules, "flashkat.tools.flops", raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.flop_counter", None)
    status, _, lines, _ = command("flops", "kat_tiny_patch16_224")
    assert status == 1
    assert len(lines) == 1
    assert "install what it needs with pip install 'flashkat[training]'" in lines[0]


def test_a_module_of_our_own_that_is_missing_is_no_users_error(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashkat.tools.flops", None)
    with pytest.raises(ModuleNotFoundError):
        command("flops", "kat_tiny_patch16_224")


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "name", "printed"),
    [("ascii", "\u732b.json", b"\\u732b.json"), ("utf-8", "\udce9.json", b"\xe9.json")],
)
def test_names_that_an_output_lacks(encoding, name, printed, monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding, errors="strict"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xe9.json"), "utf-8"))
    module._take_any_name()
    assert sys.stdin.read() == "\udce9.json"
    print(name, end="", flush=True)
    assert output.getvalue() == printed


def test_a_program_without_a_standard_output(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["data", "digits", str(tmp_path / "digits")]) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_output_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "flashkat: error: No space left on device\n"
