"""The flags of the smaller commands."""

import pytest
from parsing import parse, parser_of


def test_plot_draws_beside_the_checkpoint_over_a_fixed_range():
    args = parse("plot", "last.pth.tar")
    assert (args.checkpoint, args.output, args.data, args.animate) == ("last.pth.tar", None, None, False)


def test_inspect_prints_a_table_of_the_functions_alone():
    args = parse("inspect", "last.pth.tar")
    assert (args.checkpoint, args.data, args.html, args.json) == ("last.pth.tar", None, None, False)


@pytest.mark.parametrize("command", ["plot", "inspect"])
def test_help_shows_what_the_functions_depend_on(command):
    shown = parser_of(command).format_help()
    assert "--img-size" in shown
    assert "--interpolation" not in shown
    assert shown.startswith(f"usage: flashkat {command} CHECKPOINT")


def test_export_leaves_the_names_of_weights_to_the_suffix():
    args = parse("export", "last.pth.tar", "-o", "kat.pth")
    assert (args.checkpoint, args.output, args.format, args.use_ema) == ("last.pth.tar", "kat.pth", None, False)
    assert (args.to, args.push_to_hub, args.license) == (None, None, "unknown")


def test_predict_takes_many_images():
    args = parse("predict", "model.onnx", "a.png", "-", "--top", 3, "--csv")
    assert (args.checkpoint, args.images, args.top) == ("model.onnx", ["a.png", "-"], 3)
    assert (args.csv, args.json, args.trust, args.batch_size) == (True, False, False, 32)


def test_predict_writes_one_form(capsys):
    with pytest.raises(SystemExit):
        parse("predict", "model.onnx", "a.png", "--csv", "--json")
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "predict", "plot"])
def test_help_leaves_out_what_a_tool_does_not_need(command, capsys):
    with pytest.raises(SystemExit):
        parse(command, "--help")
    out = capsys.readouterr().out
    assert "--model-kwargs" in out
    assert "--mean" not in out


def test_export_needs_a_name_to_write(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("export", "last.pth.tar")
    assert stopped.value.code == 2
    assert "-o/--output" in capsys.readouterr().err


def test_flops_takes_what_shapes_a_model():
    args = parse("flops", "kat_tiny_patch16_224", "--img-size", 32, "--num-classes", 5, "--model-kwargs", "m=5")
    assert (args.model, args.img_size, args.num_classes, args.model_kwargs) == ("kat_tiny_patch16_224", 32, 5, {"m": 5})
    assert not args.json


def test_fit_takes_a_name_with_flashkats_degrees():
    args = parse("fit", "gelu")
    assert (args.name, args.expr, args.points, args.m, args.n, args.interval) == ("gelu", None, None, 6, 4, None)
    assert (args.method, args.tail_weight, args.max_error) == ("least-squares", 0, None)
    assert (args.json, args.output, args.plot) == (False, None, None)


def test_fit_takes_negative_numbers_and_draws_to_a_name_of_its_own():
    args = parse("fit", "--expr", "x*sin(x)", "--interval", "-3.5", "-1", "-m", "5", "-n", "0", "--plot")
    assert (args.name, args.expr, args.interval) == (None, "x*sin(x)", [-3.5, -1])
    assert (args.m, args.n, args.plot) == (5, 0, "fit.png")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-m", "0"], "at least 1 and at most 16"),
        (["-n", "17"], "at most 16"),
        (["--interval", "1"], "expected 2 arguments"),
        (["--interval", "nan", "1"], "must be finite"),
        (["--method", "lawson"], "minimax"),
        (["--tail-weight", "-1"], "at least 0"),
        (["--max-error", "0"], "more than 0"),
    ],
)
def test_fit_refuses_numbers_out_of_bounds(flags, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("fit", "gelu", *flags)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_finetune_returns_the_flags_that_were_given():
    given = vars(parse("finetune", "data", "--epochs", 3, "--opt-kwargs", "fused=False", "--no-pin-mem"))
    assert given == {
        **{"data_dir": "data", "dry_run": False, "epochs": 3, "opt_kwargs": {"fused": False}, "pin_mem": False}
    }
    assert vars(parse("finetune", "--dataset", "hfds/food101", "--dry-run")) == {
        "dataset": "hfds/food101",
        "dry_run": True,
    }


def test_finetune_takes_weights_and_a_file_of_flags(tmp_path):
    (tmp_path / "flags.yaml").write_text("epochs: 7\nlr: null\n")
    given = vars(parse("finetune", "data", "--from", "kat.pth", "-c", tmp_path / "flags.yaml"))
    assert (given["initial_checkpoint"], given["epochs"], given["lr"]) == ("kat.pth", 7, None)


def test_help_of_finetune_shows_its_own_flags(capsys):
    with pytest.raises(SystemExit):
        parse("finetune", "--help")
    out = capsys.readouterr().out
    assert "--from CHECKPOINT" in out
    assert "--dry-run" in out
    assert "--clip-grad" not in out
