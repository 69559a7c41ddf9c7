"""Fit P(x) / Q(x) to a function of one variable, or to points: :func:`flashkat.fit`."""

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..defaults import FIT_METHODS
from ..errors import InputError, explain
from ..ops import rational_reference
from .functions import named_function
from .solvers import Points, evaluate, least_squares, minimax

__all__ = ["FITTED", "REACH", "Fit", "Function", "Tail", "fit"]

Function = Callable[[Tensor], Tensor]
_Numbers = Tensor | np.ndarray | Sequence[float]

FITTED = (-3.0, 3.0)
"""The interval on which the starts are fitted."""

REACH = 8 / 3
"""A tail ends where the distance to the middle of the interval is this multiple of half its width."""

# Least squares takes Chebyshev nodes. Minimax and the errors take a uniform grid, which has kinks such as ReLU's.
_NODES, _GRID, _TAIL_NODES, _TAIL_GRID = 400, 4001, 60, 401
# More points make one search take minutes.
_MOST_POINTS = 10_000
# Powers of larger values overflow, some in float32 alone.
_LARGEST_VALUE, _LARGEST_X = 1e30, 1e6
# A coefficient's share of its polynomial below which it is rounding.
_NEGLIGIBLE = 1e-9
# Characters of a file, and coefficients in it.
_LONGEST_FILE, _MOST_COEFFICIENTS = 100_000, 1000


@dataclass(frozen=True)
class Tail:
    """One side beyond the interval of a fit, out to 8/3 of the interval's half-width.

    Attributes:
        x: where the error is largest; the tail's end if the function is known nowhere on it.
        value: the fit there.
        error: the fit minus the function there, None if that is not known.
    """

    x: float
    value: float
    error: float | None


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A rational that was fitted to a function: its coefficients, and how well it follows.

    It unpacks to numerator and denominator. It can be called, and is a ``start`` of :class:`flashkat.GroupRational`.

    Attributes:
        name: of the function.
        numerator: float64, (m,).
        denominator: float64, (n,), not negative.
        interval: where it was fitted.
        method: "least-squares" or "minimax".
        largest_error: largest absolute error in the interval, without weights.
        largest_error_at: its x.
        rms_error: root of the mean square of the errors in the interval.
        tails: left and right of the interval.
    """

    name: str
    numerator: Tensor
    denominator: Tensor
    interval: tuple[float, float]
    method: str
    largest_error: float
    largest_error_at: float
    rms_error: float
    tails: tuple[Tail, Tail]

    @property
    def slopes(self) -> tuple[float, float]:
        """The limits of F(x) / x at minus and plus infinity, from the degrees and leading coefficients.

        A term below 1e-9 of its polynomial at the interval's end is rounding, and counts as 0.
        """
        size = max(map(abs, self.interval))
        top, p = _leading(self.numerator, size)
        bottom, q = _leading(
            torch.cat([torch.ones(1, dtype=torch.float64, device="cpu"), self.denominator.abs()]), size
        )
        if p - 1 < q or not top:
            return 0.0, 0.0
        right = top / bottom if p - 1 == q else math.copysign(math.inf, top)
        return right if p % 2 else -right, right

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """Copies of numerator and denominator."""
        return self.numerator.clone(), self.denominator.clone()

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.numerator, self.denominator))

    def __call__(self, x: Tensor) -> Tensor:
        """Return F(x) for each element of a tensor. Integers are taken for PyTorch's default dtype."""
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        numerator, denominator = (each.to(x.device)[None] for each in self)
        return rational_reference(x[..., None], numerator, denominator)[..., 0]

    def __repr__(self) -> str:
        low, high = self.interval
        degrees = f"m={len(self.numerator)}, n={len(self.denominator)}"
        return f"<fit of {self.name} on [{low:g}, {high:g}], {degrees}, largest error {self.largest_error:.2g}>"

    def to_json(self) -> str:
        """Return everything as JSON, which :meth:`read` takes. A slope without bound is "inf" or "-inf"."""
        slopes = [slope if math.isfinite(slope) else str(slope) for slope in self.slopes]
        tables = {"numerator": self.numerator.tolist(), "denominator": self.denominator.tolist()}
        fields = {**vars(self), **tables, "tails": [asdict(tail) for tail in self.tails], "slopes": slopes}
        return json.dumps(fields, indent=4)

    @classmethod
    def read(cls, path: str | Path) -> "Fit":
        """Read a file of ``flashkat fit --output``.

        Raises:
            InputError: there is no such file, or it holds something else.
        """
        with explain(f"cannot read {path}"), Path(path).open(encoding="utf-8") as file:
            text = file.read(_LONGEST_FILE + 1)
        try:
            if len(text) > _LONGEST_FILE:
                raise ValueError(f"more than {_LONGEST_FILE:,} characters")
            found = json.loads(text)
            low, high = map(_number, found["interval"])
            left, right = (
                Tail(_number(tail["x"]), _number(tail["value"]), tail["error"] and _number(tail["error"]))
                for tail in found["tails"]
            )
            return cls(
                name=str(found["name"])[:100],
                numerator=_table(found["numerator"], least=1),
                denominator=_table(found["denominator"], least=0),
                interval=(low, high),
                method=str(found["method"])[:100],
                tails=(left, right),
                **{key: _number(found[key]) for key in ("largest_error", "largest_error_at", "rms_error")},
            )
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise InputError(f"{path} is no fit: give a file that flashkat fit --output wrote") from error


