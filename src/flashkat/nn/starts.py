"""Starting functions: coefficients of P(x) / Q(x) that make a rational begin as a known activation.

Coefficients in circulation were fitted to the denominator 1 + |b_1 x + ... + b_n x^n|. These are fitted to the one used
here, 1 + |b_1| |x| + ... + |b_n| |x|^n. ``starts.json`` holds those of the default degrees, and
``python -m flashkat.nn.starts`` prints it. Other degrees are fitted when they are asked for.
"""

import argparse
import functools
import json
from collections.abc import Callable
from importlib import resources

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import rational_reference

__all__ = ["FUNCTIONS", "fit", "starting_coefficients", "variance_gain"]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
    "leaky_relu_0.1": lambda x: F.leaky_relu(x, 0.1),
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_old": F.gelu,
    "swish": F.silu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "geglu": lambda x: x * F.gelu(x),
    "swishglu": lambda x: x * F.silu(x),
    "erfc_Softplus_2": lambda x: torch.erfc(F.softplus(x)).square(),
}
"""The named starting functions; silu is swish, and geglu and swishglu are x gelu(x) and x swish(x).

KAT's code has the names gelu_old, an earlier fit of GELU, and erfc_Softplus_2, which is erfc(softplus(x))^2.
"""

_STORED = "starts.json"
_STORED_DEGREES = (6, 4)

# Outside its interval a fit is free, and high powers leave the function fast. This weight pulls the named starts
# towards the function out to 8. It makes the fit inside less accurate (swish: 9e-6 in place of 5e-7).
_START_TAIL_WEIGHT = 1 / 256
_TAIL_REACH = 8 / 3


def starting_coefficients(name: str, m: int = 6, n: int = 4) -> tuple[Tensor, Tensor]:
    """Return the coefficients of a named starting function.

    Args:
        name: a key of :data:`FUNCTIONS`.
        m: number of numerator coefficients.
        n: number of denominator coefficients.

    Returns:
        Float64 tensors of shapes (m,) and (n,). "identity" is exact; the others are fits on [-3, 3].

    Raises:
        ValueError: an unknown name, or numbers of coefficients that make no sense or cannot represent the identity.
    """
    if m < 1 or n < 0:
        raise ValueError(f"a rational needs m >= 1 and n >= 0 coefficients, not m={m} and n={n}")
    if name not in FUNCTIONS:
        raise ValueError(f"unknown starting function {name!r}: choose one of {', '.join(FUNCTIONS)}")
    if name == "identity":
        if m < 2:
            raise ValueError(f"the identity needs m >= 2 numerator coefficients, not {m}: choose another start or m")
        numerator = torch.zeros(m, dtype=torch.float64)
        numerator[1] = 1.0
        return numerator, torch.zeros(n, dtype=torch.float64)
    if (m, n) == _STORED_DEGREES:
        stored = _stored()[name]
        return (
            torch.tensor(stored["numerator"], dtype=torch.float64),
            torch.tensor(stored["denominator"], dtype=torch.float64),
        )
    numerator, denominator = _fitted(name, m, n)
    return numerator.clone(), denominator.clone()


