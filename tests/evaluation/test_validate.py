"""``flashkat validate`` beyond one model and one checkpoint: lists, results, labels, views, smaller batches."""

import csv
import importlib
import json

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.utils import LocalEntryNotFoundError
from PIL import Image

from flashkat.cli.main import main
from flashkat.evaluation.evaluate import evaluate

# The room exports its function under the same name.
VALIDATE = importlib.import_module("flashkat.evaluation.validate")
MODEL = "kat_tiny_patch16_224"
KWARGS = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
FLAGS = ["--model", MODEL, "--img-size", 8, "--crop-pct", 1, "-j", 0, "-b", 4]
FLAGS += ["--model-kwargs", *(f"{key}={value}" for key, value in KWARGS.items())]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten images named as ImageNet's, two in each of five classes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(10):
        folder = root / f"class{number // 2}"
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"ILSVRC2012_val_{number + 1:08d}.JPEG", "png")
    return root


def weights(path, answer=None, classes=5):
    """Weights of a model, one that always answers the same class where that is given."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL, img_size=8, num_classes=classes, **KWARGS)
    if answer is not None:
        torch.nn.init.zeros_(model.head.weight)
        torch.nn.init.zeros_(model.head.bias)
        model.head.bias.data[answer] = 1
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def validate(images, capsys):
    def run(*flags, data=images, status=0):
        assert main([str(flag) for flag in ("validate", data, *FLAGS, *flags)]) == status
        out, err = capsys.readouterr()
        return (json.loads(out.removeprefix("--result\n")), err) if status == 0 else err

    return run


# --- lists and results ------------------------------------------------------------------------------------------------


def test_a_folder_of_checkpoints(validate, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    weights(folder / "epoch-2.pth", answer=0)
    weights(folder / "epoch-10.pth.tar", answer=1)
    torch.save({"state_dict": {"other": torch.zeros(1)}}, folder / "epoch-1.pth")
    path = tmp_path / "all.csv"
    results, err = validate("--checkpoint", folder, "--results-file", path)
    assert [result["checkpoint"] for result in results] == [
        str(folder / name) for name in ("epoch-2.pth", "epoch-10.pth.tar")
    ]
    assert f"{folder / 'epoch-1.pth'} is left out: " in err
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["checkpoint"] for row in rows] == [result["checkpoint"] for result in results]
    assert float(rows[0]["top1"]) == results[0]["top1"] == 20


def test_a_list_ends_where_the_hub_cannot_be_reached(validate, monkeypatch):
    asked = []

    def fail(name, **kwargs):
        asked.append(name)
        raise LocalEntryNotFoundError("look at your cable")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    err = validate("--model", "kat_tiny*", status=2)
    assert len(asked) == 1
    assert err.count("\n") == 1
    assert "the Hugging Face Hub cannot be reached" in err


def test_weights_for_a_list_of_models(validate, tmp_path):
    path = weights(tmp_path / "weights.pth")
    assert f"--model {path} is no text with a name a line" in validate("--model", path, status=2)


@pytest.mark.parametrize("by", ["pattern", "file"])
def test_several_models(validate, tmp_path, monkeypatch, by):
    names = ["kat_small_patch16_224", "kat_tiny_patch16_224"]
    path = weights(tmp_path / "weights.pth")
    (tmp_path / "names.txt").write_text("# two of them\n" + "\n".join(names) + "\n")
    asked = {"pattern": "kat_[st]*l*_patch16_224", "file": tmp_path / "names.txt"}[by]
    if by == "pattern":
        monkeypatch.setattr(timm, "list_models", lambda pattern, **kwargs: names if pattern == asked else [])
    monkeypatch.chdir(tmp_path)
    results, err = validate("--checkpoint", path, "--model", asked)
    assert sorted(result["model"] for result in results) == names
    assert err.endswith("Wrote results-all.csv\n")
    assert (tmp_path / "results-all.csv").read_text().startswith("model,top1,")


def test_a_pattern_without_a_checkpoint_means_models_with_weights(monkeypatch):
    given = {}
    monkeypatch.setattr(timm, "list_models", lambda pattern, **kwargs: given.update(kwargs, pattern=pattern) or [])
    assert main(["validate", "data", "--model", "all"]) == 2
    assert given == {"pattern": "*kat_*", "pretrained": True}


def test_lists_of_nothing(validate, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no checkpoints (" in validate("--checkpoint", tmp_path / "empty", status=2)
    assert "names no models" in validate("--model", "cat_*", status=2)


def test_a_list_of_failures_is_one(validate, tmp_path):
    torch.save({"state_dict": {"other": torch.zeros(1)}}, tmp_path / "weights.pth")
    assert "is of another model" in validate("--checkpoint", tmp_path, status=2)
    assert not (tmp_path / "results-all.csv").exists()


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_results_of_one(validate, tmp_path, kind):
    path = tmp_path / "results"
    checkpoint = weights(tmp_path / "weights.pth")
    result, _ = validate("--checkpoint", checkpoint, "--results-file", path, "--results-format", kind)
    if kind == "json":
        assert json.loads(path.read_text()) == result
    else:
        assert next(csv.DictReader(path.open()))["param_count"] == str(result["param_count"])


@pytest.mark.parametrize("name", ["nowhere/results.csv", ""])
def test_results_that_cannot_be_written(validate, tmp_path, monkeypatch, name):
    monkeypatch.setattr(VALIDATE, "evaluate", lambda *_: pytest.fail("evaluated in vain"))
    checkpoint = weights(tmp_path / "weights.pth")
    err = validate("--checkpoint", checkpoint, "--results-file", tmp_path / name, status=2)
    assert err.count("\n") == 1
    assert "results" in err


# --- labels -----------------------------------------------------------------------------------------------------------


def test_real_labels(validate, tmp_path):
    checkpoint = weights(tmp_path / "weights.pth", answer=2)
    # Two of the class, one more by its second label, and two that have no label and do not count.
    (tmp_path / "real.json").write_text(json.dumps([[0, 2], [0], [], [], [2], [2], [3], [3], [4], [4]]))
    result, _ = validate("--checkpoint", checkpoint)
    assert result["top1"] == 20
    result, err = validate("--checkpoint", checkpoint, "--real-labels", tmp_path / "real.json")
    assert result["top1"] == 37.5
    assert " * Acc@1 37.500 (62.500)" in err


def test_real_labels_that_are_not(validate, tmp_path):
    checkpoint = weights(tmp_path / "weights.pth")
    assert "no file" in validate("--checkpoint", checkpoint, "--real-labels", tmp_path / "none", status=2)
    for text, words in (("[[0]]", "has labels for 1 images, not 10"), ("no labels", "Expecting value")):
        (tmp_path / "real.json").write_text(text)
        err = validate("--checkpoint", checkpoint, "--real-labels", tmp_path / "real.json", status=2)
        assert err.count("\n") == 1
        assert "50,000" in err
        assert words in err


def test_real_labels_of_fewer_than_five_outputs(validate, tmp_path):
    # Outputs 0 to 2, of which the first is the answer.
    checkpoint = weights(tmp_path / "weights.pth", answer=0, classes=5)
    (tmp_path / "real.json").write_text(json.dumps([[0]] * 5 + [[2]] * 3 + [[4]] * 2))
    (tmp_path / "labels.txt").write_text("0\n1\n2\n")
    data = tmp_path / "three"
    for number in range(10):
        folder = data / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / f"ILSVRC2012_val_{number + 1:08d}.JPEG", "png")
    flags = ["--valid-labels", tmp_path / "labels.txt", "--real-labels", tmp_path / "real.json"]
    result, _ = validate("--checkpoint", checkpoint, *flags, data=data)
    assert (result["top1"], result["top5"]) == (50, 80)


def test_valid_labels(validate, tmp_path):
    # Of seven outputs, the data's classes are 4, 1, 3, 0 and 6.
    checkpoint = weights(tmp_path / "weights.pth", answer=3, classes=7)
    (tmp_path / "labels.txt").write_text("4\n1\n3\n0\n6\n")
    result, _ = validate("--checkpoint", checkpoint, "--valid-labels", tmp_path / "labels.txt")
    assert result["top1"] == 20


@pytest.mark.parametrize(
    ("text", "words"),
    [("7\n1\n2\n", "outputs 0 to 4, not [7]"), ("a\n", "one a line"), ("0\n1\n", "has 5 classes"), ("", "some of")],
)
def test_valid_labels_that_are_not(validate, tmp_path, text, words):
    (tmp_path / "labels.txt").write_text(text)
    checkpoint = weights(tmp_path / "weights.pth")
    assert words in validate("--checkpoint", checkpoint, "--valid-labels", tmp_path / "labels.txt", status=2)


def test_valid_labels_beside_a_checkpoints_own_classes(validate, tmp_path):
    """That these are the data's does not make two of its five outputs enough."""
    state = torch.load(weights(tmp_path / "weights.pth"), weights_only=True)
    run = {"state_dict": state, "classes": [f"class{number}" for number in range(5)]}
    torch.save(run, tmp_path / "run.pth.tar")
    (tmp_path / "labels.txt").write_text("0\n1\n")
    err = validate("--checkpoint", tmp_path / "run.pth.tar", "--valid-labels", tmp_path / "labels.txt", status=2)
    assert err.count("\n") == 1
    assert "has 5 classes, --valid-labels names 2" in err


