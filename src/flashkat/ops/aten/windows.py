"""The path of PyTorch's own operators: for every device without Triton or compiled code.

As in the Triton kernels, a chunk whose powers fit the float range takes plain arithmetic (``plain.py``). Others take
the overflow-safe arithmetic of ``scaled.py``. Only x is saved between the passes.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..layout import Output, as_three_dimensional, channels_last_as_rows
from . import plain as aten_plain
from . import scaled as aten_scaled
from .plain import Coefficients, Scratch

Window = tuple[slice, slice, slice]

# A call into PyTorch and its threads costs as much as tens of thousands of elements of a pass, so chunks are as large
# as caches and memory allow.
_CHUNK_ELEMENTS_PER_THREAD = 2**18
_CHUNK_ELEMENTS_ON_GPUS = 2**22
_SMALLEST_CHUNK_ELEMENTS = 2**16
_SCALED_CHUNK_ELEMENTS = 2**14
# The most memory for scratch, relative to an x in the dtype of the arithmetic.
_SCRATCH = 0.45


def forward(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Return F(x) in ``dtype``. The arguments are those of :func:`flashkat.rational`, and are not checked."""
    output = Output(x, dim, dtype)
    if x.numel() == 0:
        return output.finish()
    result, x3 = channels_last_as_rows(output.view, as_three_dimensional(x, dim))
    fill_values([_whole(x3)], result, x3, numerator, denominator)
    return output.finish()


def backward(
    grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients with respect to x, numerator and denominator, each in the dtype of its tensor."""
    output = Output(x, dim, x.dtype)
    if x.numel() == 0:
        return output.finish(), torch.zeros_like(numerator), torch.zeros_like(denominator)
    result, x3, grad3 = channels_last_as_rows(
        output.view, as_three_dimensional(x, dim), as_three_dimensional(grad, dim)
    )
    sums = fill_gradients([_whole(x3)], result, x3, grad3, numerator, denominator)
    return output.finish(), *coefficient_gradients(sums, numerator, denominator)


def fill_values(regions: Iterable[Window], result: Tensor, x3: Tensor, numerator: Tensor, denominator: Tensor) -> None:
    """Write F(x) into some regions of ``result``; all are (outer, channels, inner)."""
    coefficients = Coefficients(numerator, denominator, x3)
    scratch = Scratch(coefficients.dtype, x3.device)

    def plain(window: Window) -> bool:
        f = coefficients.polynomials(window[1])
        return aten_plain.forward(x3[window], result[window], coefficients, f, scratch)

    def scaled(window: Window) -> None:
        f = coefficients.polynomials(window[1])
        result[window].copy_(aten_scaled.forward(x3[window], f.p, f.q))

    arrays = scratch.FORWARD + (0 if scratch.is_array(x3) else scratch.CONVERSION)
    for region in regions:
        _window_by_window(region, _chunk_elements(x3, arrays), plain, scaled)


def fill_gradients(
    regions: Iterable[Window], result: Tensor, x3: Tensor, grad3: Tensor, numerator: Tensor, denominator: Tensor
) -> Tensor:
    """Write the gradient of x into some regions of ``result``, and return their sums for da and db, (m + n, C)."""
    coefficients = Coefficients(numerator, denominator, x3)
    scratch = Scratch(coefficients.dtype, x3.device)
    count = numerator.shape[1] + denominator.shape[1]
    sums = torch.zeros(count, x3.shape[1], dtype=torch.float64, device=aten_scaled.wide_device(x3.device))

    def plain(window: Window) -> bool:
        f = coefficients.polynomials(window[1])
        share = aten_plain.backward(grad3[window], x3[window], result[window], coefficients, f, scratch)
        if share is not None:
            sums[:, window[1]] += share
        return share is not None

    def scaled(window: Window) -> None:
        f = coefficients.polynomials(window[1])
        grad_x, share = aten_scaled.backward(grad3[window], x3[window], f.p, f.q)
        result[window].copy_(grad_x)
        sums[:, window[1]] += share

    arrays = scratch.BACKWARD + (0 if scratch.is_array(x3) else scratch.CONVERSION)
    for region in regions:
        _window_by_window(region, _chunk_elements(x3, arrays), plain, scaled)
    return sums


def coefficient_gradients(sums: Tensor, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    """Return da and db from sums (m + n, channels or groups) that lack the factor s(b)."""
    m = numerator.shape[1]
    overflow = sums.abs() >= 2.0 ** (aten_scaled.SUM_EXPONENT - 1)
    sums = torch.where(overflow, sums * torch.inf, sums)
    signs = torch.where(denominator < 0, -1.0, 1.0).to(denominator.dtype)
    return _sum_over_channels(sums[:m], numerator), signs * _sum_over_channels(sums[m:], denominator)


def _sum_over_channels(sums: Tensor, coefficients: Tensor) -> Tensor:
    """Add up sums per channel (count, C) to sums per row of the coefficients (rows, count)."""
    return sums.unflatten(1, (len(coefficients), -1)).sum(2).T.to(coefficients).contiguous()


def _chunk_elements(x3: Tensor, arrays: float) -> int:
    """Return the number of elements of a chunk that takes ``arrays`` of scratch."""
    on_cpu = x3.device.type == "cpu"
    most = _CHUNK_ELEMENTS_PER_THREAD * torch.get_num_threads() if on_cpu else _CHUNK_ELEMENTS_ON_GPUS
    return max(_SMALLEST_CHUNK_ELEMENTS, min(most, int(_SCRATCH * x3.numel() / arrays)))


def _whole(x3: Tensor) -> Window:
    outer, channels, inner = (slice(0, size) for size in x3.shape)
    return outer, channels, inner


def _window_by_window(
    region: Window, elements: int, plain: Callable[[Window], bool], scaled: Callable[[Window], None]
) -> None:
    """Call ``plain`` with each window of the region, and ``scaled`` with small ones where it returns False."""
    for window in windows(region, elements):
        if plain(window):
            continue
        # An outlier slows no more than a small window.
        if elements > _SCALED_CHUNK_ELEMENTS:
            _window_by_window(window, _SCALED_CHUNK_ELEMENTS, plain, scaled)
        else:
            scaled(window)


def windows(region: Window, elements: int) -> Iterator[Window]:
    """Cut a region into windows of about equal size and at most ``elements``, each without gaps in memory."""
    outer, channels, inner = region
    inner_step = _even_step(inner, elements)
    channel_step = _even_step(channels, elements // inner_step)
    outer_step = _even_step(outer, elements // (channel_step * inner_step), aten_plain.BLOCK)
    yield from itertools.product(_cut(outer, outer_step), _cut(channels, channel_step), _cut(inner, inner_step))


def _even_step(span: slice, most: int, multiple: int = 1) -> int:
    """Return a step of at most ``most`` that cuts the span about evenly, if possible a multiple of ``multiple``."""
    size = span.stop - span.start
    if most > multiple:
        most -= most % multiple
    step = -(-size // -(-size // max(1, most)))
    return min(max(1, most), -(-step // multiple) * multiple)


def _cut(span: slice, step: int) -> list[slice]:
    return [slice(start, min(start + step, span.stop)) for start in range(span.start, span.stop, step)]
