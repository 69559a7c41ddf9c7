"""Starting functions: coefficients of P(x) / Q(x) that make a rational begin as a known function.

Coefficients in circulation were fitted to the denominator 1 + |b_1 x + ... + b_n x^n|. These are fitted to the one used
here, 1 + |b_1| |x| + ... + |b_n| |x|^n. ``starts.json`` holds those of the named functions with the default degrees,
and ``python -m flashkat.nn.starts`` prints it. Others are fitted when they are asked for.
"""

import argparse
import functools
import json
from importlib import resources

import torch
from torch import Tensor

from ..ops import rational_reference
from .fitting import Fit, Function, fit
from .functions import FUNCTIONS, named_function

__all__ = ["FUNCTIONS", "TAIL_WEIGHT", "Start", "fit", "kept_start", "starting_coefficients", "variance_gain"]

Start = str | Fit | Function
"""What a rational starts as: a name in :data:`FUNCTIONS`, a fit, or a function that will be fitted."""

_STORED = "starts.json"
_STORED_DEGREES = (6, 4)

# Outside its interval a fit is free, and high powers leave the function fast. This weight pulls the named starts
# towards the function out to 8. It makes the fit inside less accurate (swish: 9e-6 in place of 5e-7).
TAIL_WEIGHT = 1 / 256


def starting_coefficients(start: Start, m: int = 6, n: int = 4) -> tuple[Tensor, Tensor]:
    """Return the coefficients of a starting function.

    Args:
        start: a key of :data:`FUNCTIONS`, a result of :func:`flashkat.fit`, or a function for it.
        m: number of numerator coefficients.
        n: number of denominator coefficients.

    Returns:
        Float64 tensors of shapes (m,) and (n,), on the CPU. "identity" is exact, and a Fit as it is. Others are fits on
        [-3, 3], drawn a little to the function out to 8.

    Raises:
        ValueError: an unknown name, numbers of coefficients that make no sense, cannot represent the identity or are
            not the Fit's, or a function that cannot be fitted.
    """
    if m < 1 or n < 0:
        raise ValueError(f"a rational needs m >= 1 and n >= 0 coefficients, not m={m} and n={n}")
    if isinstance(start, Fit):
        own = len(start.numerator), len(start.denominator)
        if own != (m, n):
            raise ValueError(
                f"the start was fitted with m={own[0]} and n={own[1]}, not m={m} and n={n}: give its m and n"
            )
        return start.numerator.clone(), start.denominator.clone()
    if not isinstance(start, str):
        return _fitted(start, m, n).tables
    named_function(start)
    if start == "identity":
        if m < 2:
            raise ValueError(f"the identity needs m >= 2 numerator coefficients, not {m}: choose another start or m")
        numerator = torch.zeros(m, dtype=torch.float64, device="cpu")
        numerator[1] = 1.0
        return numerator, torch.zeros(n, dtype=torch.float64, device="cpu")
    if (m, n) == _STORED_DEGREES:
        stored = _stored()[start]
        return (
            torch.tensor(stored["numerator"], dtype=torch.float64, device="cpu"),
            torch.tensor(stored["denominator"], dtype=torch.float64, device="cpu"),
        )
    return _fitted(start, m, n).tables


def kept_start(start: Start, m: int, n: int) -> str | Fit:
    """Return what a module keeps of its start, so that it can be pickled: a name, or a fit in place of a function.

    Raises:
        ValueError: as :func:`starting_coefficients`.
    """
    if isinstance(start, (str, Fit)):
        starting_coefficients(start, m, n)
        return start
    return _fitted(start, m, n)


def variance_gain(start: Start, m: int = 6, n: int = 4) -> float:
    """Return alpha = Var[x] / E[F(x)^2] for x ~ N(0, 1), for a starting function F.

    Weights of variance alpha / d_in after F keep the variance of their input (Yang & Wang, ICLR 2025, section 4.4).
    """
    import numpy as np

    # hermegauss integrates against exp(-x^2 / 2).
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    numerator, denominator = starting_coefficients(start, m, n)
    values = rational_reference(torch.from_numpy(nodes)[:, None], numerator[None], denominator[None])[:, 0].numpy()
    return float(weights.sum() / (weights * values**2).sum())


def _fitted(start: str | Function, m: int, n: int) -> Fit:
    return fit(start, m, n, tail_weight=TAIL_WEIGHT)


@functools.cache
def _stored() -> dict[str, dict[str, list[float]]]:
    return json.loads(resources.files(__package__).joinpath(_STORED).read_text())


def _fresh() -> str:
    """Fit every named function anew for the default degrees, and return the text of the table."""
    table = {}
    for name in FUNCTIONS:
        if name != "identity":
            numerator, denominator = _fitted(name, *_STORED_DEGREES)
            table[name] = {"numerator": numerator.tolist(), "denominator": denominator.tolist()}
    return json.dumps(table, indent=2) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m flashkat.nn.starts",
        description="Fit the starting functions anew, and print the table that the package ships as starts.json.",
    ).parse_args()
    print(_fresh(), end="")
