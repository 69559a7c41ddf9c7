"""How one model is evaluated: smaller batches, views, several GPUs, from Python."""

import importlib
import math
import os
import signal
from functools import partial

import pytest
import torch
from processes import forked, free_port
from tiny import FLAGS, MODEL, weights

from flashkat.cli.main import run
from flashkat.errors import InputError
from flashkat.evaluation import Config, Evaluation, many
from flashkat.evaluation.evaluate import evaluate
from flashkat.evaluation.metrics import Meters

# The room exports its function under the same name.
VALIDATE = importlib.import_module("flashkat.evaluation.validate")


def test_smaller_batches_where_memory_does_not_suffice(validated, tmp_path, monkeypatch):
    sizes = []

    def little_memory(models, loader, *more):
        sizes.append(loader.loader.loader.batch_size)
        if sizes[-1] > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return evaluate(models, loader, *more)

    monkeypatch.setattr(VALIDATE, "evaluate", little_memory)
    checkpoint = weights(tmp_path / "weights.pth")
    result, err = validated("--checkpoint", checkpoint, "--retry")
    assert result["model"] == MODEL
    assert sizes == [4, 3, 2]
    assert "retrying with 2" in err
    with pytest.raises(RuntimeError):
        validated("--checkpoint", checkpoint)


def test_views(validated, tmp_path):
    checkpoint = weights(tmp_path / "weights.pth")
    plain, _ = validated("--checkpoint", checkpoint)
    assert validated("--checkpoint", checkpoint, "--tta", 1)[0] == plain
    assert validated("--checkpoint", checkpoint, "--tta", 10)[0]["model"] == MODEL


def test_outputs_that_are_not_finite_have_no_accuracy(validated, tmp_path):
    path = weights(tmp_path / "weights.pth")
    state = torch.load(path)
    state["head.weight"][2, 0] = math.nan
    torch.save(state, path)
    err = validated("--checkpoint", path, "--results-file", tmp_path / "results.csv", status=2)
    said = f"{path} gives outputs that are not finite for 10 of 10 images: take an earlier checkpoint, or float32"
    assert said in err.splitlines()[-1]
    assert not (tmp_path / "results.csv").exists()


def test_more_gpus_than_there_are(validated, tmp_path):
    checkpoint = weights(tmp_path / "weights.pth")
    err = validated("--checkpoint", checkpoint, "--device", "cpu", "--num-gpu", 2, status=2)
    assert "--num-gpu 2 is more than the" in err


def test_values_that_no_flag_takes():
    with pytest.raises(InputError, match="--tta must be at least 0 and at most 10, not 11"):
        VALIDATE.validate(Config(evaluation=Evaluation(tta=11)))


def _validate_until_killed(argv):
    """Run the command, which beats faster than a real one. The second process is killed at its first batch."""
    many.watched = partial(many.watched, interval=0.3)
    if os.environ["RANK"] == "1":
        Meters.measure = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    run(argv)


def test_the_others_end_with_a_process_that_is_killed(images, tmp_path):
    path = weights(tmp_path / "weights.pth", classes=3)
    argv = ["validate", str(images), *FLAGS, "-j", "0", "-b", "4", "--device", "cpu", "--checkpoint", str(path)]
    environments = [
        {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": 3, "RANK": rank, "LOCAL_RANK": rank}
        for port in [free_port()]
        for rank in range(3)
    ]
    done = forked(tmp_path, _validate_until_killed, (argv,), environments)
    assert done.status == [1, -signal.SIGKILL, 1]
    assert "flashkat: error: process 1 has given no sign of life for 2 s: all others end" in done.stderr
