"""The flags of ``flashkat plot``, ``export``, ``flops`` and ``finetune``."""

import pytest
from parsing import parse


def test_plot_draws_beside_the_checkpoint_over_a_fixed_range():
    args = parse("plot", "last.pth.tar")
    assert (args.checkpoint, args.output, args.data) == ("last.pth.tar", None, None)


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
