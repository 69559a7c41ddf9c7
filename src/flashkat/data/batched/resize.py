"""Cut, resize and flip parts of small images on a GPU, to Pillow's bits."""

import functools

import PIL
import torch
import triton
from torch import Tensor

from ...ops.triton.launcher import Launch, on
from .kernels import resize_kernel

__all__ = ["resized"]

# Since Pillow 13 the columns may come first.
_CHOOSES_ORDER = int(PIL.__version__.split(".")[0]) >= 13

# Most coefficients of a program, and most products with pixels, which its 256 threads add up.
_COEFFICIENTS, _PRODUCTS, _WARPS = 2048, 16384, 8


def resized(images: Tensor, numbers: Tensor, size: tuple[int, int], window: tuple[int, int, int, int]) -> Tensor:
    """Return parts of images, resized and flipped: (B, h, w, 3) in uint8.

    Args:
        images: (N, H, W, 3) in uint8, contiguous.
        numbers: of each part, see :class:`flashkat.data.batched.resident.ResidentBatch`.
        size: height and width of a resized part.
        window: top, left, height and width of the result within that.
    """
    count, (_, height, width, _) = len(numbers), images.shape
    out = torch.empty(count, *window[2:], 3, dtype=torch.uint8, device=images.device)
    # Pillow resizes rows or columns first, with a result of 8 bits.
    flat = torch.empty(count, height, window[3], 3, dtype=torch.uint8, device=images.device)
    along_x, along_y = _launches(images.device, count, height, width, size, window, True)
    with on(images.device):
        along_x(images, numbers, flat)
        along_y(flat, numbers, out)
        if _CHOOSES_ORDER and height > size[0]:
            flat = torch.empty(count, window[2], width, 3, dtype=torch.uint8, device=images.device)
            along_x, along_y = _launches(images.device, count, height, width, size, window, False)
            along_y(images, numbers, flat)
            along_x(flat, numbers, out)
    return out


@functools.lru_cache(maxsize=64)
def _launches(
    device: torch.device,
    count: int,
    height: int,
    width: int,
    size: tuple[int, int],
    window: tuple[int, int, int, int],
    rows_first: bool,
) -> tuple[Launch, Launch]:
    """Return the launches along rows and along columns, for the parts that are resized in this order.

    A compiled kernel is for one device.
    """
    top, left, rows, columns = window
    shared = {"HEIGHT": size[0], "WIDTH": size[1], "CHOOSES_ORDER": _CHOOSES_ORDER, "ROWS_FIRST": rows_first}
    along_x = _launch(count, height if rows_first else rows, width, size[1], left, columns, ALONG_X=True, **shared)
    along_y = _launch(count, columns if rows_first else width, height, size[0], top, rows, ALONG_X=False, **shared)
    return along_x, along_y


def _launch(count: int, lines: int, places: int, wanted: int, first: int, kept: int, **shared: int) -> Launch:
    """Return the launch that resizes ``lines`` of ``places`` pixels to ``wanted``, and keeps some from the first."""
    taps = triton.next_power_of_2(places)
    block = min(triton.next_power_of_2(wanted), max(1, _COEFFICIENTS // taps))
    block_lines = _PRODUCTS // (block * taps)
    constants = {
        "LINES": lines,
        "PLACES": places,
        "FIRST": first,
        "KEPT": kept,
        **shared,
        "TAPS": taps,
        "BLOCK": block,
        "BLOCK_LINES": block_lines,
    }
    grid = count * triton.cdiv(lines, block_lines), triton.cdiv(wanted, block)
    return Launch(resize_kernel, grid, (), constants, _WARPS, {"enable_fp_fusion": False})
