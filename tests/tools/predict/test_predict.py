"""``flashkat predict``: the same classes from every format, three forms of output, and images that cannot be read."""

import csv
import io
import json
import math
import os
import sys

import pytest
import timm
import torch
from PIL import Image

from flashkat import checkpoints
from flashkat.cli.main import main
from flashkat.tools.predict.predict import Prediction, line_of


def run(capsys, *argv, status=0):
    assert main(["predict", *(str(argument) for argument in argv)]) == status
    out, err = capsys.readouterr()
    return out, err.splitlines()


def test_checkpoint_and_programs_agree(shipped, capsys):
    found = [
        [[row["class"] for row in json.loads(line)["predictions"]] for line in run(capsys, *argv)[0].splitlines()]
        for argv in (
            (shipped.checkpoint, shipped.images, "--json"),
            (shipped.onnx, shipped.images, "--json", "-b", 3),
            (shipped.pt2, shipped.images, "--json", "--trust"),
        )
    ]
    assert len(found[0]) == 8
    assert found[0] == found[1] == found[2]


def test_probabilities_are_those_of_timms_loading(shipped, capsys):
    image = shipped.images / "light" / "0.png"
    out, _ = run(capsys, shipped.checkpoint, image, "--json")
    model = timm.create_model(f"local-dir:{shipped.folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        expected = model(transform(Image.open(image).convert("RGB"))[None]).softmax(1)[0]
    for row in json.loads(out)["predictions"]:
        assert row["probability"] == pytest.approx(float(expected[row["index"]]), rel=1e-4)


def test_csv(shipped, capsys):
    rows = list(csv.DictReader(io.StringIO(run(capsys, shipped.onnx, shipped.images, "--csv", "--top", 1)[0])))
    assert len(rows) == 8
    assert rows[0]["image"] == str(shipped.images / "dark" / "0.png")
    assert {row["rank"] for row in rows} == {"1"}
    assert {row["class"] for row in rows} <= {"dark", "light"}


def test_text_escapes_what_moves_a_cursor():
    prediction = Prediction("a\x1b[2J.png", ((0, "cat\n", 0.75), (1, "dog", 0.25)))
    assert line_of(prediction, "text") == "a\\x1b[2J.png\n   75.0%  cat\\n\n   25.0%  dog"


def test_broken_images_are_named_and_skipped(shipped, tmp_path, capsys):
    good = shipped.images / "dark" / "0.png"
    (tmp_path / "short.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "page.png").write_text("<!DOCTYPE html>")
    os.mkfifo(tmp_path / "pipe.png")
    names = [tmp_path / name for name in ("short.png", "text.png", "page.png", "pipe.png", "missing.png")]
    out, notes = run(capsys, shipped.checkpoint, *names, good, "--csv", "--top", 1, status=1)
    assert [line.split(",")[0] for line in out.splitlines()] == ["image", str(good)]
    assert [line.split(", skipped")[0] for line in notes[:-1]] == [f"cannot read {name}" for name in names]
    assert notes[1].endswith("it is no image")
    assert "is a web page" in notes[2]
    assert notes[4].endswith("No such file or directory")
    assert notes[-1] == "Images that cannot be read: 5"


def test_names_on_standard_input(shipped, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{shipped.images / 'dark'}\n"))
    assert run(capsys, shipped.checkpoint, "-", "--top", 1)[0].count("%") == 4


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_is_on_the_terminal_and_the_results_where_they_go(shipped, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", Terminal())
    assert main(["predict", str(shipped.checkpoint), str(shipped.images), "--csv", "--top", "1"]) == 0
    assert "8/8" in sys.stderr.getvalue()
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_grey_images(tmp_path, capsys):
    from flashkat.models import create_model

    torch.manual_seed(0)
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = create_model("kat_tiny_patch16_224", img_size=8, in_chans=1, num_classes=2, **sizes)
    arguments = {"img_size": 8, "in_chans": 1, "model_kwargs": sizes}
    checkpoints.write(
        tmp_path / "grey.pth.tar",
        {"arch": "kat_tiny_patch16_224", "args": arguments, "state_dict": model.state_dict()},
    )
    Image.new("I;16", (8, 8), 40000).save(tmp_path / "deep.png")
    assert run(capsys, tmp_path / "grey.pth.tar", tmp_path / "deep.png", "--csv")[0].count("deep.png") == 2


def test_outputs_that_are_not_finite_name_no_class(tmp_path, shipped, capsys):
    checkpoint = checkpoints.read(str(shipped.checkpoint))
    checkpoint["state_dict"]["head.weight"][0, 0] = math.nan
    checkpoints.write(tmp_path / "bad.pth.tar", checkpoint)
    for form in ([], ["--json"]):
        out, (line,) = run(capsys, tmp_path / "bad.pth.tar", shipped.images, *form, status=2)
        assert out == ""
        assert "gives outputs that are not finite for 8 of 8 images: take an earlier checkpoint, or float32" in line


def test_what_is_refused(shipped, tmp_path, capsys):
    _, (line,) = run(capsys, shipped.pt2, shipped.images, status=2)
    assert "give --trust if you trust the author" in line
    _, (line,) = run(capsys, shipped.onnx, tmp_path, status=2)
    assert "holds no images" in line
    (tmp_path / "a.onnx").write_text("no ONNX")
    _, (line,) = run(capsys, tmp_path / "a.onnx", shipped.images, status=2)
    assert "a.onnx" in line
