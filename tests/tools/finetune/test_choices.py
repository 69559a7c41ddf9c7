"""The flags that fine-tuning chooses by the size of the data set, the images and the machine."""

import math
import shlex

import numpy as np
import pytest
import yaml
from parsing import parse
from PIL import Image
from sklearn.datasets import load_digits
from tiny import MODEL_KWARGS

from flashkat.cli.main import main
from flashkat.errors import InputError
from flashkat.tools.finetune import choices
from flashkat.tools.finetune.choices import choose
from flashkat.tools.finetune.pretrained import Start

SCRATCH = Start("scratch", "none", {"model": "kat_tiny_patch16_224"})
KAT = Start("kat", "published", {"model": "kat_tiny_patch16_224.vitft", "pretrained": True})
VIT = Start("vit", "cached", {"model": "kat_tiny_gelu_patch16_224", "initial_checkpoint": "vit.safetensors"})


@pytest.fixture
def start_from(monkeypatch):
    def choose_start(start):
        monkeypatch.setattr(choices, "find_start", lambda size, given: start)

    choose_start(SCRATCH)
    return choose_start


@pytest.fixture
def count_as(monkeypatch):
    """Let data sets count as larger ones."""
    return lambda count: monkeypatch.setattr(choices, "image_count", lambda dataset: count)


@pytest.fixture
def flags_of(images, start_from):
    return lambda **given: choose({"data_dir": str(images), "device": "cpu", **given}).flags


def write_class(folder, side, mode="RGB", count=2):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.zeros((side, 2 * side), np.uint8)).convert(mode).save(folder / f"{number}.png")


def test_a_folder_with_splits_is_taken_as_it_is(flags_of):
    assert "val_fraction" not in flags_of()


@pytest.mark.parametrize("below", ["", "train"])
def test_a_folder_without_images_to_evaluate_is_divided(flags_of, tmp_path, below):
    for name in ("cat", "dog"):
        write_class(tmp_path / below / name, 8, count=10)
    assert flags_of(data_dir=str(tmp_path))["val_fraction"] == 0.2
    assert flags_of(data_dir=str(tmp_path), val_fraction=0.5)["val_fraction"] == 0.5


def test_a_named_training_split_is_not_divided(flags_of, tmp_path):
    for name in ("cat", "dog"):
        write_class(tmp_path / "mine" / name, 8, count=10)
    with pytest.raises(InputError, match=r"holds the training images of .*mine, too: name the images to evaluate in"):
        flags_of(data_dir=str(tmp_path), train_split="mine")
    assert "val_fraction" not in flags_of(data_dir=str(tmp_path), train_split="mine", val_split="")
    (tmp_path / "mine").rename(tmp_path / "train")
    assert flags_of(data_dir=str(tmp_path), train_split="train")["val_fraction"] == 0.2


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("LA", 2), ("HSV", 3)])
def test_modes_without_policies_get_none(flags_of, start_from, mode, channels):
    assert "aa" in flags_of()
    assert "aa" not in flags_of(in_chans=channels, input_img_mode=mode)
    start_from(Start("kat", "", {**KAT.flags, "in_chans": channels, "input_img_mode": mode}))
    assert "aa" not in flags_of()


def test_notes_say_what_was_found(images, start_from):
    notes = choose({"data_dir": str(images)}).notes
    assert notes[:2] == ("16 images to train on, 8 to evaluate, 2 classes, 8 pixels on their shorter side", "none")
    assert "--hflip 0" in notes[2]
    assert len(choose({"data_dir": str(images), "hflip": 0.0}).notes) == 2


def test_grey_images_keep_their_colours(flags_of, tmp_path):
    for name in ("cat", "dog"):
        write_class(tmp_path / "train" / name, 8, mode="L")
        write_class(tmp_path / "val" / name, 8, mode="L")
    grey = flags_of(data_dir=str(tmp_path))
    assert (grey["color_jitter"], "aa" in grey) == (0.0, False)
    coloured = flags_of()
    assert ("color_jitter" in coloured, coloured["aa"]) == (False, "rand-m9-mstd0.5-inc1")


def test_one_class_is_refused(flags_of, tmp_path):
    for split in ("train", "val"):
        write_class(tmp_path / split / "cat", 8)
    with pytest.raises(InputError, match="has one class, cat: give a folder of two or more classes"):
        flags_of(data_dir=str(tmp_path))


