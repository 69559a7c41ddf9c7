"""How one model is evaluated: smaller batches, views, several GPUs, from Python."""

import importlib

import pytest
from tiny import MODEL, weights

from flashkat.evaluation.evaluate import evaluate

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


def test_more_gpus_than_there_are(validated, tmp_path):
    checkpoint = weights(tmp_path / "weights.pth")
    err = validated("--checkpoint", checkpoint, "--device", "cpu", "--num-gpu", 2, status=2)
    assert "--num-gpu 2 is more than the" in err
