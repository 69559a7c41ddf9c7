"""What an evaluation prints and writes."""

import csv
import importlib
import json
import re

import pytest
import torch
from tiny import MODEL, weights

# The room exports its function under the same name.
VALIDATE = importlib.import_module("flashkat.evaluation.validate")

# Not timm's own, so that they have to come from the checkpoint.
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def test_result_is_timms(validate, images, trained):
    result, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    assert list(result) == [
        *("model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation")
    ]
    assert result["model"] == MODEL
    assert result["img_size"] == 8
    # As the run had them, not as the model's defaults are.
    assert result["crop_pct"] == 1.0
    assert result["interpolation"] == "bilinear"
    assert result["top1"] + result["top1_err"] == pytest.approx(100)
    assert result["top5"] + result["top5_err"] == pytest.approx(100)


def test_log_is_timms(validate, images, trained):
    checkpoint = trained / "last.pth.tar"
    result, lines = validate(images, "--checkpoint", checkpoint, "-b", 4, "--log-freq", 3)
    parameters = sum(value.numel() for value in torch.load(checkpoint, weights_only=True)["state_dict"].values())
    assert lines[0] == "Validating in float32..."
    assert lines[1] == f"Loaded state_dict from checkpoint '{checkpoint}'"
    assert lines[2] == f"Model {MODEL} created, param count: {parameters}"
    assert result["param_count"] == round(parameters / 1e6, 2)
    assert lines[3] == "Data processing configuration for current model + dataset:"
    shown = dict(line.strip().split(": ", 1) for line in lines[4:10])
    assert all(line.startswith("\t") for line in lines[4:10])
    assert shown == {
        "input_size": "(3, 8, 8)",
        "interpolation": "bilinear",
        "mean": str(MEAN),
        "std": str(STD),
        "crop_pct": "1.0",
        "crop_mode": "center",
    }
    number = r" *\d+\.\d+"
    pattern = (
        rf"Test: \[ *(\d+)/7\]  Time: {number}s \({number}s, {number}/s\)  Loss: {number} \({number}\)  "
        rf"Acc@1: {number} \({number}\)  Acc@5: {number} \({number}\)"
    )
    tests = [re.fullmatch(pattern, line) for line in lines[10:-1]]
    # Every third of seven batches, and the last.
    assert [int(test[1]) for test in tests] == [0, 3, 6]
    last = re.fullmatch(rf" \* Acc@1 ({number}) \(({number})\) Acc@5 ({number}) \(({number})\)", lines[-1])
    found = [float(value) for value in last.groups()]
    assert found == pytest.approx([result[key] for key in ("top1", "top1_err", "top5", "top5_err")], abs=1e-3)
    # The last averages are the result.
    assert f"({result['top1']:.3f})" in lines[-2].replace("( ", "(")


def test_rate_counts_images(validate, images, trained):
    _, lines = validate(images, "--checkpoint", trained / "last.pth.tar")
    (line,) = [line for line in lines if line.startswith("Test:")]
    seconds, rate = re.search(r"\((\d+\.\d+)s, *(\d+\.\d+)/s\)", line).groups()
    assert float(rate) * float(seconds) < 2 * 27


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_results_of_one(validated, tmp_path, kind):
    path = tmp_path / "results"
    checkpoint = weights(tmp_path / "weights.pth")
    result, _ = validated("--checkpoint", checkpoint, "--results-file", path, "--results-format", kind)
    if kind == "json":
        assert json.loads(path.read_text()) == result
    else:
        assert next(csv.DictReader(path.open()))["param_count"] == str(result["param_count"])


@pytest.mark.parametrize("name", ["nowhere/results.csv", ""])
def test_results_that_cannot_be_written(validated, tmp_path, monkeypatch, name):
    monkeypatch.setattr(VALIDATE, "evaluate", lambda *_: pytest.fail("evaluated in vain"))
    checkpoint = weights(tmp_path / "weights.pth")
    err = validated("--checkpoint", checkpoint, "--results-file", tmp_path / name, status=2)
    assert err.count("\n") == 1
    assert "results" in err


@pytest.mark.parametrize(
    ("average", "expected"), [("macro", (4.0, 20.0, 6.6667)), ("micro", (20.0,) * 3), ("weighted", (4.0, 20.0, 6.6667))]
)
def test_averages_over_classes(validated, tmp_path, average, expected):
    # Always class 2 of five: a precision of 1 in 5 and a recall of 1 for it, none for the others.
    checkpoint = weights(tmp_path / "weights.pth", answer=2)
    result, err = validated("--checkpoint", checkpoint, "--metrics-avg", average)
    assert tuple(result[f"{average}_{name}"] for name in ("precision", "recall", "f1_score")) == expected
    assert f"Acc@5 100.000 (0.000) | Precision({average}) {expected[0]:.3f} | Recall({average}) 20.000 | F1" in err


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_earlier_results_are_overwritten_and_no_other_file(validated, tmp_path, kind):
    checkpoint, path = weights(tmp_path / "weights.pth"), tmp_path / "results"
    flags = ["--checkpoint", checkpoint, "--results-format", kind, "--results-file"]
    for _ in range(2):
        validated(*flags, path)
    before = checkpoint.read_bytes()
    err = validated(*flags, checkpoint, status=2)
    assert f"{checkpoint} is there already and another kind of file: give another name" in err
    assert checkpoint.read_bytes() == before
