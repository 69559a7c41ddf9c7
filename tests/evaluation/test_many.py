"""Lists of models and of checkpoints."""

import csv
import shutil
import sys

import pytest
import timm
import torch
from huggingface_hub.utils import LocalEntryNotFoundError
from tiny import weights

from flashkat.cli.main import main
from flashkat.errors import InputError
from flashkat.evaluation import Config, validate_all
from flashkat.system import distributed


def test_an_unknown_format_of_results():
    with pytest.raises(InputError, match="--results-format must be one of csv, json, not 'xml'"):
        validate_all(Config(), results_format="xml")


def test_a_folder_of_checkpoints(validated, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    weights(folder / "epoch-2.pth", answer=0)
    weights(folder / "epoch-10.pth.tar", answer=1)
    torch.save({"state_dict": {"other": torch.zeros(1)}}, folder / "epoch-1.pth")
    path = tmp_path / "all.csv"
    results, err = validated("--checkpoint", folder, "--results-file", path)
    assert [result["checkpoint"] for result in results] == [
        str(folder / name) for name in ("epoch-2.pth", "epoch-10.pth.tar")
    ]
    assert f"{folder / 'epoch-1.pth'} is left out: " in err
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["checkpoint"] for row in rows] == [result["checkpoint"] for result in results]
    assert float(rows[0]["top1"]) == results[0]["top1"] == 20


def test_what_is_left_out_is_said_once(validated, numbered, tmp_path):
    shutil.copytree(numbered, tmp_path / "data")
    (tmp_path / "data" / "notes.txt").write_text("no image")
    (tmp_path / "weights").mkdir()
    for answer in range(2):
        weights(tmp_path / "weights" / f"{answer}.pth", answer=answer)
    flags = ["--checkpoint", tmp_path / "weights", "--results-file", tmp_path / "all.csv"]
    results, err = validated(*flags, data=tmp_path / "data")
    assert len(results) == 2
    assert err.count("left out 1 file that is no image (notes.txt)") == 1


def test_a_list_ends_where_the_hub_cannot_be_reached(validated, monkeypatch):
    asked = []

    def fail(name, **kwargs):
        asked.append(name)
        raise LocalEntryNotFoundError("look at your cable")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    err = validated("--model", "kat_tiny*", status=2)
    assert len(asked) == 1
    assert err.count("\n") == 1
    assert "the Hugging Face Hub cannot be reached" in err


def test_weights_for_a_list_of_models(validated, tmp_path):
    path = weights(tmp_path / "weights.pth")
    assert f"--model {path} is no text with a name a line" in validated("--model", path, status=2)


@pytest.mark.parametrize("by", ["pattern", "file"])
def test_several_models(validated, tmp_path, monkeypatch, by):
    names = ["kat_small_patch16_224", "kat_tiny_patch16_224"]
    path = weights(tmp_path / "weights.pth")
    (tmp_path / "names.txt").write_text("# two of them\n" + "\n".join(names) + "\n")
    asked = {"pattern": "kat_[st]*l*_patch16_224", "file": tmp_path / "names.txt"}[by]
    if by == "pattern":
        monkeypatch.setattr(timm, "list_models", lambda pattern, **kwargs: names if pattern == asked else [])
    monkeypatch.chdir(tmp_path)
    results, err = validated("--checkpoint", path, "--model", asked)
    assert sorted(result["model"] for result in results) == names
    assert err.endswith("Wrote results-all.csv\n")
    assert (tmp_path / "results-all.csv").read_text().startswith("model,top1,")


def test_a_pattern_without_a_checkpoint_means_models_with_weights(monkeypatch):
    given = {}
    monkeypatch.setattr(timm, "list_models", lambda pattern, **kwargs: given.update(kwargs, pattern=pattern) or [])
    assert main(["validate", "data", "--model", "all"]) == 2
    assert given == {"pattern": "*kat_*", "pretrained": True}


def test_lists_of_nothing(validated, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no checkpoints (" in validated("--checkpoint", tmp_path / "empty", status=2)
    assert "names no models" in validated("--model", "cat_*", status=2)


def test_a_list_of_failures_is_one(validated, tmp_path):
    torch.save({"state_dict": {"other": torch.zeros(1)}}, tmp_path / "weights.pth")
    assert "is of another model" in validated("--checkpoint", tmp_path, status=2)
    assert not (tmp_path / "results-all.csv").exists()


@pytest.mark.parametrize(("processes", "passes"), [(1, 2), (2, 1)])
def test_one_of_several_processes_does_not_go_on_alone(validated, tmp_path, monkeypatch, processes, passes):
    """Its sums of the next checkpoint would be added to the others' of this one."""
    (tmp_path / "weights").mkdir()
    for name in ("a.pth", "b.pth"):
        weights(tmp_path / "weights" / name)
    begun = []

    def fail(*arguments):
        begun.append(1)
        monkeypatch.setattr(distributed, "size", lambda: processes)
        raise InputError("cannot decode the image a.png")

    monkeypatch.setattr(sys.modules["flashkat.evaluation.validate"], "evaluate", fail)
    assert "error: cannot decode the image a.png" in validated("--checkpoint", tmp_path / "weights", status=2)
    assert len(begun) == passes
