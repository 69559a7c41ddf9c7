"""Solve for the coefficients of P(x) / Q(x) at given points: least squares and minimax.

P(x) = a_0 + ... + a_{m-1} x^{m-1} and Q(x) = 1 + b_1 |x| + ... + b_n |x|^n with b >= 0. Everything here is float64.
"""

import functools
from typing import NamedTuple

import numpy as np

__all__ = ["Points", "evaluate", "least_squares", "minimax"]

# Points of the first linear program, and how many of the worst others one round adds.
_FIRST, _MORE = 400, 40
_ROUNDS, _STEPS = 8, 40

# b is the ratio of two of the program's unknowns. This bound keeps the second away from 0.
_LEAST_CONSTANT = 1e-6
_TOLERANCE = 1e-10


class Points(NamedTuple):
    """Points of a function, each of shape (points,). ``weight`` multiplies the errors, and none is 0."""

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray


def evaluate(a: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return P(x) / Q(x)."""
    powers = x[..., None] ** np.arange(max(len(a), len(b) + 1))
    return powers[..., : len(a)] @ a / (np.abs(powers[..., : len(b) + 1]) @ np.concatenate([[1.0], np.abs(b)]))


def least_squares(points: Points, m: int, n: int, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the sum of squares of the weighted errors.

    For a given denominator the best numerator is a linear problem, so only the denominator is searched for: variable
    projection (Golub & Pereyra, 1973). scipy's trust-region search keeps b >= 0. It starts from 8 fixed places.

    Args:
        points: where, and how much each one matters.
        m: number of numerator coefficients.
        n: number of denominator coefficients.
        size: largest |x| of the interval.

    Returns:
        a of shape (m,) and b of shape (n,).
    """
    from scipy.optimize import least_squares as search

    x, y, weight = points
    # The search's tolerance is absolute, so small values or weights would end it early.
    weight = weight / (min(1.0, float(np.linalg.norm(y * weight))) or 1.0)
    # Powers of x / size are all of order one, which keeps the least-squares problems well conditioned.
    powers = (x[:, None] / size) ** np.arange(m)
    magnitudes = np.abs(x[:, None] / size) ** np.arange(1, n + 1)

    def residual(b: np.ndarray) -> np.ndarray:
        return best_numerator(b)[1]

    def best_numerator(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        basis = powers / (1 + magnitudes @ b)[:, None] * weight[:, None]
        a = np.linalg.lstsq(basis, y * weight, rcond=None)[0]
        return a, basis @ a - y * weight

    random = np.random.default_rng(0)
    candidates = [np.zeros(0)]
    if n:
        starts = [random.uniform(0, 1, n) * 10 ** random.uniform(-2, 1) for _ in range(8)]
        solve = functools.partial(search, bounds=(0, np.inf), xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=300)
        candidates = [solve(residual, start).x for start in starts]
    b = min(candidates, key=lambda candidate: float(np.square(residual(candidate)).sum()))
    a, _ = best_numerator(b)
    return a / size ** np.arange(m), b / size ** np.arange(1, n + 1)


def minimax(points: Points, start: tuple[np.ndarray, np.ndarray], size: float) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the largest weighted error, by differential correction.

    Each step is a linear program, so the answer is the best one on the points and not a local optimum (Barrodale,
    Powell & Roberts, 1972). scipy's HiGHS solves it. The first program has a few hundred points, and the worst of the
    others join it until none is worse.

    Args:
        points: where, and how much each one matters.
        start: a and b of another fit, the answer if no program finds a better one.
        size: largest |x| of the interval.

    Returns:
        a and b of the shapes of ``start``.
    """
    from numpy.polynomial import Chebyshev, Polynomial, chebyshev

    order = np.argsort(points.x, kind="stable")
    x, y, weight = (values[order] for values in points)
    m, low, high = len(start[0]), x[0], x[-1]
    if low == high:
        return start
    scale = np.abs(y).max() or 1.0
    basis = chebyshev.chebvander((2 * x - low - high) / (high - low), m - 1)
    magnitudes = np.abs(x / size)[:, None] ** np.arange(len(start[1]) + 1)

    def unscaled(c: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a = Chebyshev(c * scale / q[0], domain=[low, high]).convert(kind=Polynomial).coef
        return np.pad(a, (0, m - len(a))), q[1:] / q[0] / size ** np.arange(1, len(q))

    def errors(fit: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return np.nan_to_num(weight * np.abs(y - evaluate(*fit, x)), nan=np.inf)

    # The ends of the interval count most, so the first points are those of Chebyshev.
    nodes = (1 - np.cos(np.linspace(0, np.pi, _FIRST))) / 2
    chosen = np.unique(np.round(nodes * (len(x) - 1)).astype(int))
    best, current = start, start
    for _ in range(_ROUNDS):
        for _ in range(_STEPS):
            bottom = 1 + magnitudes[chosen, 1:] @ (current[1] * size ** np.arange(1, magnitudes.shape[1]))
            error = errors(current)[chosen].max()
            if not 0 < error < np.inf:
                break
            found = _corrected(
                basis[chosen], magnitudes[chosen], y[chosen] / scale, weight[chosen] * scale / error, bottom
            )
            if found is None:
                break
            new = unscaled(*found)
            gain = 1 - errors(new)[chosen].max() / error
            if gain > 0:
                current = new
            if gain < 1e-4:
                break
        left = errors(current)
        if left.max() < errors(best).max():
            best = current
        worst = np.flatnonzero(left > (1 + 1e-4) * left[chosen].max())
        if not len(worst):
            break
        chosen = np.union1d(chosen, worst[np.argsort(left[worst])[-_MORE:]])
    return best


def _corrected(
    basis: np.ndarray, magnitudes: np.ndarray, y: np.ndarray, weight: np.ndarray, bottom: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return P's coefficients in ``basis`` and Q's in ``magnitudes`` after one step, None if the program has no answer.

    With E the largest error so far, ``weight`` is divided by E and ``bottom`` is Q so far. The program minimises z in
    ``weight |y Q - P| - Q <= z bottom``. Below 0 it makes the largest error smaller. Q's coefficients sum to 1.
    """
    from scipy.optimize import linprog

    top, whole = weight[:, None] * basis, weight[:, None] * y[:, None] * magnitudes
    rows = np.block(
        [[-top, whole - magnitudes, -bottom[:, None]], [top, -whole - magnitudes, -bottom[:, None]]],
    )
    m, count = basis.shape[1], magnitudes.shape[1]
    sum_of_q = np.concatenate([np.zeros(m), np.ones(count), [0.0]])[None]
    free, positive = (None, None), (0.0, None)
    result = linprog(
        np.concatenate([np.zeros(m + count), [1.0]]),
        A_ub=rows,
        b_ub=np.zeros(len(rows)),
        A_eq=sum_of_q,
        b_eq=[1.0],
        bounds=[*[free] * m, (_LEAST_CONSTANT, None), *[positive] * (count - 1), free],
        method="highs-ds",
        options={"primal_feasibility_tolerance": _TOLERANCE, "dual_feasibility_tolerance": _TOLERANCE},
    )
    if result.status or result.x is None:
        return None
    return result.x[:m], result.x[m : m + count]
