"""Overflow-safe arithmetic: mantissas and exponents in float64, for chunks whose powers leave the float range.

``triton/arithmetic.py`` has the formulas and the reasons.
"""

import torch
from torch import Tensor

_ZERO_EXPONENT = -(2**20)
SUM_EXPONENT = 960


def wide_device(device: torch.device) -> torch.device:
    """Return the device of float64 arithmetic for ``device``: the CPU for Apple's GPUs, which have none."""
    return torch.device("cpu") if device.type == "mps" else device


def forward(x: Tensor, a: list[Tensor], one_b: list[Tensor]) -> Tensor:
    """Return F(x) for a chunk (outer, channels, inner), with (channels, 1) coefficients of P and Q."""
    a, one_b = _widen(a), _widen(one_b)
    f, e = _split(wide(x))
    p, ep = _scaled_polynomial(a, f, e)
    q, eq = _scaled_polynomial(one_b, f.abs(), e)
    return _scale(p / q, ep - eq)


def backward(g: Tensor, x: Tensor, a: list[Tensor], one_b: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return grad_x, and the sums (m + n, channels) for da and db. Those for db lack the factor s(b).

    Terms of the sums saturate, so that opposite ones cancel instead of making a NaN.
    """
    a, one_b = _widen(a), _widen(one_b)
    x = wide(x)
    (f, e), (fg, eg) = _split(x), _split(wide(g))
    p, ep = _scaled_polynomial(a, f, e)
    q, eq = _scaled_polynomial(one_b, f.abs(), e)
    dp, edp = _scaled_polynomial(a, f, e, derivative=True)
    dq, edq = _scaled_polynomial(one_b, f.abs(), e, derivative=True)
    left = dp / q
    right = torch.where(x < 0, -1.0, 1.0) * (dq / q) * (p / q)
    e_left = torch.where(left == 0, 128 * _ZERO_EXPONENT, edp - eq)
    e_right = torch.where(right == 0, 128 * _ZERO_EXPONENT, edq + ep - 2 * eq)
    top = torch.maximum(e_left, e_right)
    slope = _shift_down(left, e_left - top) - _shift_down(right, e_right - top)
    grad_x = _scale(fg * slope, eg + top)

    def share(term: Tensor, exponent: Tensor) -> Tensor:
        # A product of mantissas is small, and would hide from the check for overflow.
        term, more = torch.frexp(term)
        exponent = exponent + more
        return (term * _power_of_two(exponent.clamp(-1022, SUM_EXPONENT))).sum(dim=(0, 2))

    sums = [share(fg / q * f**i, eg + i * e - eq) for i in range(len(a))]
    weight = -(fg / q) * (p / q)
    sums += [share(weight * f.abs() ** j, eg + ep - 2 * eq + j * e) for j in range(1, len(one_b))]
    return grad_x, torch.stack(sums)


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent in float64, exact, for exponents of normal numbers."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def wide(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float64, on a device that has it."""
    return tensor.to(wide_device(tensor.device), torch.float64)


def _widen(tensors: list[Tensor]) -> list[Tensor]:
    return [wide(tensor) for tensor in tensors]


def _split(value: Tensor) -> tuple[Tensor, Tensor]:
    """Split value = mantissa * 2^exponent with 0.5 <= |mantissa| < 1.

    Zero has the exponent ``_ZERO_EXPONENT``. NaN and inf become NaN.
    """
    mantissa, exponent = torch.frexp(value)
    return mantissa + (value - value), torch.where(value == 0, _ZERO_EXPONENT, exponent)


def _scale(value: Tensor, exponent: Tensor) -> Tensor:
    """Return value * 2^exponent by two exact factors, so that only the result itself can round or overflow."""
    exponent = exponent.clamp(-2040, 2040)
    half = exponent >> 1
    return value * _power_of_two(half) * _power_of_two(exponent - half)


def _shift_down(value: Tensor, exponent: Tensor) -> Tensor:
    return value * _power_of_two(exponent.clamp(min=-1022))


def _scaled_polynomial(
    coefficients: list[Tensor], f: Tensor, e: Tensor, derivative: bool = False
) -> tuple[Tensor, Tensor]:
    """Return sum_i c_i (f 2^e)^i, or its derivative, as a value and an exponent: that of the largest term."""
    terms = [(1, *_split(c)) for c in coefficients]
    if derivative:
        terms = [(i, mantissa, exponent) for i, (_, mantissa, exponent) in enumerate(terms)][1:]
    top = torch.full_like(e, 64 * _ZERO_EXPONENT)
    for i, (_, _, exponent) in enumerate(terms):
        top = torch.maximum(top, exponent + i * e)
    value, power = torch.zeros_like(f), torch.ones_like(f)
    for i, (factor, mantissa, exponent) in enumerate(terms):
        value += _shift_down(factor * mantissa * power, exponent + i * e - top)
        power = power * f
    return value, top
