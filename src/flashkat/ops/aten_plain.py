"""Plain Horner arithmetic on a chunk, for the path of PyTorch's own operators (``aten.py``).

A chunk is (outer, channels, inner). An operator is a pass over arrays that lie in cache, and costs what the arrays that
it touches cost. So all is written into scratch that every chunk uses again, in place where it can be, and a result's
own memory is scratch until it is filled.
"""

import torch
from torch import Tensor

from .reference import compute_dtype

_POWERS = {torch.float32: 2.0**36, torch.float64: 2.0**300}
# A chunk's sum of products of a gradient, a value and a power has to fit.
_GRADIENTS = {torch.float32: (2.0**-60, 2.0**30), torch.float64: (2.0**-600, 2.0**300)}


class Coefficients:
    """The coefficients in the dtype of the arithmetic, a (channels, 1) tensor for each of a polynomial's.

    ``p`` and ``q`` are those of P (a_0 ... a_{m-1}) and Q (1, |b_1| ... |b_n|), ``dp`` and ``dq`` of their derivatives.
    """

    def __init__(self, numerator: Tensor, denominator: Tensor, x3: Tensor) -> None:
        self.dtype = compute_dtype(x3.dtype)
        groups = max(len(numerator), len(denominator))
        p = numerator.to(self.dtype).expand(groups, -1)
        b = denominator.to(self.dtype).abs().expand(groups, -1)
        table = torch.cat([p, torch.ones_like(p[:, :1]), b], 1)
        self._largest = float(table.abs().amax())
        m, n = p.shape[1], b.shape[1]
        self._degree = max(m - 1, n)
        orders = torch.tensor([*range(m), *range(n + 1)], dtype=self.dtype, device=x3.device)
        # A value per channel, not per group, so that the loops inside PyTorch's operators are long.
        width = x3.shape[1] // groups
        columns = torch.cat([table, table * orders], 1).T.reshape(-1, groups, 1).expand(-1, -1, width)
        self.p, self.q, dp, dq = (
            list(part.unbind(0)) for part in columns.reshape(-1, groups * width, 1).split([m, n + 1, m, n + 1])
        )
        # The derivative of a constant is the 0 that the others drop.
        self.dp, self.dq = dp[1:] or dp, dq[1:] or dq

    def stay_plain(self, size: Tensor) -> bool:
        """Whether powers of |x| = ``size`` stay far inside the float range; False where there is a NaN."""
        reach = max(float(size.amax()), 1.0)  # in this order, which keeps a NaN
        # A product, since a float power raises on overflow.
        bound = self._largest
        for _ in range(self._degree):
            bound *= reach
        return bound <= _POWERS[self.dtype]


class Scratch:
    """Arrays without content, each made when its name is first asked for and used again for every chunk.

    Args:
        x3: what the chunks are taken from; the arrays have its device and its order of dimensions in memory.
        dtype: of the arithmetic.
    """

    # Named below: as many in forward and backward, and more where x and the result cannot take their place.
    FORWARD, BACKWARD, CONVERSION = 2, 3, 3

    def __init__(self, x3: Tensor, dtype: torch.dtype) -> None:
        self._channels_last = x3.stride(1) < x3.stride(2)
        self._empty = torch.empty(0, dtype=dtype, device=x3.device)
        self._arrays: dict[str, Tensor] = {}

    def array(self, name: str, chunk: Tensor) -> Tensor:
        """The array ``name`` in the shape of ``chunk``."""
        size = chunk.numel()
        flat = self._arrays.get(name, self._empty)
        if flat.numel() < size:
            flat = self._arrays[name] = self._empty.new_empty(size)
        outer, channels, inner = chunk.shape
        if self._channels_last:
            return flat[:size].view(outer, inner, channels).transpose(1, 2)
        return flat[:size].view(chunk.shape)

    def is_array(self, chunk: Tensor) -> bool:
        """Whether ``chunk`` is as good as an array: of the same dtype, in the same order, without gaps."""
        dense = (chunk.transpose(1, 2) if self._channels_last else chunk).is_contiguous()
        return dense and chunk.dtype == self._empty.dtype

    def array_or(self, chunk: Tensor, name: str) -> Tensor:
        """``chunk`` itself where it is as good as an array, else the array ``name``."""
        return chunk if self.is_array(chunk) else self.array(name, chunk)


def forward(x: Tensor, output: Tensor, c: Coefficients, scratch: Scratch) -> bool:
    """Write F(x) to ``output``, or return False where plain arithmetic will not do."""
    x = scratch.array_or(x, "x").copy_(x)
    size = torch.abs(x, out=scratch.array("size", x))
    if not c.stay_plain(size):
        return False
    q = _horner(c.q, size, scratch.array("q", x))
    output.copy_(_horner(c.p, x, scratch.array_or(output, "y")).div_(q))
    return True


def backward(g: Tensor, x: Tensor, grad_x: Tensor, c: Coefficients, scratch: Scratch) -> Tensor | None:
    """Write the gradient of x to ``grad_x``, and return sums for da and db without the factor s(b).

    The sums are (m + n, parts, channels), parts to be added. None where plain arithmetic will not do.
    """
    x = scratch.array_or(x, "x").copy_(x)
    size = torch.abs(x, out=scratch.array("size", x))
    if not (c.stay_plain(size) and _gradient_stays_plain(g, c.dtype)):
        return None
    q = _horner(c.q, size, scratch.array("q", x))
    y = _horner(c.p, x, scratch.array("y", x)).div_(q)

    slope = _horner(c.dq, size, scratch.array_or(grad_x, "slope")).mul_(y)
    _negate_unless_negative(slope, x, size)
    slope.add_(_horner(c.dp, x, size)).div_(q)
    grad_x.copy_(slope.mul_(g))

    weight = torch.div(g, q, out=q)
    y.mul_(weight)
    torch.abs(x, out=size)
    parts = _parts(x.shape[0])
    m = len(c.p)
    sums = x.new_empty(m + len(c.q) - 1, parts, x.shape[1])
    weight_parts, y_parts = (term.unflatten(0, (parts, -1)) for term in (weight, y))
    torch.sum(weight_parts, (1, 3), out=sums[0])
    for i in range(1, m):
        weight.mul_(x)
        torch.sum(weight_parts, (1, 3), out=sums[i])
    for j in range(m, len(sums)):
        y.mul_(size)
        torch.sum(y_parts, (1, 3), out=sums[j])
    sums[m:].neg_()
    return sums


def _parts(outer: int) -> int:
    """How many sums to make of ``outer`` rows."""
    # PyTorch gives each thread some rows to multiply, but some columns to sum, which moves the rows from one core's
    # cache to the other's and back, unless there is a sum for every thread to make.
    threads = torch.get_num_threads()
    return threads if outer % threads == 0 else 1


def _gradient_stays_plain(g: Tensor, dtype: torch.dtype) -> bool:
    """Whether products with the largest gradient neither overflow nor underflow; smaller ones add nothing to a sum."""
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
    """value *= -s(x), with s(0) = +1."""
    # A mask and torch.where take twenty times as long. This multiplies by -1 wherever -x > 0 does not hold.
    torch.neg(x, out=scratch)
    torch.ops.aten.leaky_relu_backward.grad_input(value, scratch, -1.0, False, grad_input=value)