def test_splits_of_other_classes_are_refused(flags_of, tmp_path):
    for split, name in (("train", "dog"), ("val", "wolf")):
        write_class(tmp_path / split / "cat", 8)
        write_class(tmp_path / split / name, 8)
    with pytest.raises(InputError, match="dog"):
        flags_of(data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("side", "size", "patch"), [(8, 16, 4), (28, 32, 4), (64, 64, 8), (96, 96, 8), (130, 144, 16), (500, 224, 16)]
)
def test_from_scratch_the_model_takes_the_size_of_the_images(flags_of, tmp_path, side, size, patch):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            write_class(tmp_path / split / name, side, count=1)
    flags = flags_of(data_dir=str(tmp_path))
    assert (flags["img_size"], flags["model_kwargs"]["patch_size"]) == (size, patch)
    assert size % patch == 0


@pytest.mark.parametrize(
    ("given", "patch"),
    [
        ({"img_size": 30}, 5),
        ({"img_size": 36}, 4),
        ({"img_size": 100}, 10),
        ({"img_size": 31}, 4),
        ({"input_size": [3, 30, 50]}, 10),
        ({"img_size": 30, "model_kwargs": {"patch_size": 4}}, 4),
    ],
)
def test_from_scratch_patches_divide_the_size_that_is_given(flags_of, given, patch):
    assert flags_of(**given)["model_kwargs"]["patch_size"] == patch


@pytest.mark.parametrize(
    ("start", "patch", "expected"),
    [
        (SCRATCH, 14, {"img_size": 14}),
        (SCRATCH, 32, {"img_size": 32}),
        (KAT, 32, {"img_size": 128}),
        (Start("kat", "", {**KAT.flags, "img_size": 32}), 5, {"img_size": 30}),
        (Start("kat", "", {**KAT.flags, "img_size": 32}), [4, 6], {"img_size": 36}),
        (Start("kat", "", {**KAT.flags, "input_size": [1, 32, 64]}), [5, 8], {"input_size": [1, 30, 64]}),
    ],
)
def test_the_size_that_is_chosen_divides_into_given_patches(images, start_from, start, patch, expected):
    start_from(start)
    plan = choose({"data_dir": str(images), "device": "cpu", "model_kwargs": {"patch_size": patch}})
    assert expected.items() <= plan.flags.items()
    assert any("is rounded to whole patches of" in line for line in plan.notes)


@pytest.mark.parametrize("more", [{"patch_size": "four"}, {"patch_size": 5, "dynamic_img_pad": True}])
def test_the_size_stays_where_patches_do_not_limit_it(flags_of, more):
    assert flags_of(model_kwargs=more)["img_size"] == 16