def fit(
    function: Function | str | tuple[_Numbers, _Numbers],
    m: int = 6,
    n: int = 4,
    interval: tuple[float, float] | None = None,
    method: str = "least-squares",
    weight: Function | _Numbers | None = None,
    tail_weight: float = 0.0,
) -> Fit:
    """Fit P(x) / Q(x) = (a_0 + ... + a_{m-1} x^{m-1}) / (1 + b_1 |x| + ... + b_n |x|^n), with b >= 0.

    "least-squares" is variable projection: scipy's bounded search finds the denominator, and the numerator is linear.
    "minimax" makes the largest error as small as possible. It is differential correction, a sequence of linear programs
    for scipy's HiGHS, which leads to the best fit from any start. Lawson's reweighting may stop before that. Below
    errors of about 1e-8 the programs' tolerance limits it.

    The same call gives the same result. :mod:`flashkat.nn.solvers` has the sources.

    Args:
        function: maps a float64 tensor of shape (points,) to one of the same shape; or a name of
            :data:`flashkat.nn.FUNCTIONS`; or points (x, y), at most 10,000.
        m: number of numerator coefficients, at least 1.
        n: number of denominator coefficients, at least 0.
        interval: where the fit matters; by default (-3, 3), and all x of points.
        method: "least-squares" or "minimax".
        weight: multiplies the errors, as in ``numpy.polyfit``: a function of x, or a number for each point.
        tail_weight: how much the function matters beyond the interval, out to 8/3 of its half-width; 1 is as much as
            inside. Values there that are not finite or above 1e30 do not count.

    Returns:
        The coefficients and the errors.

    Raises:
        InputError: degrees, an interval or weights that make no sense, or a function that is not finite on the
            interval.
    """
    if m < 1 or n < 0:
        raise InputError(f"a fit needs m >= 1 and n >= 0, not m={m} and n={n}")
    if method not in FIT_METHODS:
        raise InputError(f"unknown method {method!r}: choose {' or '.join(FIT_METHODS)}")
    if not 0 <= tail_weight < math.inf:
        raise InputError(f"tail_weight must be finite and at least 0, not {tail_weight}")
    if isinstance(function, str) or callable(function):
        interval = _checked(interval or FITTED)
        name = function if isinstance(function, str) else _name(function)
        with explain(f"cannot fit {name}"):
            known = named_function(function) if isinstance(function, str) else function
        fine = _sampled(name, known, weight, *_fine(*interval))
        coarse = _sampled(name, known, weight, *_coarse(*interval))
    else:
        name = "the points"
        with explain("cannot read the points"):
            x, y = _arrays(*function)
        coarse = fine = _given(x, y, interval, weight)
        interval = _checked(interval or (float(fine.x[0]), float(fine.x[-1])))
        if len(np.unique(fine.x[fine.is_inside & (fine.weight > 0)])) < m + n:
            wanted = f"at least {m + n} points at different x with a weight"
            raise InputError(f"{m} + {n} coefficients need {wanted}: give more, or lower m and n")
    with explain(f"cannot fit {name}"):
        size = max(map(abs, interval))
        a, b = _solved(method, m, n, size, _bytes(coarse.weighed(tail_weight)), _bytes(fine.weighed(tail_weight)))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError(
            f"cannot fit {name}: the coefficients are not finite: choose lower m and n, or another interval"
        )
    return _judged(name, a.copy(), b.copy(), fine, interval, method)


