"""Augment, normalise and mix a batch on a GPU, in a few launches for all its images."""

import functools

import torch
import triton
from torch import Tensor

from ...ops.triton.launcher import Launch, on
from . import kernels

__all__ = ["apply_steps", "mix", "mixed_target", "normalised"]

_BLOCK, _WARPS = 1024, 4
# Pixels whose values one program counts.
_COUNTED = 4096


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


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return ``images.to(mean.dtype).sub(mean).div(std)``, with the same bits, in one launch.

    Args:
        images: (B, C, H, W) in uint8 on a GPU, contiguous or a view of (B, H, W, C).
        mean: (1, C, 1, 1) in float32, bfloat16 or float16, on the same GPU.
        std: likewise.

    Returns:
        (B, C, H, W), contiguous.
    """
    out = torch.empty(images.shape, dtype=mean.dtype, device=images.device)
    with on(images.device):
        _normalising(images.device, mean.dtype, images.shape, images.stride(1), images.stride(3))(
            images, mean, std, out
        )
    return out


def mix(images: Tensor, out: Tensor, share: float, box: tuple[int, int, int, int]) -> None:
    """Mix each image with its partner within a box, in one launch. Image i's partner is image B - 1 - i.

    Args:
        images: (B, C, H, W) on a GPU, contiguous or channels_last, of floating point.
        out: takes the mixed images: another tensor of the same shape, dtype and strides.
        share: the image's own share of a mixed pixel, in [0, 1].
        box: the first row and the one after the last, then the columns likewise.
    """
    count, channels, height, width = images.shape
    values = channels * height * width
    with on(images.device):
        kernels.mix_kernel[triton.cdiv(count, 2), triton.cdiv(values, _BLOCK)](
            images, out, share, *box, count, values,
            HEIGHT=height, WIDTH=width, ROW=images.stride(2), COLUMN=images.stride(3), BLOCK=_BLOCK, num_warps=_WARPS,
        )  # fmt: skip


def mixed_target(target: Tensor, classes: int, share: float, smoothing: float) -> Tensor:
    """Return timm's ``mixup_target`` with the same bits, in one launch.

    Args:
        target: (B,) classes in int64, on a GPU.
        classes: number of classes.
        share: the image's own share, in [0, 1].
        smoothing: of the labels, in [0, 1].

    Returns:
        (B, classes) in float32.
    """
    count, off = len(target), smoothing / classes
    out = torch.empty(count, classes, device=target.device)
    with on(target.device):
        kernels.mix_target_kernel[count, triton.cdiv(classes, _BLOCK)](
            target, out, share, 1 - share, 1 - smoothing + off, off, count, classes,
            BLOCK=_BLOCK, num_warps=_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return out


@functools.lru_cache(maxsize=64)
def _normalising(device: torch.device, dtype: torch.dtype, shape: torch.Size, across: int, along: int) -> Launch:
    """Return the launch for a device, a dtype of results, and a shape with the strides of channels and pixels."""
    count, channels, height, width = shape
    pixels = height * width
    constants = {"CHANNELS": channels, "ACROSS": across, "ALONG": along, "BLOCK": _BLOCK}
    return Launch(kernels.normalise_kernel, (count, triton.cdiv(pixels, _BLOCK)), (pixels,), constants, _WARPS)


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
        Launch(kernels.count_kernel, (count, triton.cdiv(pixels, _COUNTED)), (pixels,), {"BLOCK": _COUNTED}, _WARPS),
        Launch(kernels.table_kernel, (count, 3), (pixels,), {}, _WARPS, exact),
        Launch(kernels.step_kernel, blocks, (), {**constants, "BLOCK": _BLOCK}, _WARPS, exact),
    )
