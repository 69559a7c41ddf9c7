"""Adapt a Vision Transformer's weights to other images: to another grid of patches, or other channels."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from ..errors import InputError

__all__ = ["Size", "source_grid", "stated_size", "with_channels", "with_grid"]

Size = tuple[int, int]

_LARGEST = 2**16
_TOKENS = ("cls_token", "reg_token", "dist_token")


def stated_size(checkpoint: Mapping[str, Any]) -> Size | None:
    """Return the height and width of images that a checkpoint's arguments state; None if they state none."""
    args = checkpoint.get("args")
    if not isinstance(args, Mapping):
        return None
    channels_and_size, kwargs = args.get("input_size"), args.get("model_kwargs")
    for size in (
        kwargs.get("img_size") if isinstance(kwargs, Mapping) else None,
        channels_and_size[1:] if isinstance(channels_and_size, (list, tuple)) else None,
        args.get("img_size"),
    ):
        sides = (size, size) if isinstance(size, int) else size
        if isinstance(sides, (list, tuple)) and len(sides) == 2 and all(map(_is_side, sides)):
            return sides[0], sides[1]
    return None


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= _LARGEST


def source_grid(
    model: Any, state: Mapping[str, Tensor], size: Size | None, name: str, *, is_start: bool
) -> Size | None:
    """Return the grid of patches that weights have positions of, (rows, columns).

    It is that of the stated size, or else the model's own, that of its published weights, or a square. None means
    that the weights have no such positions, or are of another model.

    Args:
        model: the Vision Transformer to load into.
        state: weights; their ``pos_embed`` is (1, tokens, features).
        size: height and width of the images that the weights are of, if stated.
        name: name of the weights, for errors.
        is_start: prefer the grid of the published weights to the model's own, as the file may hold these.

    Raises:
        InputError: no such grid has as many positions.
    """
    embedding, kernel = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    if model.pos_embed is None or embedding is None or embedding.ndim != 3 or not _has_tokens(model, state):
        return None
    count = embedding.shape[1] - _prefix_tokens(model)
    patch = tuple(kernel.shape[-2:]) if kernel is not None and kernel.ndim == 4 else model.patch_embed.patch_size
    published = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-2:]
    grids = {"own": tuple(model.patch_embed.grid_size), "published": _grid(published, patch)}
    side = math.isqrt(max(count, 0))
    for grid in (
        _grid(size, patch) if size else None,
        grids["published" if is_start else "own"],
        grids["own" if is_start else "published"],
        (side, side),
    ):
        if grid is not None and grid[0] * grid[1] == count > 0:
            return grid[0], grid[1]
    raise InputError(
        f"the position embedding of {name} has {count} positions, which are no square, and the file does not state "
        "the size of its images: give a checkpoint with its arguments"
    )


def _grid(size: tuple[int, ...], patch: tuple[int, ...]) -> Size:
    return size[0] // patch[0], size[1] // patch[1]


def _has_tokens(model: Any, state: Mapping[str, Tensor]) -> bool:
    """Return whether weights have the model's tokens beside those of patches."""

    def shapes(tensors: Mapping[str, Tensor]) -> list[tuple[int, ...] | None]:
        return [tuple(tensors[name].shape[:2]) if name in tensors else None for name in _TOKENS]

    return shapes(state) == shapes(model.state_dict())


def _prefix_tokens(model: Any) -> int:
    return 0 if model.no_embed_class else model.num_prefix_tokens


def with_grid(embedding: Tensor, grid: Size, model: Any, is_googles: bool = False) -> Tensor:
    """Resample a position embedding (1, tokens, features) from a grid to the model's, as timm does.

    timm resamples Google's files in another way than its own.
    """
    own = tuple(model.patch_embed.grid_size)
    if grid == own:
        return embedding
    how: dict[str, Any] = {"interpolation": "bilinear", "antialias": False} if is_googles else {}
    return resample_abs_pos_embed(embedding, list(own), list(grid), num_prefix_tokens=_prefix_tokens(model), **how)


def with_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt a first convolution (out, in, height, width) to a number of channels.

    The rule is timm's, which knows weights of 3 channels alone. One channel takes the sum of all. Otherwise the
    channels are repeated in turn, and scaled so that equal channels give the same sum.
    """
    given, wide = weight.shape[1], weight.float()
    if channels == given:
        return weight
    if channels == 1:
        return wide.sum(dim=1, keepdim=True).to(weight.dtype)
    return (wide[:, torch.arange(channels) % given] * (given / channels)).to(weight.dtype)
