"""The path made of ordinary PyTorch operators: for CPUs, and for every device that has no Triton.

It follows the same two ways as the Triton kernels (``kernels.py`` has the formulas and the reasons): plain Horner
schemes for a chunk whose powers stay inside the float range, mantissas and exponents in float64 otherwise. A chunk is
small enough for its temporaries to stay in cache, and nothing but x is saved between the passes.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .layout import Output, as_three_dimensional
from .reference import compute_dtype

_CHUNK_ELEMENTS = 2**16
_PLAIN = {torch.float32: 2.0**36, torch.float64: 2.0**300}
_SMALL_GRADIENT = {torch.float32: 2.0**-60, torch.float64: 2.0**-600}
_ZERO_EXPONENT = -(2**20)
_SUM_EXPONENT = 960


def forward(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """F(x) as ``dtype``; see :func:`flashkat.rational` for the arguments, which are taken as valid."""
    output = Output(x, dim, dtype)
    if x.numel():
        x3 = as_three_dimensional(x, dim)
        coefficients = _Coefficients(numerator, denominator, x3)
        for window in _windows(x3):
            chunk = x3[window]
            result = _forward_plain if coefficients.stay_plain(chunk) else _forward_scaled
            output.view[window].copy_(result(chunk, coefficients))
    return output.finish()


def backward(
    grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to x, numerator and denominator, each in the dtype of what it belongs to."""
    output = Output(x, dim, x.dtype)
    if x.numel() == 0:
        return output.finish(), torch.zeros_like(numerator), torch.zeros_like(denominator)
    x3, grad3 = as_three_dimensional(x, dim), as_three_dimensional(grad, dim)
    coefficients = _Coefficients(numerator, denominator, x3)
    channels, (m, n) = x3.shape[1], (numerator.shape[1], denominator.shape[1])
    sums = torch.zeros(channels, m + n, dtype=torch.float64, device=_wide_device(x.device))
    for window in _windows(x3):
        chunk, g = x3[window], grad3[window].to(coefficients.dtype)
        plain = coefficients.stay_plain(chunk) and _gradient_stays_plain(g)
        grad_x, share = (_backward_plain if plain else _backward_scaled)(g, chunk, coefficients)
        output.view[window].copy_(grad_x)
        sums += share.to(sums)
    overflow = sums.abs() >= 2.0 ** (_SUM_EXPONENT - 1)
    sums = torch.where(overflow, sums * torch.inf, sums)
    signs = torch.where(denominator < 0, -1.0, 1.0).to(denominator.dtype)
    return (
        output.finish(),
        _sum_over_channels(sums[:, :m], numerator),
        signs * _sum_over_channels(sums[:, m:], denominator),
    )


def _sum_over_channels(sums: Tensor, coefficients: Tensor) -> Tensor:
    """(C, count) sums per channel to sums per row of the coefficients."""
    return sums.unflatten(0, (len(coefficients), -1)).sum(1).to(coefficients).contiguous()


