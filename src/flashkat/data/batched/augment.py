"""Apply the steps of an augmentation to a batch on a GPU, in a few launches for all images together."""

import torch
import triton
from torch import Tensor

from . import kernels

__all__ = ["apply_steps"]

_BLOCK = 1024


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
    pixels = height * width
    blocks = (count, triton.cdiv(pixels, _BLOCK))
    out = torch.empty_like(images)
    counts = torch.empty(count, 3, 256, dtype=torch.int32, device=images.device)
    tables = torch.empty(count, 3, 256, dtype=torch.uint8, device=images.device)
    for each in steps:
        counts.zero_()
        kernels.count_kernel[blocks](images, each, counts, pixels, BLOCK=_BLOCK)
        kernels.table_kernel[(count, 3)](each, counts, tables, pixels, enable_fp_fusion=False)
        kernels.step_kernel[blocks](
            images,
            each,
            tables,
            out,
            HEIGHT=height,
            WIDTH=width,
            RED=fill[0],
            GREEN=fill[1],
            BLUE=fill[2],
            BLOCK=_BLOCK,
            enable_fp_fusion=False,
        )
        images, out = out, images
    return images
