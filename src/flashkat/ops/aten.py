"""The path made of ordinary PyTorch operators: for CPUs, and for every device that has no Triton.

It follows the same two ways as the Triton kernels: plain Horner schemes (``aten_plain.py``) for a chunk whose powers
stay inside the float range, mantissas and exponents in float64 (``aten_scaled.py``) otherwise. Nothing but x is saved
between the passes.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from . import aten_plain, aten_scaled
from .layout import Output, as_three_dimensional

# A call into PyTorch and its threads costs as much as tens of thousands of elements of a pass, so chunks are as large
# as caches and memory allow.
_CHUNK_ELEMENTS_PER_THREAD = 2**17
_CHUNK_ELEMENTS_ON_GPUS = 2**22
_SMALLEST_CHUNK_ELEMENTS = 2**16
_SCALED_CHUNK_ELEMENTS = 2**14
# The most memory for scratch, relative to an x in the dtype of the arithmetic.
_SCRATCH = 0.45


def forward(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """F(x) as ``dtype``; see :func:`flashkat.rational` for the arguments, which are taken as valid."""
    output = Output(x, dim, dtype)
    if x.numel() == 0:
        return output.finish()
    x3 = as_three_dimensional(x, dim)
    coefficients = aten_plain.Coefficients(numerator, denominator, x3)
    scratch = aten_plain.Scratch(x3, coefficients.dtype)

    def plain(x: Tensor, result: Tensor) -> bool:
        return aten_plain.forward(x, result, coefficients, scratch)

    def scaled(x: Tensor, result: Tensor) -> None:
        result.copy_(aten_scaled.forward(x, coefficients.p, coefficients.q))

    elements = _chunk_elements(x3, scratch.FORWARD + (0 if scratch.is_array(x3) else scratch.CONVERSION))
    _chunk_by_chunk((x3, output.view), elements, plain, scaled)
    return output.finish()


def backward(
    grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to x, numerator and denominator, each in the dtype of what it belongs to."""
    output = Output(x, dim, x.dtype)
    if x.numel() == 0:
        return output.finish(), torch.zeros_like(numerator), torch.zeros_like(denominator)
    x3, grad3 = as_three_dimensional(x, dim), as_three_dimensional(grad, dim)
    coefficients = aten_plain.Coefficients(numerator, denominator, x3)
    scratch = aten_plain.Scratch(x3, coefficients.dtype)
    channels, (m, n) = x3.shape[1], (numerator.shape[1], denominator.shape[1])
    sums = torch.zeros(m + n, channels, dtype=torch.float64, device=aten_scaled.wide_device(x.device))

    def plain(g: Tensor, x: Tensor, grad_x: Tensor) -> bool:
        share = aten_plain.backward(g, x, grad_x, coefficients, scratch)
        if share is not None:
            sums.add_(share.to(sums).sum(1))
        return share is not None

    def scaled(g: Tensor, x: Tensor, grad_x: Tensor) -> None:
        slope, share = aten_scaled.backward(g, x, coefficients.p, coefficients.q)
        grad_x.copy_(slope)
        sums.add_(share)

    elements = _chunk_elements(x3, scratch.BACKWARD + (0 if scratch.is_array(x3) else scratch.CONVERSION))
    _chunk_by_chunk((grad3, x3, output.view), elements, plain, scaled)
    overflow = sums.abs() >= 2.0 ** (aten_scaled.SUM_EXPONENT - 1)
    sums = torch.where(overflow, sums * torch.inf, sums)
    signs = torch.where(denominator < 0, -1.0, 1.0).to(denominator.dtype)
    return (
        output.finish(),
        _sum_over_channels(sums[:m], numerator),
        signs * _sum_over_channels(sums[m:], denominator),
    )


def _sum_over_channels(sums: Tensor, coefficients: Tensor) -> Tensor:
    """(count, C) sums per channel to sums per row of the coefficients, (rows, count)."""
    return sums.unflatten(1, (len(coefficients), -1)).sum(2).T.to(coefficients).contiguous()


def _chunk_elements(x3: Tensor, arrays: int) -> int:
    """How many elements a chunk holds that takes ``arrays`` of scratch."""
    on_cpu = x3.device.type == "cpu"
    most = _CHUNK_ELEMENTS_PER_THREAD * torch.get_num_threads() if on_cpu else _CHUNK_ELEMENTS_ON_GPUS
    return max(_SMALLEST_CHUNK_ELEMENTS, min(most, int(_SCRATCH * x3.numel() / arrays)))


def _chunk_by_chunk(
    tensors: Sequence[Tensor], elements: int, plain: Callable[..., bool], scaled: Callable[..., None]
) -> None:
    """Call ``plain`` with chunks of the tensors; where it returns False, with small ones, and ``scaled`` in its place.

    One outlier so costs no more than a small chunk its speed.
    """
    for window in _windows(tensors[0].shape, elements):
        chunk = [tensor[window] for tensor in tensors]
        if plain(*chunk):
            continue
        if elements > _SCALED_CHUNK_ELEMENTS:
            _chunk_by_chunk(chunk, _SCALED_CHUNK_ELEMENTS, plain, scaled)
        else:
            scaled(*chunk)


def _windows(shape: Sequence[int], elements: int) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of (outer, channels, inner) with all channels, about equal, of at most ``elements`` or one position."""
    outer, channels, inner = shape
    inner_step = _even_step(inner, elements // channels, 1)
    outer_step = _even_step(outer, elements // (channels * inner_step), torch.get_num_threads())
    for o in range(0, outer, outer_step):
        for i in range(0, inner, inner_step):
            yield slice(o, o + outer_step), slice(None), slice(i, i + inner_step)


def _even_step(size: int, most: int, multiple: int) -> int:
    """A step of at most ``most`` that divides ``size`` about evenly, where possible a multiple of ``multiple``."""
    most = max(1, most)
    if most > multiple:
        most -= most % multiple
    step = -(-size // -(-size // most))
    return min(most, -(-step // multiple) * multiple)
