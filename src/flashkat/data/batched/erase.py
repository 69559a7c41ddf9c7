"""Fill boxes of images on a GPU in one launch."""

import functools

import torch
import triton
from torch import Tensor

from ...ops.triton.launcher import Launch, on
from .kernels import erase_kernel

__all__ = ["fill_boxes"]

_BLOCK = 1024


def fill_boxes(images: Tensor, boxes: Tensor, filling: Tensor) -> None:
    """Fill boxes in place.

    Args:
        images: (N, C, H, W), contiguous.
        boxes: (M, 5) in int64 on the same device: an image's index, and its first and last row, first and last column.
            The last ones are not filled. An image has one box at most.
        filling: (M, C, H, W) or (M, C, 1, 1), of the images' dtype.
    """
    with on(images.device):
        per_pixel = filling.shape[2:] == images.shape[2:]
        _launch(images.device, images.dtype, len(boxes), images.shape[1:], per_pixel)(images, boxes, filling)


@functools.lru_cache(maxsize=1024)
def _launch(device: torch.device, dtype: torch.dtype, boxes: int, shape: torch.Size, per_pixel: bool) -> Launch:
    """Return the launch for images of a device and a dtype, which its compiled kernel is for."""
    channels, height, width = shape
    constants = {
        "CHANNELS": channels,
        "HEIGHT": height,
        "WIDTH": width,
        "PER_PIXEL": per_pixel,
        "BLOCK": _BLOCK,
    }
    return Launch(erase_kernel, (boxes, triton.cdiv(height * width, _BLOCK)), (), constants, warps=4)
