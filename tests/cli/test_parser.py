import argparse
import os

import pytest
import torch

from flashkat.cli.main import main
from flashkat.cli.parser import Parser
from flashkat.cli.tool_flags import add_plot_arguments
from flashkat.cli.train_flags import add_training_arguments
from flashkat.cli.validate_flags import add_validation_arguments
from flashkat.errors import InputError
from flashkat.system.device import resolve_device

GROUPS = {"train": add_training_arguments, "validate": add_validation_arguments, "plot": add_plot_arguments}


def parser_of(command):
    parser = Parser(prog=f"flashkat {command}")
    GROUPS[command](parser)
    return parser


def parse(command, *argv):
    return parser_of(command).parse_args([str(argument) for argument in argv])


def long_flags(command):
    return [
        option
        for action in parser_of(command)._actions
        for option in action.option_strings
        if option.startswith("--") and option != "--help" and "_" not in option
    ]


# timm's train.py and validate.py have these defaults; those that differ are named in the help.
TIMM_DEFAULTS = {
    "batch_size": 128,
    "img_size": None,
    "crop_pct": None,
    "interpolation": None,
    "mean": None,
    "std": None,
    "train_split": "train",
    "num_classes": None,
    "model_kwargs": {},
    "drop": 0.0,
    "drop_path": None,
    "smoothing": 0.1,
    "mixup": 0.0,
    "cutmix": 0.0,
    "grad_checkpointing": False,
    "opt": "sgd",
    "momentum": 0.9,
    "weight_decay": 2e-5,
    "clip_grad": None,
    "lr": None,
    "lr_base": 0.1,
    "epochs": 300,
    "sched": "cosine",
    "warmup_epochs": 5,
    "warmup_lr": 1e-5,
    "min_lr": 0.0,
    "sched_on_updates": False,
    "no_aug": False,
    "scale": [0.08, 1.0],
    "ratio": [3 / 4, 4 / 3],
    "hflip": 0.5,
    "vflip": 0.0,
    "color_jitter": 0.4,
    "aa": None,
    "reprob": 0.0,
    "remode": "pixel",
    "train_interpolation": "random",
    "model_ema": False,
    "model_ema_decay": 0.9998,
    "model_ema_warmup": False,
    "amp": False,
    "seed": 42,
    "log_interval": 50,
    "experiment": "",
}


@pytest.mark.parametrize("name", TIMM_DEFAULTS)
def test_defaults_are_timms(name):
    assert getattr(parse("train", "data"), name) == TIMM_DEFAULTS[name]


def test_no_more_loader_processes_than_cores():
    assert parse("train", "data").workers == min(4, os.cpu_count() or 1)


def test_defaults_of_evaluation():
    for command in ("validate", "plot"):
        args = parse(command, "data")
        # Left open, for the checkpoint to say.
        assert args.model is None
        assert args.num_classes is None
        assert args.model_kwargs == {}
        assert args.batch_size == 256
        assert not args.use_ema
    assert parse("validate", "data").log_freq == 10


def test_values():
    args = parse(
        "train",
        *("data", "-b", 16, "-j", 0, "--mean", 0.1, 0.2, 0.3, "--scale", 0.5, 1, "--device", "cpu"),
        *("--model-kwargs", "m=5", "act_init=gelu", "init_values=1e-4", "class_token=False"),
    )
    assert args.data_dir == "data"
    assert (args.batch_size, args.workers) == (16, 0)
    assert args.mean == [0.1, 0.2, 0.3]
    assert args.scale == [0.5, 1.0]
    assert args.model_kwargs == {"m": 5, "act_init": "gelu", "init_values": 1e-4, "class_token": False}


def test_values_as_timms_scripts_take_them():
    args = parse("train", "data", "--interpolation", "", "--aug-repeats", "3.0")
    assert args.interpolation == ""
    assert (args.aug_repeats, type(args.aug_repeats)) == (3, int)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("none", "none")])
def test_words_for_truth(text, value):
    assert parse("train", "data", "--model-kwargs", f"class_token={text}").model_kwargs == {"class_token": value}


def test_pairs_in_quotes_are_refused(capsys):
    for text in ("m=4 n=2", "m=4,n=2"):
        with pytest.raises(SystemExit):
            parse("train", "data", "--model-kwargs", text)
        assert f"takes KEY=VALUE pairs with spaces between them and no quotes around all, not {text!r}" in (
            capsys.readouterr().err
        )


