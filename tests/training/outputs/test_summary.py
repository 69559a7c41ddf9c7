"""Which epoch, and which weights, are the best."""

import pytest
import torch

from flashkat.training.outputs.summary import best_of, results, score


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
    first = {"epoch": 0, "eval_top1": 10.0, "eval_loss": 2.0}
    rows = [first, {"epoch": 1, "lr": 0.1}, {"epoch": 2, "eval_top1": 30.0, "eval_ema_top1": 30.0}]
    assert best_of(rows, "top1") == {"metric": 30.0, "weights": "state_dict", "epoch": 2}
    better = [*rows, {"epoch": 3, "eval_ema_top1": 31.0}]
    assert best_of(better, "top1") == {"metric": 31.0, "weights": "state_dict_ema", "epoch": 3}
    assert best_of([*rows, {"epoch": 3, "eval_loss": 1.0}], "loss")["epoch"] == 3
    assert best_of(rows, "top5") == {}


def test_less_loss_is_more():
    assert score("loss", 1.0) > score("loss", 2.0)
    assert score("top5", 1.0) < score("top5", 2.0)


def test_results_are_those_that_kats_script_prints():
    first = {"epoch": 0, "train_loss": 2.0, "lr": 0.1}
    second = {"epoch": 1, "train_loss": 1.0, "eval_loss": 1.5, "eval_top1": 50.0, "eval_top5": 90.0}
    third = {**second, "epoch": 2, "eval_ema_loss": 1.4, "eval_ema_top1": 60.0, "eval_ema_top5": 95.0}
    found = results([first, second, third], {"metric": 60.0, "epoch": 2})
    assert [epoch["validation"] for epoch in found["all"]] == [
        None,
        {"loss": 1.5, "top1": 50.0, "top5": 90.0},
        {"loss": 1.4, "top1": 60.0, "top5": 95.0},
    ]
    assert found["all"][0] == {"epoch": 0, "train": {"loss": 2.0}, "validation": None}
    assert found["best"] == found["all"][2]
    assert results([first], {}).keys() == {"all"}
