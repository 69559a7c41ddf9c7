"""Which epoch, and which weights, are the best."""

import pytest
import torch

from flashkat.training.outputs.summary import best_of, score


def checkpoint_of(folder, name="last.pth.tar"):
    return torch.load(folder / name, weights_only=True)


@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_best_by_another_metric(train, summary_of, metric):
    folder = train("--epochs", 3, "--eval-metric", metric, "--lr", 0.1, "--warmup-epochs", 0)
    values = [row[f"eval_{metric}"] for row in summary_of(folder)]
    best = min(values) if metric == "loss" else max(values)
    assert checkpoint_of(folder, "model_best.pth.tar")["metric"] == pytest.approx(best, abs=1e-4)


def test_best_says_which_weights_it_is_of(train, summary_of, monkeypatch):
    folder = train("--epochs", 2, "--model-ema", "--model-ema-decay", 0.5, "--lr", 0.1, "--warmup-epochs", 0)
    best, rows = checkpoint_of(folder, "model_best.pth.tar"), summary_of(folder)
    column = {"state_dict": "eval_top1", "state_dict_ema": "eval_ema_top1"}[best["metric_weights"]]
    assert max(row[name] for row in rows for name in ("eval_top1", "eval_ema_top1")) == best["metric"]
    assert rows[best["epoch"]][column] == best["metric"]


def test_best_of_rows():
    rows = [{"eval_top1": 10.0, "eval_loss": 2.0}, {"lr": 0.1}, {"eval_top1": 30.0, "eval_ema_top1": 30.0}]
    assert best_of(rows, "top1") == {"metric": 30.0, "weights": "state_dict"}
    assert best_of([*rows, {"eval_ema_top1": 31.0}], "top1") == {"metric": 31.0, "weights": "state_dict_ema"}
    assert best_of([*rows, {"eval_loss": 1.0}], "loss") == {"metric": 1.0, "weights": "state_dict"}
    assert best_of(rows, "top5") == {}


def test_less_loss_is_more():
    assert score("loss", 1.0) > score("loss", 2.0)
    assert score("top5", 1.0) < score("top5", 2.0)
