"""What the rows of a run's summary say of evaluations: under which names, and which value of a metric is the best."""

from collections.abc import Iterable
from typing import Any

__all__ = ["PREFIXES", "best_of", "score"]

PREFIXES = {"state_dict": "eval", "state_dict_ema": "eval_ema"}
"""How the columns of a model's weights and of their average begin, by the names of these in a checkpoint."""


def score(metric: str, value: float) -> float:
    """A metric's value so that more is better."""
    return -value if metric == "loss" else value


def best_of(rows: Iterable[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Return the first of a metric's best values, which weights had it, and in which epoch; empty without any."""
    found = [
        {"metric": row[f"{prefix}_{metric}"], "weights": weights, "epoch": row.get("epoch")}
        for row in rows
        for weights, prefix in PREFIXES.items()
        if f"{prefix}_{metric}" in row
    ]
    return max(found, key=lambda best: score(metric, best["metric"]), default={})
