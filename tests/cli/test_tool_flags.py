"""The flags of ``flashkat plot``, ``inspect``, ``export`` and ``flops``."""

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


def test_export_writes_kats_names():
    args = parse("export", "last.pth.tar", "-o", "kat.pth")
    assert (args.checkpoint, args.output, args.format, args.use_ema) == ("last.pth.tar", "kat.pth", "kat", False)


def test_export_needs_a_name_to_write(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("export", "last.pth.tar")
    assert stopped.value.code == 2
    assert "-o/--output" in capsys.readouterr().err


def test_flops_takes_what_shapes_a_model():
    args = parse("flops", "kat_tiny_patch16_224", "--img-size", 32, "--num-classes", 5, "--model-kwargs", "m=5")
    assert (args.model, args.img_size, args.num_classes, args.model_kwargs) == ("kat_tiny_patch16_224", 32, 5, {"m": 5})
    assert not args.json
