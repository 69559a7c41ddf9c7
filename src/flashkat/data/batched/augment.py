"""Apply the steps of an augmentation to a batch on a GPU, in a few launches for all images together."""

import functools

import torch
import triton
from torch import Tensor

from ...ops.triton.launcher import Launch, on
from . import kernels

__all__ = ["apply_steps"]

_BLOCK, _WARPS = 1024, 4


def apply_steps(images: Tensor, steps: Tensor, fill: tuple[int, ...] = (0, 0, 0)) -> Tensor:
    """Return a batch with each image's steps applied in turn, in the bits that Pillow gives.

    Args:
        images: (B, H, W, 3) in uint8, contiguous, on a GPU. It may be overwritten.
        steps: (L, B, 1 + NUMBERS) in float64 on the same GPU, see :func:`flashkat.data.batched.steps.as_table`.
        fill: red, green and blue of places that an affine map leaves empty.

    Returns:
        (B, H, W, 3) in uint8.
    """
    count, height, width, _ = images.shape
    out = torch.empty_like(images)
    counts = torch.empty(count, 3, 256, dtype=torch.int32, device=images.device)
    tables = torch.empty(count, 3, 256, dtype=torch.uint8, device=images.device)
    count_values, make_tables, apply = _launches(images.device, count, height, width, fill)
    with on(images.device):
        for each in steps:
            counts.zero_()
            count_values(images, each, counts)
            make_tables(each, counts, tables)
            apply(images, each, tables, out)
            images, out = out, images
    return images


@functools.lru_cache(maxsize=64)
def _launches(
    device: torch.device, count: int, height: int, width: int, fill: tuple[int, ...]
) -> tuple[Launch, Launch, Launch]:
    """Return the launches that count values, make tables of them, and apply a step.

    A compiled kernel is for one device.
    """
    pixels = height * width
    blocks, exact = (count, triton.cdiv(pixels, _BLOCK)), {"enable_fp_fusion": False}
    constants = {"HEIGHT": height, "WIDTH": width, **dict(zip(("RED", "GREEN", "BLUE"), fill, strict=True))}
    return (
        Launch(kernels.count_kernel, blocks, (pixels,), {"BLOCK": _BLOCK}, _WARPS),
        Launch(kernels.table_kernel, (count, 3), (pixels,), {}, _WARPS, exact),
        Launch(kernels.step_kernel, blocks, (), {**constants, "BLOCK": _BLOCK}, _WARPS, exact),
    )
