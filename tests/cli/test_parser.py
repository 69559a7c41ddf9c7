"""Errors of one line, suggestions, values, and files of flags."""

import argparse
import re
import shlex

import pytest
import yaml
from parsing import long_flags, parse, parser_of

from flashkat.cli.main import main


def typing_error(command, *argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "data", *argv])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


# --- files of flags ---------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    def write(**values):
        (tmp_path / "flags.yaml").write_text(yaml.safe_dump(values))
        return tmp_path / "flags.yaml"

    return write


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
    actions = parser_of(command)._actions
    hidden = {name for action in actions if action.help == argparse.SUPPRESS for name in action.option_strings}
    for flag in long_flags(command):
        assert (re.search(rf"{flag}\b(?!-)", out) is not None) != (flag in hidden), flag
    assert bool(hidden) == (command == "plot")
    assert all(action.help for action in parser_of(command)._actions)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["data", "-b", "0"], ["-b/--batch-size", "at least 1, not 0"]),
        (["data", "-b", "1.5"], ["-b/--batch-size", "whole number", "1.5"]),
        (["data", "--aug-repeats", "2.5"], ["--aug-repeats", "whole number", "2.5"]),
        (["data", "-j", "-2"], ["-j/--workers", "at least 0 and at most 1024, not -2"]),
        (["data", "--loader-timeout", "1e300"], ["--loader-timeout", "at least 0 and at most 1e+09, not 1e300"]),
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


def test_abbreviations_are_refused(capsys):
    assert "unknown argument --epoch, did you mean --epochs" in typing_error("train", "--epoch", "2", capsys=capsys)


def test_values_of_a_file(config):
    path = config(
        **{"data_dir": "images", "batch-size": 16, "lr": "1e-3", "mean": [0.1, 0.2, 0.3], "model_ema": True},
        **{"model_kwargs": {"m": 5, "act_init": "gelu"}, "aa": None, "torchcompile": "aot_eager", "scale": [0.5, 1]},
    )
    args = parse("train", "-c", path)
    assert (args.data_dir, args.batch_size, args.lr, args.mean) == ("images", 16, 1e-3, [0.1, 0.2, 0.3])
    assert args.model_ema is True
    assert args.model_kwargs == {"m": 5, "act_init": "gelu"}
    assert (args.torchcompile, args.scale, args.aa, args.epochs) == ("aot_eager", [0.5, 1.0], None, 300)


def test_empty_pairs_of_a_file_are_none(config):
    args = parse("train", "data", "-c", config(model_kwargs=None, opt_kwargs=None))
    assert (args.model_kwargs, args.opt_kwargs) == ({}, {})


def test_typed_flags_win(config):
    path = config(data_dir="images", batch_size=16, epochs=3)
    args = parse("train", "typed", "--config", path, "-b", 8)
    assert (args.data_dir, args.batch_size, args.epochs) == ("typed", 8, 3)


@pytest.mark.parametrize(
    ("values", "typed", "expected"),
    [
        ({"torchcompile": "inductor"}, [], ("inductor", False)),
        ({"torchcompile": "inductor"}, ["--no-compile"], (None, True)),
        ({"no_compile": True}, [], (None, True)),
        ({"no_compile": True}, ["--torchcompile", "eager"], ("eager", False)),
    ],
)
def test_typed_flags_win_over_those_that_contradict_them(config, values, typed, expected):
    args = parse("train", "data", "-c", config(**values), *typed)
    assert (args.torchcompile, args.no_compile) == expected


def test_a_runs_own_arguments_are_such_a_file(config):
    args = parse("train", "data", "--opt-betas", 0.9, 0.95, "--lr-noise", 0.4, "--input-size", 3, 8, 8, "--amp")
    again = vars(parse("train", "-c", config(**vars(args))))
    assert {**again, "config": ""} == vars(args)


