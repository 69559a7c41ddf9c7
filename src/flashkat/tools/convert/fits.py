"""The rational that takes an activation's place: a named start, or a fit of the function itself."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...nn.fitting import FITTED, Fit, fit
from ...nn.functions import FUNCTIONS
from ...nn.group_rational import GroupRational
from ...nn.starts import TAIL_WEIGHT, starting_coefficients
from ...ops import rational_reference
from .known import Start

__all__ = ["Chosen", "Fits", "UnfitError", "coefficient_dtype"]

# Half widths of the intervals that are tried, if the inputs lie beyond the first.
_WIDTHS = tuple(FITTED[1] * times for times in (1, 2, 4, 8))
# Narrower ones follow a function less far, so they are tried only if the errors exceed this share of its values.
_NARROW = tuple(FITTED[1] / times for times in (2, 4, 8, 16, 32, 64))
_LARGE_ERROR = 0.01

_GRID = torch.linspace(-8, 8, 257, dtype=torch.float64)


class Chosen(NamedTuple):
    """A rational that stands for a function.

    Args:
        name: the named start, or "fit".
        start: what a module starts as: the name, or a fit on another interval or of another function.
        degrees: numbers of numerator and denominator coefficients.
        error: the largest difference from the function, on the numbers that it was chosen for.
        half: half the width of the interval of the fit, around 0.
    """

    name: str
    start: str | Fit
    degrees: tuple[int, int]
    error: float
    half: float

    def rational(self, channels: int, groups: int, dim: int, like: Tensor) -> GroupRational:
        """Return a module that starts so, on a tensor's device."""
        m, n = self.degrees
        dtype = coefficient_dtype(like)
        return GroupRational(channels, groups, m=m, n=n, start=self.start, dim=dim, device=like.device, dtype=dtype)


def coefficient_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of coefficients for an activation's input: in 16 bits they would round too far."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


class UnfitError(Exception):
    """A place that gets no rational. The message says why."""


class Fits:
    """Fits of functions, with so many coefficients.

    Args:
        m: number of numerator coefficients.
        n: number of denominator coefficients.
    """

    def __init__(self, m: int, n: int) -> None:
        self._degrees = m, n

    @torch.no_grad()
    def choose(self, start: Start, function: Callable[[Tensor], Tensor], sample: Tensor) -> Chosen:
        """Choose the fit that is nearest to a function on a sample of its inputs.

        Args:
            start: what the rational starts as; None is the function itself.
            function: the activation that it replaces.
            sample: inputs of the activation.

        Raises:
            UnfitError: it cannot be fitted.
        """
        wanted = FUNCTIONS[start] if isinstance(start, str) else start or function
        try:
            name = start if isinstance(start, str) else _name(wanted)
            return self._nearest(name, wanted, sample)
        except (ValueError, TypeError, RuntimeError) as error:
            raise UnfitError(f"it cannot be fitted: {str(error).splitlines()[0]}") from error

    def _nearest(self, name: str, wanted: Callable[[Tensor], Tensor], sample: Tensor) -> Chosen:
        value = wanted(sample)
        known = value.isfinite() & sample.isfinite()
        if not known.any():
            raise ValueError("it is finite at no input")
        # The identity is exact everywhere. Beyond the inputs, a wider interval only costs precision.
        widths = _WIDTHS[:1] if name == "identity" else _WIDTHS
        furthest = float(sample[known].abs().max())

        def tried(half: float) -> tuple[float, Chosen]:
            start = name if name != "fit" and half == _WIDTHS[0] else self._fitted(name, wanted, half)
            numerator, denominator = starting_coefficients(start, *self._degrees)
            found = rational_reference(sample[:, None], numerator[None], denominator[None])[:, 0]
            differences = (found - value)[known]
            error = float(differences.abs().max())
            return float(differences.square().mean()), Chosen(name, start, self._degrees, error, half)

        best = tried(widths[0])
        # Inputs that are all 0 say nothing about a scale.
        allowed = _LARGE_ERROR**2 * float(value[known].square().mean()) or math.inf
        wider = (half for last, half in itertools.pairwise(widths) if last < furthest)
        narrower = (half for half in _NARROW if half >= furthest and best[0] > allowed)
        for half in itertools.chain(wider, narrower):
            found = tried(half)
            if found[0] >= best[0]:
                break
            best = found
        return best[1]

    def _fitted(self, name: str, function: Callable[[Tensor], Tensor], half: float) -> Fit:
        found = fit(function, *self._degrees, interval=(-half, half), tail_weight=TAIL_WEIGHT)
        return found if name == "fit" else replace(found, name=name)


def _name(function: Callable[[Tensor], Tensor]) -> str:
    """Return the named start that is this function, or "fit"."""
    values = function(_GRID)
    for name, known in FUNCTIONS.items():
        if name != "identity" and torch.allclose(values, known(_GRID), rtol=0, atol=1e-12):
            return name
    return "fit"
