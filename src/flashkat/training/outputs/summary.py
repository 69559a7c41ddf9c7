"""Evaluations in the rows of a run's summary: the names of their columns, and the best value of a metric."""

from collections.abc import Iterable
from typing import Any

__all__ = ["PREFIXES", "best_of", "score"]

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