def fit(
    function: Callable[[Tensor], Tensor],
    m: int = 6,
    n: int = 4,
    interval: tuple[float, float] = (-3.0, 3.0),
    tail_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Fit P / Q to a function of one variable, by least squares at Chebyshev nodes of an interval.

    For a given denominator the best numerator is a linear problem, so only the denominator is searched for (variable
    projection), under b >= 0, from several fixed starting points. The same call gives the same result.

    Args:
        function: maps a float64 tensor to a float64 tensor of the same shape, elementwise.
        m: number of numerator coefficients, at least 1.
        n: number of denominator coefficients, at least 0.
        interval: where the fit matters.
        tail_weight: how much the function matters beyond the interval, out to 8/3 of its half-width, where it is
            finite; 1 is as much as inside.

    Returns:
        Float64 tensors of shapes (m,) and (n,), the denominator's being non-negative.

    Raises:
        ValueError: degrees or an interval that make no sense, or a function that is not finite on the interval.
    """
    import numpy as np
    from scipy.optimize import least_squares

    low, high = interval
    if m < 1 or n < 0 or not low < high:
        raise ValueError(f"a fit needs m >= 1, n >= 0 and low < high, not m={m}, n={n}, interval={interval}")
    middle, half = (low + high) / 2, (high - low) / 2
    nodes = np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    tail = np.linspace(1, _TAIL_REACH, 60)
    x = middle + half * np.concatenate([nodes, tail, -tail])
    weight = np.where(np.abs(x - middle) < half, 1.0, tail_weight)
    y = function(torch.from_numpy(x)).numpy()
    finite = np.isfinite(y)
    if not finite[: len(nodes)].all():
        raise ValueError(f"the function is not finite everywhere on [{low}, {high}]")
    x, y, weight = x[finite], y[finite], weight[finite]

    # Powers of x / size are all of order one, which keeps the least-squares problems well conditioned.
    size = max(abs(low), abs(high))
    powers = (x[:, None] / size) ** np.arange(m)
    magnitudes = np.abs(x[:, None] / size) ** np.arange(1, n + 1)

    def residual(b: "np.ndarray") -> "np.ndarray":
        return best_numerator(b)[1]

    def best_numerator(b: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
        basis = powers / (1 + magnitudes @ b)[:, None] * weight[:, None]
        a = np.linalg.lstsq(basis, y * weight, rcond=None)[0]
        return a, basis @ a - y * weight

    random = np.random.default_rng(0)
    candidates = [np.zeros(0)]
    if n:
        starts = [random.uniform(0, 1, n) * 10 ** random.uniform(-2, 1) for _ in range(8)]
        search = functools.partial(least_squares, bounds=(0, np.inf), xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=300)
        searches = [search(residual, start) for start in starts]
        candidates = [search.x for search in searches]
    b = min(candidates, key=lambda candidate: float(np.square(residual(candidate)).sum()))
    a, _ = best_numerator(b)
    return torch.from_numpy(a / size ** np.arange(m)), torch.from_numpy(b / size ** np.arange(1, n + 1))


def variance_gain(name: str, m: int = 6, n: int = 4) -> float:
    """Return alpha = Var[x] / E[F(x)^2] for x ~ N(0, 1), for a named starting function F.

    Weights of variance alpha / d_in after F keep the variance of their input (Yang & Wang, ICLR 2025, section 4.4).
    """
    import numpy as np

    # hermegauss integrates against exp(-x^2 / 2).
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    numerator, denominator = starting_coefficients(name, m, n)
    values = rational_reference(torch.from_numpy(nodes)[:, None], numerator[None], denominator[None])[:, 0].numpy()
    return float(weights.sum() / (weights * values**2).sum())


@functools.cache
def _fitted(name: str, m: int, n: int) -> tuple[Tensor, Tensor]:
    return fit(FUNCTIONS[name], m, n, tail_weight=_START_TAIL_WEIGHT)


@functools.cache
def _stored() -> dict[str, dict[str, list[float]]]:
    return json.loads(resources.files(__package__).joinpath(_STORED).read_text())


def _fresh() -> str:
    """Fit every named function anew for the default degrees, and return the text of the table."""
    table = {}
    for name, function in FUNCTIONS.items():
        if name != "identity":
            numerator, denominator = fit(function, *_STORED_DEGREES, tail_weight=_START_TAIL_WEIGHT)
            table[name] = {"numerator": numerator.tolist(), "denominator": denominator.tolist()}
    return json.dumps(table, indent=2) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m flashkat.nn.starts",
        description="Fit the starting functions anew, and print the table that the package ships as starts.json.",
    ).parse_args()
    print(_fresh(), end="")
