"""Weights & Biases, whose place a stand-in takes."""

import importlib.util
import sys
import types

import pytest
from tiny import FLAGS

from flashkat.cli.main import main


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in that keeps what it is given."""
    seen = {"rows": [], "statuses": []}
    run = types.SimpleNamespace(
        log=seen["rows"].append, finish=lambda exit_code: seen["statuses"].append((len(seen["rows"]), exit_code))
    )
    module = types.ModuleType("wandb")
    module.Image = lambda pixels: ("image", pixels)
    module.init = lambda **kwargs: seen.update(kwargs) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return seen


def test_rows_go_to_wandb(train, wandb, summary_of):
    flags = ["--log-wandb", "--wandb-project", "kats", "--wandb-tags", "a", "b", "--wandb-resume-id", "xyz"]
    folder = train("--epochs", 2, *flags)
    assert (wandb["project"], wandb["tags"], wandb["id"], wandb["resume"]) == ("kats", ["a", "b"], "xyz", "must")
    assert wandb["name"] == folder.name
    assert wandb["config"]["epochs"] == 2
    # Else the next run of this process would go on in this one.
    assert wandb["statuses"] == [(2, 0)]
    assert [row["train_loss"] for row in wandb["rows"]] == pytest.approx(
        [row["train_loss"] for row in summary_of(folder)]
    )


def test_pictures_of_the_functions_go_with_their_rows(train, wandb):
    train("--epochs", 3, "--log-wandb", "--log-functions", 2)
    first, second, third = wandb["rows"]
    assert "functions" not in first.keys() | third.keys()
    kind, pixels = second["functions"]
    assert kind == "image"
    assert pixels.ndim == 3
    assert second["epoch"] == 1


def test_the_project_is_that_of_kats_code(train, wandb):
    train("--epochs", 1, "--log-wandb")
    assert wandb["project"] == "scale-kan"


def test_without_wandb_training_goes_on(train, monkeypatch, capsys, tmp_path):
    """Also beside the folder of runs that wandb makes, which Python could import."""
    (tmp_path / "here" / "wandb").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    if importlib.util.find_spec("wandb").origin is not None:
        pytest.skip("wandb is installed")
    folder = train("--epochs", 1, "--log-wandb")
    assert capsys.readouterr().out.count("Nothing goes to Weights & Biases, as --log-wandb needs a package") == 1
    assert (folder / "last.pth.tar").is_file()


def test_wandb_that_does_not_start(refused, wandb, monkeypatch):
    def fail(**kwargs):
        raise RuntimeError("no API key\nand more")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    err = refused("--log-wandb")
    assert "Weights & Biases does not start: no API key; WANDB_MODE=offline logs to files" in err


def test_a_run_that_diverges_has_failed_at_wandb(images, tmp_path, wandb):
    argv = [
        "train",
        images,
        *FLAGS,
        "-j",
        0,
        "-b",
        4,
        "--output",
        tmp_path,
        "--lr",
        1e30,
        "--warmup-epochs",
        0,
        "--log-wandb",
    ]
    assert main([str(word) for word in argv]) == 1
    assert wandb["statuses"] == [(0, 1)]


def test_wandb_that_does_not_end_is_no_failure(train, wandb, monkeypatch):
    def fail(exit_code):
        raise RuntimeError("no network")

    monkeypatch.setattr(sys.modules["wandb"].init(), "finish", fail)
    assert (train("--epochs", 1, "--log-wandb") / "last.pth.tar").is_file()


def test_flags_of_wandb_alone(refused):
    assert "need --log-wandb" in refused("--wandb-project", "kats")