class _Coefficients:
    """The coefficients in the dtype of the arithmetic, a value per channel, that broadcast over (outer, C, inner)."""

    def __init__(self, numerator: Tensor, denominator: Tensor, x3: Tensor) -> None:
        self.dtype = compute_dtype(x3.dtype)
        self.a = self._per_channel(numerator, x3.shape[1])
        self.b = self._per_channel(denominator.abs(), x3.shape[1])
        self.degree = max(len(self.a) - 1, len(self.b))
        self.largest = max(float(c.abs().max()) for c in [*self.a, *self.b])

    def _per_channel(self, coefficients: Tensor, channels: int) -> list[Tensor]:
        # A value per channel, not per group, so that the loops inside PyTorch's operators are long.
        table = coefficients.to(self.dtype).repeat_interleave(channels // len(coefficients), 0)
        return list(table.T.contiguous().unsqueeze(2).unbind(0))

    def stay_plain(self, x: Tensor) -> bool:
        low, high = (float(end) for end in torch.aminmax(x))
        if math.isnan(low):  # one NaN hides how large the other elements are
            return False
        reach = max(1.0, -low, high)
        # A product, since a float power raises on overflow.
        bound = max(1.0, self.largest)
        for _ in range(self.degree):
            bound *= reach
        return bound <= _PLAIN[self.dtype]


def _wide_device(device: torch.device) -> torch.device:
    """Where float64 arithmetic for ``device`` runs: Apple's GPUs have none."""
    return torch.device("cpu") if device.type == "mps" else device


def _windows(x3: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of (outer, channels, inner) that hold about _CHUNK_ELEMENTS each and all channels."""
    outer, channels, inner = x3.shape
    inner_step = max(1, min(inner, _CHUNK_ELEMENTS // channels))
    outer_step = max(1, _CHUNK_ELEMENTS // (channels * inner_step))
    for o in range(0, outer, outer_step):
        for i in range(0, inner, inner_step):
            yield slice(o, o + outer_step), slice(None), slice(i, i + inner_step)


def _gradient_stays_plain(g: Tensor) -> bool:
    """Whether products with the largest gradient neither overflow nor underflow; smaller ones add nothing to a sum."""
    low, high = (float(end) for end in torch.aminmax(g))
    size = max(-low, high)
    return size == 0 or _SMALL_GRADIENT[g.dtype] <= size <= _PLAIN[g.dtype]


# Plain arithmetic


def _horner(coefficients: list[Tensor], x: Tensor) -> Tensor:
    value = torch.zeros_like(x).add_(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value.mul_(x).add_(coefficient)
    return value


def _horner_with_derivative(coefficients: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.zeros_like(x).add_(coefficients[-1])
    derivative = torch.zeros_like(x)
    for coefficient in reversed(coefficients[:-1]):
        derivative.mul_(x).add_(value)
        value.mul_(x).add_(coefficient)
    return value, derivative


def _with_one(b: list[Tensor], like: Tensor) -> list[Tensor]:
    return [torch.ones(1, 1, dtype=like.dtype, device=like.device), *b]


def _forward_plain(x: Tensor, c: _Coefficients) -> Tensor:
    x = x.to(c.dtype)
    return _horner(c.a, x).div_(_horner(_with_one(c.b, x), x.abs()))


def _backward_plain(g: Tensor, x: Tensor, c: _Coefficients) -> tuple[Tensor, Tensor]:
    """grad_x, and (C, m + n) sums for da and db, the latter without the factor s(b)."""
    x = x.to(c.dtype)
    size = x.abs()
    p, dp = _horner_with_derivative(c.a, x)
    q, dq = _horner_with_derivative(_with_one(c.b, x), size)
    reciprocal = q.reciprocal_()
    y = p.mul_(reciprocal)
    dq.mul_(y)
    grad_x = dp.sub_(torch.where(x < 0, -dq, dq)).mul_(reciprocal).mul_(g)
    sums = []
    weight = reciprocal.mul_(g)
    term = weight.clone()
    for i in range(len(c.a)):
        sums.append(_sum_per_channel(term.mul_(x) if i else term))
    term = weight.mul_(y).neg_()
    for _ in c.b:
        sums.append(_sum_per_channel(term.mul_(size)))
    return grad_x, torch.stack(sums, dim=1)


def _sum_per_channel(term: Tensor) -> Tensor:
    return term.sum(dim=(0, 2))


# Mantissas and exponents


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, exact, for exponents of normal numbers."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _widen(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(_wide_device(tensor.device), torch.float64) for tensor in tensors]


def _split(value: Tensor) -> tuple[Tensor, Tensor]:
    """value = mantissa * 2^exponent with 0.5 <= |mantissa| < 1; zero has its own exponent; inf and NaN become NaN."""
    mantissa, exponent = torch.frexp(value)
    return mantissa + (value - value), torch.where(value == 0, _ZERO_EXPONENT, exponent)


def _scale(value: Tensor, exponent: Tensor) -> Tensor:
    """value * 2^exponent in two exact halves, so that only the result itself can round, overflow or underflow."""
    exponent = exponent.clamp(-2040, 2040)
    half = exponent >> 1
    return value * _power_of_two(half) * _power_of_two(exponent - half)


def _shift_down(value: Tensor, exponent: Tensor) -> Tensor:
    return value * _power_of_two(exponent.clamp(min=-1022))


def _scaled_polynomial(
    coefficients: list[Tensor], f: Tensor, e: Tensor, derivative: bool = False
) -> tuple[Tensor, Tensor]:
    """sum_i c_i (f 2^e)^i, or its derivative, as a value and an exponent: a sum relative to the largest term."""
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


def _forward_scaled(x: Tensor, c: _Coefficients) -> Tensor:
    x, *a = _widen(x, *c.a)
    one_b = _with_one(_widen(*c.b), x)
    f, e = _split(x)
    p, ep = _scaled_polynomial(a, f, e)
    q, eq = _scaled_polynomial(one_b, f.abs(), e)
    return _scale(p / q, ep - eq)


def _backward_scaled(g: Tensor, x: Tensor, c: _Coefficients) -> tuple[Tensor, Tensor]:
    """As ``_backward_plain``; terms of the sums saturate, so that opposite ones cancel instead of making a NaN."""
    g, x, *a = _widen(g, x, *c.a)
    one_b = _with_one(_widen(*c.b), x)
    (f, e), (fg, eg) = _split(x), _split(g)
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
        return _sum_per_channel(term * _power_of_two(exponent.clamp(-1022, _SUM_EXPONENT)))

    sums = [share(fg / q * f**i, eg + i * e - eq) for i in range(len(c.a))]
    weight = -(fg / q) * (p / q)
    sums += [share(weight * f.abs() ** j, eg + ep - 2 * eq + j * e) for j in range(1, len(c.b) + 1)]
    return grad_x, torch.stack(sums, dim=1)
