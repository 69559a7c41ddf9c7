"""Plain Horner arithmetic on a chunk (outer, channels, inner), by PyTorch's own operators.

Each operator is a pass over arrays in cache, and is memory-bound. So chunks share scratch, operators work in place,
and a result's own memory is scratch until it is filled.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import compute_dtype
from .scaled import wide

_POWERS = {torch.float32: 2.0**36, torch.float64: 2.0**300}
# A chunk's sum of products of a gradient, a value and a power has to fit.
_GRADIENTS = {torch.float32: (2.0**-60, 2.0**30), torch.float64: (2.0**-600, 2.0**300)}

BLOCK = 8
"""Rows that are summed in the dtype of the arithmetic. Their sums are added in float64. Chunks are best multiples."""


class Polynomials(NamedTuple):
    """Coefficients of P, Q and their derivatives in rising order, a (channels, 1) tensor each."""

    p: list[Tensor]
    q: list[Tensor]
    dp: list[Tensor]
    dq: list[Tensor]


class Coefficients:
    """The coefficients in the dtype of the arithmetic, with their derivatives.

    Args:
        numerator: (1 or G, m) coefficients of P.
        denominator: (1 or G, n) coefficients of Q after its leading 1, of any sign.
        x3: (outer, channels, inner), for its channels, dtype and device.
    """

    def __init__(self, numerator: Tensor, denominator: Tensor, x3: Tensor) -> None:
        self.dtype = compute_dtype(x3.dtype)
        groups, (m, n) = max(len(numerator), len(denominator)), (numerator.shape[1], denominator.shape[1])
        a = numerator.to(self.dtype).expand(groups, -1)
        b = denominator.to(self.dtype).abs().expand(groups, -1)
        values = torch.cat([a, torch.ones_like(a[:, :1]), b], 1)
        orders = torch.tensor([*range(m), *range(n + 1)], dtype=self.dtype, device=x3.device)
        # A value per channel, not per group, so that the loops inside PyTorch's operators are long.
        columns = torch.cat([values, values * orders], 1).T.unsqueeze(2).expand(-1, -1, x3.shape[1] // groups)
        self._table = columns.reshape(-1, x3.shape[1], 1)
        self._lengths = [m, n + 1, m, n + 1]
        self._degree = max(m - 1, n)
        self._largest = float(values.abs().amax())
        self._of_channels: dict[tuple[int, int], Polynomials] = {}

    def polynomials(self, channels: slice) -> Polynomials:
        """Return the coefficients for a slice of the channels."""
        key = channels.start, channels.stop
        if key not in self._of_channels:
            p, q, dp, dq = (list(part.unbind(0)) for part in self._table[:, channels].split(self._lengths))
            # The derivative of a constant is the 0 that the others drop.
            self._of_channels[key] = Polynomials(p, q, dp[1:] or dp, dq[1:] or dq)
        return self._of_channels[key]

    def stay_plain(self, size: Tensor) -> bool:
        """Return whether powers of |x| = ``size`` stay far inside the float range. A NaN gives False."""
        reach = max(float(size.amax()), 1.0)  # in this order, which keeps a NaN
        # A product, since a float power raises on overflow.
        bound = self._largest
        for _ in range(self._degree):
            bound *= reach
        return bound <= _POWERS[self.dtype]


class Scratch:
    """Uninitialised contiguous arrays, each made at its first use and reused for every chunk."""

    # As many as forward and backward name, and more where x and the result cannot take the place of some. The sums of
    # blocks of rows, in both precisions, take the memory of less than half an array.
    FORWARD, BACKWARD, CONVERSION = 2.0, 3.5, 3.0

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._empty = torch.empty(0, dtype=dtype, device=device)
        self._arrays: dict[str, Tensor] = {}

    def array(self, name: str, chunk: Tensor) -> Tensor:
        """Return the array ``name`` in the shape of ``chunk``."""
        size = chunk.numel()
        array = self._arrays.get(name, self._empty)
        if array.numel() < size:
            array = self._arrays[name] = self._empty.new_empty(size)
        return array[:size].view(chunk.shape)

    def filled(self, name: str, chunk: Tensor) -> Tensor:
        """Return ``chunk`` itself if it can serve as an array, else a copy of it in the array ``name``."""
        return chunk if self.is_array(chunk) else self.array(name, chunk).copy_(chunk)

    def array_or(self, chunk: Tensor, name: str) -> Tensor:
        """Return ``chunk`` itself if it can serve as an array, else the array ``name``."""
        return chunk if self.is_array(chunk) else self.array(name, chunk)

    def is_array(self, chunk: Tensor) -> bool:
        """Return whether ``chunk`` can serve as an array: it has the dtype and is contiguous."""
        return chunk.dtype == self._empty.dtype and chunk.is_contiguous()


def forward(x: Tensor, output: Tensor, c: Coefficients, f: Polynomials, scratch: Scratch) -> bool:
    """Write F(x) to ``output``, or return False if plain arithmetic might overflow."""
    x = scratch.filled("x", x)
    size = torch.abs(x, out=scratch.array("size", x))
    if not c.stay_plain(size):
        return False
    q = _horner(f.q, size, scratch.array("q", x))
    output.copy_(_horner(f.p, x, scratch.array_or(output, "y")).div_(q))
    return True


def backward(g: Tensor, x: Tensor, grad_x: Tensor, c: Coefficients, f: Polynomials, scratch: Scratch) -> Tensor | None:
    """Write the gradient of x to ``grad_x``, and return sums for da and db without the factor s(b).

    The sums are (m + n, channels) in float64. The result is None if plain arithmetic might overflow.
    """
    x = scratch.filled("x", x)
    size = torch.abs(x, out=scratch.array("size", x))
    if not (c.stay_plain(size) and _gradient_stays_plain(g, c.dtype)):
        return None
    q = _horner(f.q, size, scratch.array("q", x))
    y = _horner(f.p, x, scratch.array("y", x)).div_(q)

    slope = _horner(f.dq, size, scratch.array_or(grad_x, "slope")).mul_(y)
    _negate_unless_negative(slope, x, size)
    slope.add_(_horner(f.dp, x, size)).div_(q)
    grad_x.copy_(slope.mul_(g))

    weight = torch.div(g, q, out=q)
    y.mul_(weight)
    torch.abs(x, out=size)
    for_a = _sums_of_powers(weight, x, len(f.p))
    for_b = _sums_of_powers(y.mul_(size), size, len(f.q) - 1)
    return torch.stack([*for_a, *(-total for total in for_b)])


def _sums_of_powers(term: Tensor, x: Tensor, count: int) -> list[Tensor]:
    """Return the sums over all positions of term * x^i, i < count, each (channels,) in float64. Overwrite ``term``."""
    # PyTorch's float32 sums are accurate over few rows, not over all. A thread that sums blocks of rows still has them
    # in its cache from the multiplication. One that sums columns does not.
    outer, channels, inner = term.shape
    rows = 1 if inner >= BLOCK else BLOCK if outer % BLOCK == 0 else outer
    blocks = term.new_empty(outer // rows, channels)
    term_blocks = term.unflatten(0, (-1, rows))
    sums = []
    for i in range(count):
        if i:
            term.mul_(x)
        torch.sum(term_blocks, (1, 3), out=blocks)
        sums.append(wide(blocks).sum(0))
    return sums


def _gradient_stays_plain(g: Tensor, dtype: torch.dtype) -> bool:
    """Return whether products with the largest gradient neither overflow nor underflow.

    Those with much smaller gradients may underflow, as they add nothing to a sum.
    """
    low, high = (float(end) for end in torch.aminmax(g))
    least, most = _GRADIENTS[dtype]
    size = max(-low, high)
    return size == 0 or least <= size <= most


def _horner(coefficients: list[Tensor], x: Tensor, out: Tensor) -> Tensor:
    *lower, last = coefficients
    if not lower:
        return out.copy_(last)
    torch.addcmul(lower.pop(), x, last, out=out)
    for coefficient in reversed(lower):
        torch.addcmul(coefficient, out, x, out=out)
    return out


def _negate_unless_negative(value: Tensor, x: Tensor, scratch: Tensor) -> None:
    """Multiply ``value`` in place by -s(x), with s(0) = +1."""
    # A mask and torch.where take twenty times as long. This multiplies by -1 wherever -x > 0 does not hold.
    torch.neg(x, out=scratch)
    torch.ops.aten.leaky_relu_backward.grad_input(value, scratch, -1.0, False, grad_input=value)
