"""Independent truth for the operator: the formulas in float64 with plain powers, and exact rational arithmetic."""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

EPS32 = 2.0**-24


@dataclass
class Truth:
    """A float64 value and the size of the terms that were added for it: rounding is relative to the latter."""

    value: Tensor
    terms: Tensor


def _per_channel(x: Tensor, coefficients: Tensor, dim: int) -> Tensor:
    """(groups, k) coefficients as (k, ...) tensors that broadcast with x, a value per channel."""
    width = x.shape[dim] // len(coefficients)
    shape = [1] * x.ndim
    shape[dim] = x.shape[dim]
    return coefficients.double().repeat_interleave(width, 0).T.reshape(-1, *shape)


def exact(g: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, dim: int) -> dict[str, Truth]:
    """The value and the three gradients, for inputs whose powers fit float64."""
    g, x = g.double(), x.double()
    m, n = numerator.shape[1], denominator.shape[1]
    a, b = _per_channel(x, numerator, dim), _per_channel(x, denominator, dim).abs()
    u = x.abs()
    s = torch.where(x < 0, -1.0, 1.0)
    zero = torch.zeros_like(x)
    p = sum((a[i] * x**i for i in range(m)), zero)
    p_terms = sum((a[i].abs() * u**i for i in range(m)), zero)
    dp = sum((i * a[i] * x ** (i - 1) for i in range(1, m)), zero)
    dp_terms = sum((i * a[i].abs() * u ** (i - 1) for i in range(1, m)), zero)
    q = 1 + sum((b[j] * u ** (j + 1) for j in range(n)), zero)
    t = sum(((j + 1) * b[j] * u**j for j in range(n)), zero)
    grad_x = g * (dp / q - s * t * p / q**2)
    grad_x_terms = g.abs() * (dp_terms / q + t * p_terms / q**2)
    signs = torch.where(denominator < 0, -1.0, 1.0).double()

    def sums(terms: list[Tensor], rows: int) -> Tensor:
        if not terms:
            return torch.zeros(rows, 0, dtype=torch.float64)
        per_channel = torch.stack([term.movedim(dim, 0).reshape(x.shape[dim], -1).sum(1) for term in terms], dim=1)
        return per_channel.unflatten(0, (rows, -1)).sum(1)

    da = [g * x**i / q for i in range(m)]
    db = [-g * p / q**2 * u ** (j + 1) for j in range(n)]
    db_terms = [g.abs() * p_terms / q**2 * u ** (j + 1) for j in range(n)]
    return {
        "value": Truth(p / q, p_terms / q),
        "grad_x": Truth(grad_x, grad_x_terms),
        "grad_numerator": Truth(sums(da, len(numerator)), sums([d.abs() for d in da], len(numerator))),
        "grad_denominator": Truth(signs * sums(db, len(denominator)), sums(db_terms, len(denominator))),
    }


def distance(found: Tensor, truth: Tensor) -> float:
    """The norm of what ``found`` is off, over the truth's."""
    truth = truth.detach()
    return float((found.detach().double() - truth).norm() / truth.norm())


def assert_close(found: Tensor, truth: Truth, factor: float, what: str) -> None:
    """|found - truth| <= one step of found's dtype + factor * 2^-24 (or 2^-53) * the terms that were added.

    And, for terms that underflow, factor times the smallest number of found's dtype.
    """
    unit = torch.finfo(found.dtype).eps
    arithmetic = 2.0**-53 if found.dtype == torch.float64 else EPS32
    tiny = factor * torch.finfo(found.dtype).smallest_normal * unit
    value, terms = truth.value.to(found.device), truth.terms.to(found.device)
    allowed = unit * value.abs() + factor * arithmetic * terms + tiny
    excess = (found.double() - value).abs() - allowed
    overflows = found.isinf() & (found.sign() == value.sign()) & (value.abs() + allowed >= torch.finfo(found.dtype).max)
    excess = torch.where(overflows, 0.0, excess)
    assert found.shape == value.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(value.shape)}"
    assert not excess.isnan().any(), f"{what}: NaN"
    assert (excess <= 0).all(), f"{what}: off by {excess.max():.3g} more than allowed"


def exact_scalar(
    x: float, numerator: list[float], denominator: list[float], shares: bool = True
) -> dict[str, Fraction]:
    """F(x), F'(x), their terms' sizes, and, if asked for, shares of one element in da and db, in exact arithmetic."""
    a, b, z = [Fraction(c) for c in numerator], [abs(Fraction(c)) for c in denominator], Fraction(x)
    s = -1 if z < 0 else 1
    # Powers of fractions take long.
    zs = [z**i for i in range(max(len(a), len(b) + 1))]
    us = [abs(power) for power in zs]
    p = sum((c * zs[i] for i, c in enumerate(a)), Fraction(0))
    p_terms = sum((abs(c) * us[i] for i, c in enumerate(a)), Fraction(0))
    dp = sum((i * c * zs[i - 1] for i, c in enumerate(a) if i), Fraction(0))
    dp_terms = sum((i * abs(c) * us[i - 1] for i, c in enumerate(a) if i), Fraction(0))
    q = 1 + sum((c * us[j + 1] for j, c in enumerate(b)), Fraction(0))
    t = sum(((j + 1) * c * us[j] for j, c in enumerate(b)), Fraction(0))
    truth = {
        "value": p / q,
        "value_terms": p_terms / q,
        "slope": dp / q - s * t * p / q**2,
        "slope_terms": dp_terms / q + t * p_terms / q**2,
    }
    if shares:
        truth |= {f"da{i}": zs[i] / q for i in range(len(a))}
        truth |= {f"db{j}": -p / q**2 * us[j + 1] for j in range(len(b))}
        truth |= {f"db{j}_terms": p_terms / q**2 * us[j + 1] for j in range(len(b))}
    return truth
