"""Evaluations in the rows of a run's summary: the names of their columns, and the best value of a metric."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["PREFIXES", "best_of", "results", "score"]

PREFIXES = {"state_dict": "eval", "state_dict_ema": "eval_ema"}
"""The prefixes of columns, by the name of the evaluated weights in a checkpoint."""


def score(metric: str, value: float) -> float:
    """Return a metric's value with a sign such that more is better."""
    return -value if metric == "loss" else value


def best_of(rows: Iterable[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Find the first of a metric's best values.

    Args:
        rows: rows of the summary.
        metric: ``top1``, ``top5`` or ``loss``.

    Returns:
        The value as ``metric``, its ``weights`` and its ``epoch``; empty if no row has the metric.
    """
    found = [
        {"metric": row[f"{prefix}_{metric}"], "weights": weights, "epoch": row["epoch"]}
        for row in rows
        for weights, prefix in PREFIXES.items()
        if f"{prefix}_{metric}" in row
    ]
    return max(found, key=lambda best: score(metric, best["metric"]), default={})


def results(history: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> dict[str, Any]:
    """Return what KAT's and timm's scripts print at the end of training, after ``--result``.

    Args:
        history: the summary's row of each epoch.
        best: the best value of a metric and its ``epoch``; empty without any.

    Returns:
        ``all`` epochs with their ``train`` and ``validation`` metrics, and the ``best`` one of them, if there is one.
        As there, the averaged weights are validated where they were evaluated.
    """
    epochs = [
        {"epoch": row["epoch"], "train": {"loss": row["train_loss"]}, "validation": _last_evaluation(row)}
        for row in history
    ]
    found = [epoch for epoch in epochs if epoch["epoch"] == best.get("epoch")]
    return {"all": epochs, **({"best": found[0]} if found else {})}


def _last_evaluation(row: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the metrics of an epoch's last evaluation."""
    for prefix in reversed(PREFIXES.values()):
        if f"{prefix}_loss" in row:
            return {name: row[f"{prefix}_{name}"] for name in ("loss", "top1", "top5")}
    return None