class _Sample(NamedTuple):
    """A function at points: x, y, whether they are inside the interval, and the user's weights."""

    x: np.ndarray
    y: np.ndarray
    is_inside: np.ndarray
    weight: np.ndarray

    def weighed(self, tail_weight: float) -> Points:
        """Return the points that count."""
        weight = self.weight * np.where(self.is_inside, 1.0, tail_weight)
        # In the interval, larger values are an error.
        counts = (np.abs(self.y) <= _LARGEST_VALUE) & (weight > 0)
        return Points(self.x[counts], self.y[counts], weight[counts])


def _checked(interval: tuple[float, float]) -> tuple[float, float]:
    low, high = map(float, interval)
    if not -_LARGEST_X <= low < high <= _LARGEST_X:
        raise InputError(f"a fit needs low < high, both within {_LARGEST_X:g} of 0, not interval={interval}")
    return low, high


def _coarse(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the x of least squares, and whether they are inside."""
    middle, half = (low + high) / 2, (high - low) / 2
    nodes = np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
    tail = np.linspace(1, REACH, _TAIL_NODES)
    x = middle + half * np.concatenate([nodes, tail, -tail])
    return x, np.arange(len(x)) < _NODES


def _fine(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the x of minimax and of the errors, in ascending order, and whether they are inside."""
    middle, half = (low + high) / 2, (high - low) / 2
    tail = np.linspace(1, REACH, _TAIL_GRID)[1:]
    x = np.concatenate([middle - half * tail[::-1], np.linspace(low, high, _GRID), middle + half * tail])
    return x, (low <= x) & (x <= high)


def _sampled(
    name: str, function: Function, weight: Function | _Numbers | None, x: np.ndarray, is_inside: np.ndarray
) -> _Sample:
    y = _values(name, function, x)
    wrong = is_inside & ~(np.abs(y) <= _LARGEST_VALUE)
    if wrong.any():
        fault = "too large" if math.isfinite(y[wrong][0]) else "not finite"
        raise InputError(f"{name} is {fault} at x={x[wrong][0]:g}: choose an interval where it has ordinary values")
    return _Sample(x, y, is_inside, _weights(weight, x, is_inside))


def _given(x: np.ndarray, y: np.ndarray, interval: tuple[float, float] | None, weight: Any) -> _Sample:
    """Return points as a sample, in ascending order of x."""
    if x.ndim != 1 or x.shape != y.shape or not 0 < len(x) <= _MOST_POINTS:
        wanted = f"two series of the same length, from 1 to {_MOST_POINTS:,}"
        raise InputError(f"points are {wanted}, not of shapes {x.shape} and {y.shape}")
    wrong = ~(np.abs(x) <= _LARGEST_X) | ~(np.abs(y) <= _LARGEST_VALUE)
    if wrong.any():
        raise InputError(
            f"the point ({x[wrong][0]:g}, {y[wrong][0]:g}) is not finite, or its numbers are too large: leave it out"
        )
    if interval is None and x.min() == x.max():
        raise InputError(f"all points have x={x[0]:g}: give points at different x")
    low, high = _checked(interval or (float(x.min()), float(x.max())))
    is_inside = (low <= x) & (x <= high)
    if not is_inside.any():
        raise InputError(f"no point has its x in [{low:g}, {high:g}]: choose another interval")
    order = np.argsort(x, kind="stable")
    return _Sample(x[order], y[order], is_inside[order], _weights(weight, x, is_inside)[order])


def _weights(weight: Function | _Numbers | None, x: np.ndarray, is_inside: np.ndarray) -> np.ndarray:
    if weight is None:
        return np.ones(len(x))
    with explain("cannot read the weights"):
        found = _values("the weight", weight, x) if callable(weight) else _arrays(weight)[0]
    if found.shape != x.shape:
        raise InputError(f"weight is a function, or a number for each of {len(x):,} points, not of shape {found.shape}")
    # The weight of a tail may be unknown, as its function may be.
    found = np.where(is_inside, found, np.nan_to_num(found, nan=0, posinf=0, neginf=0))
    if not ((found >= 0) & (found <= _LARGEST_VALUE)).all() or not found[is_inside].any():
        raise InputError("weights must be finite and at least 0, and one in the interval must be above 0")
    return found


def _values(name: str, function: Function, x: np.ndarray) -> np.ndarray:
    # A default device, such as meta while a model's size is estimated, is not where numbers are computed.
    with explain(f"cannot evaluate {name} on a float64 tensor"), torch.no_grad(), torch.device("cpu"):
        y = function(torch.from_numpy(x.copy()))
        if not isinstance(y, Tensor) or y.shape != x.shape or y.is_complex():
            what = f"a tensor of shape {tuple(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise InputError(f"{name} must map a tensor of shape ({len(x)},) to real numbers of this shape, not {what}")
    return _arrays(y)[0]


def _arrays(*values: Any) -> list[np.ndarray]:
    return [torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().numpy() for value in values]


def _name(function: Function) -> str:
    return getattr(function, "name", "") or getattr(function, "__name__", type(function).__name__)


def _bytes(points: Points) -> bytes:
    return np.stack(points).tobytes()


@functools.lru_cache(maxsize=64)
def _solved(method: str, m: int, n: int, size: float, coarse: bytes, fine: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Solve. A model has many rationals of one start, and the values of a function say which it is."""
    found = least_squares(Points(*np.frombuffer(coarse).reshape(3, -1)), m, n, size)
    if method == "minimax":
        found = minimax(Points(*np.frombuffer(fine).reshape(3, -1)), found, size)
    return found


def _judged(
    name: str, a: np.ndarray, b: np.ndarray, sample: _Sample, interval: tuple[float, float], method: str
) -> Fit:
    error = evaluate(a, b, sample.x) - sample.y
    inside, low, high = sample.is_inside, *interval
    worst = np.argmax(np.abs(error[inside]))

    def tail(is_there: np.ndarray, end: float) -> Tail:
        known = np.flatnonzero(is_there & np.isfinite(error))
        at = known[np.argmax(np.abs(error[known]))] if len(known) else None
        x = end if at is None else float(sample.x[at])
        return Tail(x, float(evaluate(a, b, np.array(x))), None if at is None else float(error[at]))

    reach = (REACH - 1) * (high - low) / 2
    return Fit(
        name=name,
        numerator=torch.from_numpy(a),
        denominator=torch.from_numpy(b),
        interval=interval,
        method=method,
        largest_error=float(np.abs(error[inside])[worst]),
        largest_error_at=float(sample.x[inside][worst]),
        rms_error=float(np.sqrt(np.square(error[inside]).mean())),
        tails=(tail(sample.x < low, low - reach), tail(sample.x > high, high + reach)),
    )


def _leading(coefficients: Tensor, size: float) -> tuple[float, int]:
    """Return the last coefficient that counts, and its power."""
    terms = [abs(each) * size**power for power, each in enumerate(coefficients.tolist())]
    power = max((power for power, term in enumerate(terms) if term > _NEGLIGIBLE * sum(terms)), default=0)
    return float(coefficients[power]), power


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _table(values: Any, least: int) -> Tensor:
    if not isinstance(values, list) or not least <= len(values) <= _MOST_COEFFICIENTS:
        raise ValueError("no table of coefficients")
    return torch.tensor([_number(value) for value in values], dtype=torch.float64, device="cpu")