def test_timms_own_arguments_are_such_a_file(config):
    timms = {"data": "images", "data_dir": None, "dataset": "", "torchscript": False, "fuser": "", "amp_impl": "native"}
    timms |= {"bn_momentum": None, "drop_block": None, "split_bn": False, "naflex_loader": False, "local_rank": 0}
    timms |= {"naflex_max_seq_len": 576, "decay_epochs": 90, "amp_dtype": "float16", "color_jitter": 0.4}
    timms |= {"interpolation": "", "aug_repeats": 3.0}
    args = parse("train", "-c", config(**timms))
    assert args.data_dir == "images"
    assert args.amp_dtype == "float16"
    assert not args.interpolation
    assert args.aug_repeats == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epohcs": 3}, ["unknown epohcs", "did you mean epochs"]),
        ({"epochs": 0}, ["epochs in", "at least 1"]),
        ({"epochs": "many"}, ["epochs in", "many"]),
        ({"amp": "yes"}, ["amp in", "true or false"]),
        ({"mean": "grey"}, ["mean in", "grey"]),
        ({"scale": [1]}, ["scale in", "2 values"]),
        ({"model_kwargs": ["m=5"]}, ["names and values"]),
        ({"model_kwargs": {"img_size": 0}}, ["model_kwargs in", "img_size has to be"]),
        ({"remode": "zz"}, ["remode in", "const", "'zz'"]),
        ({"torchscript": True}, ["left out here"]),
    ],
)
def test_mistakes_in_a_file(config, values, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("train", "data", "-c", config(**values))
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


@pytest.mark.parametrize(("text", "words"), [(None, "cannot read"), ("a: [", "is not YAML"), ("text", "NAME: VALUE")])
def test_a_file_that_is_none(tmp_path, text, words, capsys):
    if text is not None:
        (tmp_path / "flags.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        parse("train", "data", "-c", tmp_path / "flags.yaml")
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def doubled(key):
    """A list that names the one before it ten times, and so on."""
    lines = [f"- &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]" for number in range(1, 9)]
    return "\n".join([f"{key}:", "- &a0 [1]", *lines])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *((doubled(key), "more than 10,000 values") for key in ("model", "opt_kwargs", "model_kwargs", "mean")),
        ("model_kwargs: &a {depth: *a}", "in themselves"),
        ("a: " + "[" * 5000 + "]" * 5000, "is not YAML: maximum recursion depth"),
        ("epochs: " + "9" * 5000, "is not YAML: Exceeds the limit"),
        ("epochs: 0x" + "f" * 5000, "a number of 20,000 bits"),
        ("#" * 10**6, "more than 100,000 characters"),
    ],
)
def test_a_file_that_is_small_and_means_much(tmp_path, text, words, capsys):
    (tmp_path / "flags.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        parse("train", "data", "-c", tmp_path / "flags.yaml")
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert words in err


def test_a_file_without_an_end(capsys):
    with pytest.raises(SystemExit):
        parse("train", "data", "-c", "/dev/zero")
    assert "more than 100,000 characters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "size"),
    [
        (["--model-kwargs", "img_size=64", "m=5"], 64),
        (["--img-size", 32, "--model-kwargs", "img_size=64", "m=5"], 64),
        (["--model-kwargs", "img_size=64", "m=5", "--img-size", 32], 32),
    ],
)
def test_the_image_size_among_the_models_arguments_is_the_flag(argv, size):
    args = parse("train", "data", *argv)
    assert (args.img_size, args.model_kwargs) == (size, {"m": 5})


@pytest.mark.parametrize(("flag", "size"), [({}, 64), ({"img_size": None}, 64), ({"img_size": 32}, 32)])
def test_the_image_size_among_the_models_arguments_of_a_file(config, flag, size):
    args = parse("train", "data", "-c", config(**flag, model_kwargs={"img_size": 64, "m": 5}))
    assert (args.img_size, args.model_kwargs) == (size, {"m": 5})


@pytest.mark.parametrize("command", ["train", "validate", "plot"])
def test_help_begins_with_three_examples_that_can_be_read(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: flashkat {command} ")
    start = lines.index("examples:")
    assert start == 2
    for line in lines[start + 1 : start + 4]:
        program, name, *argv = shlex.split(line.rpartition("&& ")[2])
        assert (program, name) == ("flashkat", command)
        parse(command, *argv)


def test_help_of_training_lists_its_groups(capsys):
    parser = parser_of("train")
    assert "learning rate" in parser.themes
    listed = " ".join(parser.format_help().partition("in this order:")[2].split())
    assert listed.startswith(", ".join(parser.themes))


@pytest.mark.parametrize(
    "argv",
    [
        ["my data", "--epochs", "3", "--lr", "0.0001", "--hflip", "0", "--scale", "0.5", "1"],
        ["data", "--no-pin-mem", "--amp", "--model-ema", "--val-split", "", "--mean", "-0.5", "0.25", "1e-06"],
        ["data", "--model-kwargs", "m=6", "global=avg", "name='6'", "flag=True", "kind='true'", "sizes=[1, 2]"],
        ["data", "--torchcompile", "inductor", "--layer-decay", "0.123456789"],
        ["data", "--no-compile", "--min-lr", "0", "--wandb-tags", "one", "two", "--wandb-resume-id=-x"],
        ["--dataset", "hfds/food101", "--opt-betas", "0.9", "0.99", "--model-kwargs", "key='a=b'"],
    ],
)
def test_typed_values_parse_to_the_same(argv):
    given = vars(parse("finetune", *argv))
    del given["dry_run"]
    words = parser_of("train").typed(given)
    again = vars(parse("finetune", *words))
    assert {name: again.get(name) for name in given} == given
    assert vars(parse("train", *words)) == vars(parse("train", *argv))


def test_what_a_flag_cannot_say_is_not_typed():
    assert parser_of("train").typed({"amp": False, "img_size": None, "config": "flags.yaml", "opt_kwargs": {}}) == []
