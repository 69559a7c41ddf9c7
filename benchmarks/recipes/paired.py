"""Compare contenders by the differences that they show with the same seeds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from ..parts.common import Row, requirement, target

__all__ = ["Difference", "Setting", "difference", "groups", "scores", "targets", "tuned"]

Scores = dict[str, dict[int, float]]
Setting = tuple[str, int, int]

_CLAIMED_EPOCHS, _CLAIMED_SEEDS, _CLAIMED_POINTS = 300, 8, 1.0
_TUNED = ("lr=", "wd=")


@dataclass(frozen=True)
class Difference:
    """Paired differences in points of accuracy: of one contender, less those of another.

    Attributes:
        seeds: number of pairs.
        mean: their mean.
        error: standard error of the mean; NaN for one pair.
        low: lower end of the 95% interval of the mean, by Student's t; -inf for one pair.
        high: its upper end.
        better: number of pairs above 0.
        equal: number of pairs that are 0.
    """

    seeds: int
    mean: float
    error: float
    low: float
    high: float
    better: int
    equal: int


def difference(ones: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    """Compare accuracies by seed. Seeds that only one side has are left out; None means that there is no pair."""
    pairs = [ones[seed] - others[seed] for seed in sorted(ones.keys() & others.keys())]
    if not pairs:
        return None
    count, mean = len(pairs), statistics.fmean(pairs)
    # Accuracies are rounded, so that equal ones may differ by a rounding of their own.
    equal = sum(math.isclose(pair, 0, abs_tol=1e-9) for pair in pairs)
    better = sum(pair > 1e-9 for pair in pairs)
    if count == 1:
        return Difference(count, mean, math.nan, -math.inf, math.inf, better, equal)
    error = statistics.stdev(pairs) / math.sqrt(count)
    margin = float(stats.t.ppf(0.975, count - 1)) * error
    return Difference(count, mean, error, mean - margin, mean + margin, better, equal)


def groups(rows: Iterable[Row]) -> dict[Setting, list[Row]]:
    """Return the rows by what has to agree for a comparison: split, epochs, and epochs of the ViT to start from."""
    found: dict[Setting, list[Row]] = {}
    for row in rows:
        found.setdefault((row["split"], row["epochs"], row["from_epochs"]), []).append(row)
    return dict(sorted(found.items()))


def scores(rows: Iterable[Row], metric: str = "top1") -> Scores:
    """Return the accuracies by contender and seed."""
    found: Scores = {}
    for row in rows:
        found.setdefault(row["contender"], {})[row["seed"]] = row[metric]
    return found


def tuned(rows: Sequence[Row]) -> dict[str, tuple[str, int]]:
    """Choose learning rate and weight decay.

    Returns:
        By the name without these two: the contender with the highest mean accuracy, and from how many it was chosen.
    """
    found: dict[str, list[tuple[float, str]]] = {}
    for name, by_seed in scores(rows).items():
        choices = ",".join(part for part in name.split(",") if not part.startswith(_TUNED))
        found.setdefault(choices, []).append((statistics.fmean(by_seed.values()), name))
    return {choices: (max(tried)[1], len(tried)) for choices, tried in found.items()}


def targets(rows: Sequence[Row]) -> list[Row]:
    """Return the targets: the goal for CIFAR-10, of the KAT and the ViT with the most seeds on the test images."""
    found = scores(groups(rows).get(("test", _CLAIMED_EPOCHS, 0), []))
    kat, vit = (
        max((by_seed for name, by_seed in found.items() if name.startswith(family)), key=len, default={})
        for family in ("kat", "vit")
    )
    seen = difference(kat, vit)
    enough = seen if seen is not None and seen.seeds >= _CLAIMED_SEEDS else None
    what = f"KAT's top-1 over ViT's, {_CLAIMED_SEEDS} seeds, {_CLAIMED_EPOCHS} epochs"
    return [
        target(f"{what}: points", None if enough is None else enough.mean, _CLAIMED_POINTS, at_least=True),
        requirement(f"{what}: the 95% interval is above 0", None if enough is None else enough.low > 0),
    ]
