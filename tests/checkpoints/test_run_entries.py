"""A checkpoint whose run is none to go on with is refused in a line that names the entry."""

import copy
import random

import pytest
import torch

from flashkat.checkpoints.run_entries import check_run
from flashkat.errors import InputError
from flashkat.system.random import random_state


def checkpoint():
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    random.gauss(0, 1)
    return {
        "epoch": 3,
        "metric": 50.0,
        "args": {"opt": "adamw", "batch_size": 4, "grad_accum_steps": 1, "scale": (0.1, 1.0), "opt_kwargs": {"a": [1]}},
        "optimizer": optimizer.state_dict(),
        "amp_scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0},
        "run": {
            "epoch": 4,
            "batch": 2,
            "batches": 4,
            "images": 16,
            "updates": 10,
            "lr": 0.1,
            "best": {"metric": 50.0, "weights": "state_dict"},
            "history": [{"epoch": 0, "lr": 0.1, "eval_top1": float("nan")}],
            "scheduler": {"plateau": plateau.state_dict(), "without_noise": [0.1]},
            "ema": {"random": torch.get_rng_state()},
            "processes": [{"random": random_state(), "sums": [1.0, 2.0, 3.0, 4]}],
        },
    }


def test_what_training_writes_is_good():
    check_run(checkpoint(), "a.pth.tar")
    check_run({"epoch": 3}, "timm.pth.tar")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("epoch", -1),
        ("epoch", 10**12),
        ("epoch", True),
        ("metric", "good"),
        ("args.opt", 3),
        ("args.batch_size", "4"),
        ("args.mixup", torch.ones(2)),
        ("args.opt_kwargs", {"a": [torch.ones(2)]}),
        ("args.scale", {1: 2}),
        ("optimizer.state", [1]),
        ("optimizer.param_groups", "x"),
        ("optimizer.param_groups.0.lr", "fast"),
        ("optimizer.param_groups.0.betas", "ab"),
        ("optimizer.param_groups.0.params", ["a"]),
        ("optimizer.state.0", 3),
        ("optimizer.state.7", {}),
        ("optimizer.state.0.exp_avg", 0.5),
        ("optimizer.state.1.exp_avg_sq", "x"),
        ("amp_scaler.scale", "big"),
        ("run.epoch", -4),
        ("run.batch", 1.5),
        ("run.batches", -1),
        ("run.images", "many"),
        ("run.updates", "many"),
        ("run.lr", float("nan")),
        ("run.lr", -1.0),
        ("run.best", {"metric": "x", "weights": "state_dict"}),
        ("run.best", {"metric": 1.0, "weights": "state_dict", "epoch": "/../../x"}),
        ("run.history", [3]),
        ("run.history.0.epoch", "first"),
        ("run.history.0.lr", "fast"),
        ("run.scheduler.plateau.step", 3),
        ("run.scheduler.plateau.best", {}),
        ("run.scheduler.without_noise", "x"),
        ("run.ema.random", 7),
        ("run.processes", {}),
        ("run.processes.0.sums", [1.0]),
        ("run.processes.0.random.python.words", torch.ones(3)),
        ("run.processes.0.random.numpy.keys", None),
        ("run.processes.0.random.torch", torch.ones(3)),
    ],
)
def test_other_values_are_refused_by_name(place, value):
    changed = copy.deepcopy(checkpoint())
    *steps, last = [int(step) if step.isdecimal() else step for step in place.split(".")]
    owner = changed
    for step in steps:
        owner = owner[step]
    owner[last] = value
    named = place.split(".")[: 2 if place.startswith(("run.", "args.")) else 1]
    with pytest.raises(InputError, match=rf"a\.pth\.tar is no checkpoint to go on with, its {'.'.join(named)} is"):
        check_run(changed, "a.pth.tar")