@pytest.mark.parametrize(
    ("average", "expected"), [("macro", (4.0, 20.0, 6.6667)), ("micro", (20.0,) * 3), ("weighted", (4.0, 20.0, 6.6667))]
)
def test_averages_over_classes(validate, tmp_path, average, expected):
    # Always class 2 of five: a precision of 1 in 5 and a recall of 1 for it, none for the others.
    checkpoint = weights(tmp_path / "weights.pth", answer=2)
    result, err = validate("--checkpoint", checkpoint, "--metrics-avg", average)
    assert tuple(result[f"{average}_{name}"] for name in ("precision", "recall", "f1_score")) == expected
    assert f"Acc@5 100.000 (0.000) | Precision({average}) {expected[0]:.3f} | Recall({average}) 20.000 | F1" in err


# --- how it is run ----------------------------------------------------------------------------------------------------


def test_smaller_batches_where_memory_does_not_suffice(validate, tmp_path, monkeypatch):
    sizes = []

    def little_memory(models, loader, *more):
        sizes.append(loader.loader.loader.batch_size)
        if sizes[-1] > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return evaluate(models, loader, *more)

    monkeypatch.setattr(VALIDATE, "evaluate", little_memory)
    checkpoint = weights(tmp_path / "weights.pth")
    result, err = validate("--checkpoint", checkpoint, "--retry")
    assert result["model"] == MODEL
    assert sizes == [4, 3, 2]
    assert "trying 2" in err
    with pytest.raises(RuntimeError):
        validate("--checkpoint", checkpoint)


def test_views(validate, tmp_path):
    checkpoint = weights(tmp_path / "weights.pth")
    plain, _ = validate("--checkpoint", checkpoint)
    assert validate("--checkpoint", checkpoint, "--tta", 1)[0] == plain
    assert validate("--checkpoint", checkpoint, "--tta", 10)[0]["model"] == MODEL


def test_more_gpus_than_there_are(validate, tmp_path):
    checkpoint = weights(tmp_path / "weights.pth")
    err = validate("--checkpoint", checkpoint, "--device", "cpu", "--num-gpu", 2, status=2)
    assert "--num-gpu 2, but" in err
