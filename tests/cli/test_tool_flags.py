"""The flags of ``flashkat plot``, ``export``, ``predict`` and ``flops``."""

import pytest
from parsing import parse


def test_plot_draws_beside_the_checkpoint_over_a_fixed_range():
    args = parse("plot", "last.pth.tar")
    assert (args.checkpoint, args.output, args.data) == ("last.pth.tar", None, None)


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
