"""Weights & Biases, whose place a stand-in takes."""

import sys
import types

import pytest

from flashkat import errors


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in that keeps what it is given."""
    seen = {"rows": []}
    run = types.SimpleNamespace(log=seen["rows"].append)
    module = types.ModuleType("wandb")
    module.init = lambda **kwargs: seen.update(kwargs) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return seen


def test_rows_go_to_wandb(train, wandb, summary_of):
    flags = ["--log-wandb", "--wandb-project", "kats", "--wandb-tags", "a", "b", "--wandb-resume-id", "xyz"]
    folder = train("--epochs", 2, *flags)
    assert (wandb["project"], wandb["tags"], wandb["id"], wandb["resume"]) == ("kats", ["a", "b"], "xyz", "must")
    assert wandb["name"] == folder.name
    assert wandb["config"]["epochs"] == 2
    assert [row["train_loss"] for row in wandb["rows"]] == pytest.approx(
        [row["train_loss"] for row in summary_of(folder)]
    )


def test_without_wandb(refused, monkeypatch):
    installed = errors.is_installed
    monkeypatch.setattr(errors, "is_installed", lambda module: module != "wandb" and installed(module))
    err = refused("--log-wandb")
    assert "--log-wandb needs a package that is not installed: pip install wandb" in err


def test_wandb_that_does_not_start(refused, wandb, monkeypatch):
    def fail(**kwargs):
        raise RuntimeError("no API key\nand more")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    err = refused("--log-wandb")
    assert "Weights & Biases does not start: no API key; WANDB_MODE=offline logs to files" in err


def test_flags_of_wandb_alone(refused):
    assert "need --log-wandb" in refused("--wandb-project", "kats")
