"""``flashkat.export`` and the command: by the suffix, compared with the model, without the file where they differ."""

import pytest
import torch
from torch import nn

import flashkat
from flashkat.cli.main import main
from flashkat.errors import InputError
from flashkat.tools.export import write
from flashkat.tools.export.program import load_package, read_entries


def fails(capsys, *argv):
    assert main([str(argument) for argument in argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_any_module_can_be_exported(tmp_path):
    model = nn.Sequential(nn.Linear(8, 16), flashkat.GroupRational(16, start="gelu")).train()
    path = tmp_path / "act.pt2"
    assert flashkat.export(model, torch.randn(1, 8), path, metadata={"note": "1"}) < 1e-6
    assert model.training
    assert read_entries(path) == ({"note": "1"}, False)
    x = torch.randn(5, 8)
    torch.testing.assert_close(load_package(path, False)(x), model(x))
    assert [each.name for each in tmp_path.iterdir()] == ["act.pt2"]


def test_a_difference_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(write, "difference", lambda *args: (0.5, 1.0))
    with pytest.raises(InputError, match=r"was not written: its outputs differ from the model's by 0.5"):
        flashkat.export(nn.Flatten(), torch.randn(2, 8), tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_differences(monkeypatch, tmp_path):
    monkeypatch.setattr(write, "difference", lambda *args: (float("nan"), 1.0))
    with pytest.raises(InputError, match="was not written"):
        flashkat.export(nn.Flatten(), torch.randn(2, 8), tmp_path / "a.pt2")


def test_outputs_that_overflow_are_checked_too(monkeypatch, tmp_path):
    class Overflows(nn.Module):
        def forward(self, x):
            return torch.cat([x, x * float("inf")], 1)

    monkeypatch.setattr(write, "load_package", lambda *args: lambda x: Overflows()(x) + 0.5)
    with pytest.raises(InputError, match=r"was not written: its outputs differ from the model's by 0.5"):
        flashkat.export(Overflows(), torch.randn(2, 8), tmp_path / "a.pt2")


def test_an_unknown_suffix(tmp_path):
    with pytest.raises(InputError, match=r"give a name that ends in \.onnx, \.pt2, _aoti\.pt2"):
        flashkat.export(nn.Flatten(), torch.randn(2, 8), tmp_path / "a.engine")


def test_what_the_command_refuses(shipped, tmp_path, capsys):
    source = shipped.checkpoint
    assert "no folder" in fails(capsys, "export", source, "-o", tmp_path / "no" / "a.onnx")
    assert "no checkpoint at" in fails(capsys, "export", tmp_path / "no.pth", "-o", tmp_path / "a.onnx")
    line = fails(capsys, "export", source, "-o", tmp_path / "a.onnx", "--format", "kat")
    assert line.endswith("--format is for files of weights alone: leave it out")
    for name in ("a.onxx", "folder"):
        line = fails(capsys, "export", source, "-o", tmp_path / name)
        assert f"{name}: end it in .onnx, .pt2, .pth, " in line
        assert line.endswith("or give --to hf for a folder")
    for name in ("a.onnx", "a.pt2", "a.pth.tar"):
        assert "is a file's name" in fails(capsys, "export", source, "-o", tmp_path / name, "--to", "hf")
    for output in (["a.pth"], ["folder", "--to", "hf"]):
        line = fails(capsys, "export", source, "-o", *output, "--model-dtype", "float16")
        assert "--model-dtype is for .onnx and .pt2" in line
    for output in ("a.onnx", "a.pth"):
        for flag in (["--amp"], ["--data-backend", "timm"]):
            line = fails(capsys, "export", source, "-o", tmp_path / output, *flag)
            assert f"{flag[0]} is for " in line
    for flag in (["--mean", 0.5], ["--crop-pct", 0.5], ["--class-map", "a.txt"]):
        line = fails(capsys, "export", source, "-o", tmp_path / "a.pth", *flag)
        assert line.endswith(f"{flag[0]} is for .onnx, .pt2 and --to hf, as files of weights lack it: leave it out")
    line = fails(capsys, "export", source, "-o", tmp_path / "a.pt2", "--push-to-hub", "me/it")
    assert line.endswith("--push-to-hub uploads the folder of --to hf: give that too")


def test_weights_that_are_not_finite_are_not_exported(shipped, tmp_path, capsys):
    path = tmp_path / "nan.pth.tar"
    checkpoint = torch.load(shipped.checkpoint)
    checkpoint["state_dict"]["head.bias"].fill_(torch.nan)
    torch.save(checkpoint, path)
    line = fails(capsys, "export", path, "-o", tmp_path / "a.pt2")
    assert f"{path} has weights that are not finite (head.bias): take an earlier checkpoint" in line
    assert not (tmp_path / "a.pt2").exists()


def test_no_onnx_in_bfloat16(shipped, tmp_path, capsys):
    line = fails(capsys, "export", shipped.checkpoint, "-o", tmp_path / "a.onnx", "--model-dtype", "bfloat16")
    assert line.endswith("a.onnx in bfloat16, which ONNX Runtime lacks: give float16, or a .pt2 file")


@pytest.mark.slow
def test_a_compiled_package_of_a_checkpoint(shipped, tmp_path, capsys):
    path = tmp_path / "model_aoti.pt2"
    assert main(["export", str(shipped.checkpoint), "-o", str(path)]) == 0
    capsys.readouterr()
    lines = []
    for model in (shipped.checkpoint, path):
        assert main(["predict", str(model), str(shipped.images), "--trust", "--csv"]) == 0
        lines.append([line.rpartition(",")[0] for line in capsys.readouterr().out.splitlines()])
    assert lines[0] == lines[1]