def test_few_images_train_a_small_model_from_scratch(flags_of, count_as):
    assert flags_of()["model_kwargs"] == {"patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 4}
    assert flags_of(model_kwargs={"depth": 2})["model_kwargs"]["depth"] == 2
    assert flags_of(model="kat_base_patch16_224")["model_kwargs"] == {"patch_size": 4}
    count_as(50_000)
    assert flags_of()["model_kwargs"] == {"patch_size": 4}


@pytest.mark.parametrize(
    ("given", "width", "heads"),
    [
        ({"num_heads": 2}, 64, 2),
        ({"num_heads": 3}, 72, 3),
        ({"num_heads": 5}, 80, 5),
        ({"embed_dim": 72}, 72, 4),
        ({"embed_dim": 30, "num_groups": 1}, 30, 2),
    ],
)
def test_the_small_model_has_a_width_that_its_heads_divide(flags_of, given, width, heads):
    kwargs = flags_of(model_kwargs=given)["model_kwargs"]
    assert (kwargs["embed_dim"], kwargs["num_heads"]) == (width, heads)


def test_another_kind_of_model_takes_no_patches(flags_of, start_from):
    start_from(Start("scratch", "none", {"model": "test_resnet"}))
    assert "model_kwargs" not in flags_of(model="test_resnet")


def test_pretrained_models_keep_their_size_but_for_small_images_on_a_cpu(images, start_from, monkeypatch):
    start_from(KAT)
    given = {"data_dir": str(images)}
    monkeypatch.setattr(choices, "resolve_device", lambda name: choices.torch.device("cuda"))
    monkeypatch.setattr(choices.torch.cuda, "is_bf16_supported", lambda: True)
    on_gpu = choose(given).flags
    assert ("img_size" in on_gpu, on_gpu["amp"]) == (False, True)
    monkeypatch.setattr(choices, "resolve_device", lambda name: choices.torch.device("cpu"))
    on_cpu = choose(given).flags
    assert (on_cpu["img_size"], "amp" in on_cpu) == (112, False)


def test_a_size_that_a_file_states_stays(flags_of, start_from):
    start_from(Start("kat", "", {"model": "kat_tiny_patch16_224", "img_size": 48}))
    assert flags_of()["img_size"] == 48


def test_an_oblong_size_that_a_file_states_stays(flags_of, start_from):
    start_from(Start("kat", "", {"model": "kat_tiny_patch16_224", "in_chans": 1, "input_size": [1, 32, 64]}))
    flags = flags_of()
    assert (flags["input_size"], "img_size" in flags) == ([1, 32, 64], False)
    flags = flags_of(img_size=48)
    assert (flags["img_size"], flags["in_chans"], "input_size" in flags) == (48, 1, False)


def test_lower_layers_of_a_pretrained_model_learn_less(flags_of, start_from):
    assert "layer_decay" not in flags_of()
    start_from(KAT)
    of_kat = flags_of()
    start_from(VIT)
    assert of_kat["layer_decay"] < flags_of()["layer_decay"] < 1


@pytest.mark.parametrize("start", [SCRATCH, KAT, Start("kat", "", {"model": "kat_tiny_patch16_224", "img_size": 48})])
def test_a_given_input_size_is_the_size(flags_of, start_from, start):
    start_from(start)
    flags = flags_of(input_size=[3, 224, 224])
    assert (flags["input_size"], "img_size" in flags) == ([3, 224, 224], False)
    if start is SCRATCH:
        assert flags["model_kwargs"]["patch_size"] == 16


@pytest.mark.parametrize("start", [SCRATCH, KAT])
def test_more_images_make_fewer_epochs_of_larger_batches(flags_of, count_as, start_from, start):
    start_from(start)
    found = []
    for count in (1, 5, 100, 3_000, 10_000, 100_000, 10**7):
        count_as(count)
        flags = flags_of()
        assert flags["batch_size"] <= count
        assert math.log2(flags["batch_size"]).is_integer()
        assert 1 <= flags["warmup_epochs"] < flags["epochs"]
        found.append((flags["epochs"], flags["batch_size"], flags["lr"]))
    assert [epochs for epochs, _, _ in found] == sorted((epochs for epochs, _, _ in found), reverse=True)
    assert [batch for _, batch, _ in found] == [1, 4, 4, 128, 128, 128, 128]
    assert [rate for _, _, rate in found] == sorted(rate for _, _, rate in found)


def test_more_images_allow_more_augmentation(flags_of, count_as, tmp_path):
    found = []
    for name in ("cat", "dog"):
        write_class(tmp_path / "train" / name, 130, count=1)
        write_class(tmp_path / "val" / name, 130, count=1)
    for count in (100, 10_000, 1_000_000):
        count_as(count)
        flags = flags_of(data_dir=str(tmp_path))
        assert "crop_pct" not in flags
        found.append((flags.get("scale"), flags.get("mixup"), flags.get("cutmix")))
    assert found == [([0.5, 1.0], None, None), ([0.25, 1.0], 0.2, 1.0), (None, 0.2, 1.0)]


@pytest.mark.parametrize("given", [{"batch_size": 5}, {"aug_splits": 3}])
def test_batches_that_cannot_be_mixed_are_not(images, start_from, count_as, given):
    count_as(10_000)
    folder = {"data_dir": str(images), "device": "cpu"}
    assert {"mixup", "cutmix"} <= choose({**folder, "batch_size": 6}).flags.keys()
    plan = choose({**folder, **given})
    assert not {"mixup", "cutmix"} & plan.flags.keys()
    assert any("Images are not mixed" in line for line in plan.notes)


def test_small_images_are_seen_nearly_whole(flags_of, start_from):
    for start in (SCRATCH, KAT):
        start_from(start)
        flags = flags_of()
        assert (flags["crop_pct"], flags["scale"]) == (1.0, [0.7, 1.0])


def test_processes_share_a_batch(flags_of, count_as, monkeypatch):
    count_as(10_000)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert flags_of()["batch_size"] == 32
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert flags_of()["batch_size"] == 20  # mixup pairs up the images of each process


@pytest.mark.parametrize(("epochs", "warmup"), [(0, 0), (1, 0), (2, 1), (5, 1), (40, 4)])
def test_the_warm_up_fits_the_epochs_that_are_given(flags_of, epochs, warmup):
    assert flags_of(epochs=epochs)["warmup_epochs"] == warmup


def test_the_rate_fits_the_batch_that_is_given(flags_of, monkeypatch):
    assert flags_of(batch_size=128)["lr"] == 2e-3
    assert flags_of(batch_size=32)["lr"] == 1e-3
    monkeypatch.setattr(choices, "launched_processes", lambda: 4)
    assert flags_of(batch_size=32)["lr"] == 2e-3
    assert flags_of(batch_size=32, lr=0.5)["lr"] == 0.5


def test_given_flags_stay(flags_of):
    given = {"epochs": 3, "lr": 1.0, "img_size": 8, "workers": 0, "model": "kat_small_patch16_224", "seed": 7}
    flags = flags_of(**given)
    assert given.items() <= flags.items()


def test_data_sets_by_name_have_splits(flags_of, monkeypatch):
    monkeypatch.setattr(choices, "open_dataset", lambda data, split, **more: Named(split))
    flags = flags_of(data_dir="data", dataset="torch/cifar10")
    assert "val_fraction" not in flags
    assert flags["img_size"] == 224


class Named:
    def __init__(self, split):
        self.source, self.classes = split, ["cat", "dog"]

    def __len__(self):
        return 10


# --- the command ------------------------------------------------------------------------------------------------------

TINY = ["--img-size", "8", *MODEL_KWARGS, "--epochs", "1", "-j", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Fifteen images of each of two digits, in class folders without splits."""
    folder, data = tmp_path_factory.mktemp("digits"), load_digits(n_class=2)
    for name in (0, 1):
        (folder / str(name)).mkdir()
        for number, pixels in enumerate(data.images[data.target == name][:15]):
            Image.fromarray((pixels * 15).astype(np.uint8)).save(folder / str(name) / f"{number}.png")
    return folder


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, no_curves):
    """Runs flashkat finetune in an empty folder, and returns status, output and notes."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        status = main(["finetune", *map(str, argv)])
        return status, *capsys.readouterr()

    return run


def test_a_folder_of_digits_is_fine_tuned(command, digits, tmp_path):
    status, out, notes = command(digits, *TINY)
    assert status == 0
    assert "24 images to train on, 6 to evaluate, 2 classes, grey, 8 pixels" in notes
    printed = shlex.split(out.splitlines()[0])
    assert printed[:3] == ["flashkat", "train", str(digits)]
    args = parse("train", *printed[2:])
    assert (args.val_fraction, args.epochs, args.img_size, args.opt, args.color_jitter) == (0.2, 1, 8, "adamw", 0)
    (folder,) = (tmp_path / "output" / "train").iterdir()
    kept = yaml.safe_load((folder / "args.yaml").read_text())
    assert kept == {**vars(args), **{name: kept[name] for name in ("num_classes",)}}

    status, out, notes = command(digits, "--from", folder / "last.pth.tar", *TINY[-4:], "--epochs", 2, "--dry-run")
    assert status == 0
    assert f"--initial-checkpoint {folder / 'last.pth.tar'}" in out
    assert "--img-size 8 --crop-pct 1 --model kat_tiny_patch16_224" in out
    assert "of a KAT (kat_tiny_patch16_224)" in notes
    assert [each.name for each in (tmp_path / "output" / "train").iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere"], "no data folder at nowhere"),
        (["DIGITS", "--from", "no.pth"], "no checkpoint at no.pth"),
        (["DIGITS", "--device", "cuda:99"], "no device 'cuda:99'"),
        (["DIGITS", "--dry-run", "--val-split", "test"], "no folder named train"),
    ],
)
def test_what_cannot_be_fine_tuned(command, digits, argv, words):
    status, out, error = command(*(digits if word == "DIGITS" else word for word in argv))
    assert (status, out) == (2, "")
    assert error.startswith("flashkat finetune: error: ")
    assert error.count("\n") == 1
    assert words in error


def test_one_process_of_several_prints(command, digits, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert command(digits, *TINY, "--dry-run") == (0, "", "")
