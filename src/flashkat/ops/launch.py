"""The Triton path: choosing tiles, launching the kernels of ``kernels.py`` and finishing their sums."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import kernels
from .layout import Output, as_three_dimensional
from .reference import compute_dtype

_TRITON_DTYPE = {torch.float32: tl.float32, torch.float64: tl.float64}

# Programs of the backward pass: enough to fill any current GPU several times over, few enough that the partial sums
# (programs x (m + n) x C float64) stay far smaller than x. A constant, so that the order of the sums, and with it
# every bit of the result, does not depend on the GPU.
_BACKWARD_PROGRAMS = 512


@dataclass(frozen=True)
class Tile:
    """Positions x channels that one program holds at a time."""

    positions: int
    channels: int

    @classmethod
    def choose(cls, channels: int, inner: int, elements: int) -> "Tile":
        """Long in the direction that is contiguous: channels when they are last, positions otherwise."""
        widest = 128 if inner == 1 else 8
        across = min(triton.next_power_of_2(channels), widest)
        return cls(elements // across, across)


def forward(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """F(x) as ``dtype``; see :func:`flashkat.rational` for the arguments, which are taken as valid."""
    output = Output(x, dim, dtype)
    if x.numel() == 0:
        return output.finish()
    x3 = as_three_dimensional(x, dim)
    outer, channels, inner = x3.shape
    tile = Tile.choose(channels, inner, elements=1024)
    grid = (triton.cdiv(outer * inner, tile.positions) * triton.cdiv(channels, tile.channels),)
    with torch.cuda.device_of(x):
        kernels.rational_forward_kernel[grid](
            x3, numerator.contiguous(), denominator.contiguous(), output.view,
            outer * inner, inner, channels, channels // max(len(numerator), len(denominator)),
            *x3.stride(), *output.view.stride(),
            **_constants(x, numerator, denominator),
            BLOCK_POSITIONS=tile.positions, BLOCK_CHANNELS=tile.channels,
        )  # fmt: skip
    return output.finish()


def backward(
    grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to x, numerator and denominator, each in the dtype of what it belongs to."""
    output = Output(x, dim, x.dtype)
    if x.numel() == 0:
        return output.finish(), torch.zeros_like(numerator), torch.zeros_like(denominator)
    x3, grad3 = as_three_dimensional(x, dim), as_three_dimensional(grad, dim)
    outer, channels, inner = x3.shape
    m, n = numerator.shape[1], denominator.shape[1]
    tile = Tile.choose(channels, inner, elements=2048)
    channel_blocks = triton.cdiv(channels, tile.channels)
    programs = min(triton.cdiv(outer * inner, tile.positions), triton.cdiv(_BACKWARD_PROGRAMS, channel_blocks))
    partial = torch.empty(programs, m + n, channels, dtype=torch.float64, device=x.device)
    with torch.cuda.device_of(x):
        kernels.rational_backward_kernel[(programs, channel_blocks)](
            grad3, x3, numerator.contiguous(), denominator.contiguous(), output.view, partial,
            outer * inner, inner, channels, channels // max(len(numerator), len(denominator)),
            *grad3.stride(), *x3.stride(), *output.view.stride(),
            **_constants(x, numerator, denominator),
            BLOCK_POSITIONS=tile.positions, BLOCK_CHANNELS=tile.channels, BLOCK_K=triton.next_power_of_2(m + n),
        )  # fmt: skip
    sums = partial.sum(0)
    if x.dtype == torch.float64:  # the only dtype that a saturated sum still fits
        sums = torch.where(sums.abs() >= 2.0 ** (kernels.SUM_EXPONENT - 1), sums * torch.inf, sums)
    signs = torch.where(denominator < 0, -1.0, 1.0).to(denominator.dtype)
    return (
        output.finish(),
        _sum_over_channels(sums[:m], numerator),
        signs * _sum_over_channels(sums[m:], denominator),
    )


def _sum_over_channels(sums: Tensor, coefficients: Tensor) -> Tensor:
    """(count, C) sums per channel to sums per row of the coefficients."""
    return sums.unflatten(1, (len(coefficients), -1)).sum(-1).T.to(coefficients.dtype).contiguous()


def _constants(x: Tensor, numerator: Tensor, denominator: Tensor) -> dict:
    m, n = numerator.shape[1], denominator.shape[1]
    return {
        "M": m,
        "N": n,
        "DEGREE": max(m - 1, n),
        "NUMERATOR_SHARED": len(numerator) == 1,
        "DENOMINATOR_SHARED": len(denominator) == 1,
        "COMPUTE": _TRITON_DTYPE[compute_dtype(x.dtype)],
        "enable_fp_fusion": True,
    }
