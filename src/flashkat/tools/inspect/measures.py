"""Measure learned functions: the nearest known one, how far they moved, and what may be wrong with them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...nn.fitting import FITTED
from ...nn.learned.drawing import start_of
from ...nn.learned.inputs import ends
from ...nn.learned.rationals import Learned
from ...nn.starts import FUNCTIONS

__all__ = ["KNOWN", "Measures", "interval", "measure", "table"]

_SYNONYMS = ("gelu_old", "silu")
KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": torch.ones_like,
    **{name: function for name, function in FUNCTIONS.items() if name not in _SYNONYMS},
    "abs": torch.abs,
    "square": torch.square,
    "sin": torch.sin,
}
"""The functions that learned ones are compared with: the starts, and a few more."""

_POINTS = 301
# A mean slope below this passes next to nothing on.
_DEAD = 1e-3
# Outputs of so many times the input, or of 1, overflow soon.
_EXPLODING = 100.0


@dataclass(frozen=True)
class Measures:
    """What is measured of one group's function.

    Differences are root mean squares over ``interval``. Numbers are NaN if coefficients are not finite.

    Attributes:
        layer: the rational's module name.
        group: the group, from 0.
        nearest: the known function that is nearest, after multiplication by a factor.
        factor: that factor, by least squares.
        distance: the difference from the nearest function.
        moved: the difference from the start.
        slope_at_0: F'(0); the mean of both sides where they differ.
        lowest: the least F on the interval.
        highest: the greatest F on the interval.
        smallest_q: the least denominator on the interval. It is at least 1, so there are no poles.
        largest_q: the greatest one.
        interval: the inputs from their 0.1% to their 99.9% quantile; the fitted interval without data.
        inside: the share of the inputs within the fitted interval; None without data.
        flags: ``dead`` (constant), ``exploding`` (outputs of 100 times the input), ``not finite``.
    """

    layer: str
    group: int
    nearest: str
    factor: float
    distance: float
    moved: float
    slope_at_0: float
    lowest: float
    highest: float
    smallest_q: float
    largest_q: float
    interval: tuple[float, float]
    inside: float | None
    flags: tuple[str, ...]


def interval(samples: Tensor | None) -> tuple[float, float]:
    """Return where a function matters: between the ends of its inputs, or where its start was fitted."""
    if samples is None:
        return FITTED
    finite = samples[samples.isfinite()]
    return ends(finite) if len(finite) else FITTED


def measure(functions: Mapping[str, Learned], inputs: Mapping[str, Tensor]) -> list[Measures]:
    """Measure every group of every rational.

    Args:
        functions: the learned functions by module name.
        inputs: samples of their inputs, (groups, samples), by module name; may be empty.
    """
    return [
        _measure(name, group, function, start, None if samples is None else samples[group])
        for name, function in functions.items()
        for start in [start_of(function)]
        for samples in [inputs.get(name)]
        for group in range(function.groups)
    ]


def _measure(layer: str, group: int, function: Learned, start: Learned, samples: Tensor | None) -> Measures:
    a, b = (torch.tensor(row, dtype=torch.float64) for row in function.rows[group])
    one = Learned(function.start, a[None], b[None])
    low, high = interval(samples)
    x = torch.linspace(low, high, _POINTS, dtype=torch.float64)
    y = one(x)[0]
    q = 1 + sum(weight * x.abs() ** power for power, weight in enumerate(b.abs().tolist(), start=1))
    q = q if isinstance(q, Tensor) else torch.ones_like(x)
    nearest, factor, distance = _nearest(x, y)
    return Measures(
        layer=layer,
        group=group,
        nearest=nearest,
        factor=factor,
        distance=distance,
        moved=_rms(y - start(x)[0]),
        slope_at_0=float(a[1]) if len(a) > 1 else 0.0,
        lowest=float(y.min()),
        highest=float(y.max()),
        smallest_q=float(q.min()),
        largest_q=float(q.max()),
        interval=(low, high),
        inside=None if samples is None else _inside(samples),
        flags=_flags(one, x, y, samples),
    )


def _nearest(x: Tensor, y: Tensor) -> tuple[str, float, float]:
    """Return the nearest known function, its factor and the distance."""
    known = torch.stack([function(x) for function in KNOWN.values()])
    factors = (known @ y / known.square().sum(1)).where(known.any(1), 0)
    distances = (y - factors[:, None] * known).square().mean(1).sqrt()
    # Rounding is no reason to prefer a later name.
    index = int((distances <= distances.min() * (1 + 1e-9)).int().argmax())
    return list(KNOWN)[index], float(factors[index]), float(distances[index])


def _flags(function: Learned, x: Tensor, y: Tensor, samples: Tensor | None) -> tuple[str, ...]:
    if not (function.numerator.isfinite().all() and function.denominator.isfinite().all()):
        return ("not finite",)
    flags = []
    width = float(x[-1] - x[0])
    if width > 0 and float(y.max() - y.min()) < _DEAD * width:
        flags.append("dead")
    if samples is not None:
        finite = samples[samples.isfinite()].double()
        outer = torch.stack([finite.min(), finite.max()]) if len(finite) else x[:0]
        x, y = torch.cat([x, outer]), torch.cat([y, function(outer)[0]])
    if bool((y.abs() > _EXPLODING * x.abs().clamp(min=1)).any()):
        flags.append("exploding")
    return tuple(flags)


def _inside(samples: Tensor) -> float:
    return float(((samples >= FITTED[0]) & (samples <= FITTED[1])).double().mean())


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


_HEAD = ("layer", "group", "nearest", "distance", "moved", "slope at 0", "outputs", "Q", "inputs", "inside", "")


def table(measures: list[Measures]) -> str:
    """Return the measures as a table, with a line for each group."""
    rows = [_HEAD, *map(_row, measures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(each: Measures) -> tuple[str, ...]:
    low, high = each.interval
    return (
        each.layer,
        str(each.group),
        "-" if math.isnan(each.factor) else f"{each.factor:.3g} {each.nearest}",
        f"{each.distance:.2g}",
        f"{each.moved:.2g}",
        f"{each.slope_at_0:.3g}",
        f"{each.lowest:.3g} to {each.highest:.3g}",
        f"{each.smallest_q:.3g} to {each.largest_q:.3g}",
        "-" if each.inside is None else f"{low:.3g} to {high:.3g}",
        "-" if each.inside is None else f"{each.inside:.1%}",
        ", ".join(each.flags),
    )
