"""The command ``flashkat inspect``."""

import json

import numpy as np
import pytest
import tiny
import torch

from flashkat import checkpoints
from flashkat.cli.main import main
from flashkat.models.create import create_model


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = create_model(tiny.MODEL, img_size=8, num_classes=2, **tiny.KWARGS)
    args = {"model_kwargs": tiny.KWARGS, "img_size": 8, "num_classes": 2}
    path = tmp_path / "run" / "last.pth.tar"
    path.parent.mkdir()
    entries = {"arch": tiny.MODEL, "args": args, "epoch": 6, "state_dict": model.state_dict()}
    checkpoints.write(path, entries)
    checkpoints.write(path.with_name("checkpoint-2.pth.tar"), {**entries, "epoch": 2})
    (path.parent / "summary.csv").write_text("epoch,train_loss\n0,2\n")
    return path


def inspect(*argv):
    return main(["inspect", *(str(argument) for argument in argv), "--device", "cpu", "-j", "0"])


def refused(capsys, *argv):
    assert inspect(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_table(checkpoint, capsys):
    assert inspect(checkpoint) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("layer")
    assert len(lines) == 16
    assert lines[0].split()[:4] == ["blocks.0.mlp.act1", "0", "1", "identity"]
    assert lines[15].split()[:4] == ["blocks.0.mlp.act2", "7", "1", "swish"]
    assert {path.name for path in checkpoint.parent.iterdir()} == {
        "last.pth.tar",
        "checkpoint-2.pth.tar",
        "summary.csv",
    }


def test_json_has_formulas(checkpoint, images, capsys):
    assert inspect(checkpoint, "--data", images, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == tiny.MODEL
    group = found["groups"][9]
    assert (group["layer"], group["group"], group["start"]) == ("blocks.0.mlp.act2", 1, "swish")
    assert 0 < group["inside"] <= 1
    x = np.linspace(-3, 3, 7)
    np.testing.assert_allclose(eval(group["python"], {"x": x}), x / (1 + np.exp(-x)), atol=1e-3)
    assert group["latex"].startswith(r"\frac{")


def test_json_has_null_for_what_is_not_finite(checkpoint, capsys):
    entries = checkpoints.read(checkpoint)
    entries["state_dict"]["blocks.0.mlp.act1.numerator"][0, 1] = torch.nan
    checkpoints.write(checkpoint, entries)
    assert inspect(checkpoint, "--json") == 0
    first = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["groups"][0]
    assert (first["moved"], first["numerator"][1], first["flags"]) == (None, None, ["not finite"])


def test_a_report(checkpoint, images, tmp_path, capsys):
    assert inspect(checkpoint, "--data", images, "--html", tmp_path / "report.html") == 0
    out, err = capsys.readouterr()
    assert out.startswith("layer")
    assert err.splitlines()[-1] == f"The report is {tmp_path / 'report.html'}"
    text = (tmp_path / "report.html").read_text()
    assert '"steps":["after epoch 3","after epoch 7"]' in text
    assert '"curves":{"epoch":[0.0],"train_loss":[2.0]}' in text
    assert text.count('"histograms":[[') == 2


def test_averaged_weights(checkpoint, capsys):
    entries = checkpoints.read(checkpoint)
    average = {name: value * 0.5 for name, value in entries["state_dict"].items()}
    checkpoints.write(checkpoint, {**entries, "state_dict_ema": average})
    assert inspect(checkpoint, "--use-ema") == 0
    assert capsys.readouterr().out.splitlines()[1].split()[2:4] == ["0.5", "identity"]


def test_a_name_of_a_file_that_is_html(checkpoint, tmp_path, capsys):
    odd = checkpoint.rename(checkpoint.with_name("<img src=x onerror=alert(1)>.pth.tar"))
    assert inspect(odd, "--html", tmp_path / "report.html") == 0
    text = (tmp_path / "report.html").read_text()
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;.pth.tar, after epoch 7" in text


def test_bad_input_is_one_line(checkpoint, tmp_path, capsys):
    assert "no checkpoint at" in refused(capsys, tmp_path / "none.pth.tar")
    assert "give --html a name that ends in .html" in refused(capsys, checkpoint, "--html", tmp_path / "report.txt")
    assert "no folder" in refused(capsys, checkpoint, "--html", tmp_path / "none" / "report.html")
    model = create_model("vit_tiny_patch16_224", img_size=8, num_classes=2, **tiny.KWARGS)
    args = {"model_kwargs": tiny.KWARGS, "img_size": 8, "num_classes": 2}
    checkpoints.write(checkpoint, {"arch": "vit_tiny_patch16_224", "args": args, "state_dict": model.state_dict()})
    assert "vit_tiny_patch16_224 has no rationals" in refused(capsys, checkpoint, "--html", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