def test_parsing_twice_does_not_share_values():
    parse("train", "data", "--model-kwargs", "m=5")
    assert parse("train", "data").model_kwargs == {}


@pytest.mark.parametrize("command", ["train", "validate", "plot"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for flag in long_flags(command):
        assert flag in out
    assert all(action.help for action in parser_of(command)._actions)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["data", "-b", "0"], ["-b/--batch-size", "at least 1, not 0"]),
        (["data", "-b", "1.5"], ["-b/--batch-size", "whole number", "1.5"]),
        (["data", "--aug-repeats", "2.5"], ["--aug-repeats", "whole number", "2.5"]),
        (["data", "-j", "-2"], ["-j/--workers", "at least 0 and at most 1024, not -2"]),
        (["data", "-j", "65536"], ["-j/--workers", "at least 0 and at most 1024, not 65536"]),
        (["data", "-b", "1" + "0" * 30], ["-b/--batch-size", "at least 1 and at most 2.14748e+09"]),
        (["data", "--smoothing", "1"], ["--smoothing", "at least 0 and less than 1, not 1"]),
        (["data", "--epochs", "0"], ["--epochs", "at least 1"]),
        (["data", "--img-size", "big"], ["--img-size", "'big'"]),
        (["data", "--scale", "0.5"], ["--scale", "2"]),
        (["data", "--amp-dtype", "float8"], ["--amp-dtype", "float8"]),
        (["data", "--mean", "0.5,0.5,0.5"], ["--mean", "spaces between them, not '0.5,0.5,0.5'"]),
        (["data", "--mean", "0", "nan"], ["--mean", "finite, not nan"]),
        (["data", "--std", "inf"], ["--std", "more than 0, not inf"]),
        (["data", "--lr", "inf"], ["--lr", "more than 0, not inf"]),
        (["data", "--remode", "zz"], ["--remode", "'zz'", "const"]),
        (["data", "--interpolation", "random"], ["--interpolation", "'random'", "bicubic"]),
        (["data", "--train-interpolation", "sharp"], ["--train-interpolation", "'sharp'", "random"]),
        ([], ["DIR"]),
    ],
)
def test_errors_are_one_line(argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("train", *argv)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("flashkat train: error: ")
    assert captured.err.endswith("; flashkat train --help lists the flags\n")
    for some in words:
        assert some in captured.err


def typing_error(command, *argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "data", *argv])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("flag", [flag for flag in long_flags("train") if len(flag) >= 8])
def test_two_letters_swapped(flag, capsys):
    middle = len(flag) // 2 + 1
    typo = flag[:middle] + flag[middle + 1] + flag[middle] + flag[middle + 2 :]
    if typo == flag:
        pytest.skip("the two letters are the same")
    err = typing_error("train", typo, capsys=capsys)
    assert f"unknown argument {typo}, did you mean {flag};" in err


def test_typo_with_its_value(capsys):
    err = typing_error("validate", "--bacth-size=4", capsys=capsys)
    assert "unknown argument --bacth-size=4, did you mean --batch-size;" in err


def test_nothing_near(capsys):
    err = typing_error("train", "--qqqq", capsys=capsys)
    assert "unknown argument --qqqq;" in err
    assert "did you mean" not in err


@pytest.mark.parametrize(("command", "typo"), [("train", "--comand"), ("train", "--data-dri"), ("validate", "--lr")])
def test_only_flags_are_suggested(command, typo, capsys):
    err = typing_error(command, typo, capsys=capsys)
    suggestion = err.partition("did you mean ")[2].partition(";")[0]
    assert not suggestion or suggestion in long_flags(command)


def test_unknown_flag_of_a_subcommand_points_to_its_help(capsys):
    assert "flashkat train --help" in typing_error("train", "--epohcs", "3", capsys=capsys)


def test_device():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_default_device_is_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(None) == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(None) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:cpu", "xpu"])
def test_device_that_is_not_there(name):
    with pytest.raises(InputError, match=f"no device '{name}' here: .*cpu, cuda or cuda:N"):
        resolve_device(name)


def test_groups_do_not_collide():
    """A flag added twice to one command makes argparse raise."""
    for command in GROUPS:
        assert isinstance(parse(command, "data"), argparse.Namespace)


def test_abbreviations_are_refused(capsys):
    assert "unknown argument --epoch, did you mean --epochs" in typing_error("train", "--epoch", "2", capsys=capsys)
