"""Load weights into a model: all of them, those that fit, or to fine-tune from."""

import os
import re
from collections.abc import Collection, Sequence
from typing import Any

from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from ..errors import InputError, explain
from ..nn.formats import rational_names, rename_rationals
from .adapt import Size, source_grid, stated_size, with_channels, with_grid
from .formats import compare, describe, model_name
from .io import read

__all__ = ["fit", "load_weights", "notes_on_average", "notes_on_fit", "start_from", "weights"]


def notes_on_average(checkpoint: dict[str, Any], use_ema: bool) -> list[str]:
    """Return a note if the trained weights are used, but the averaged ones have the better metric.

    Args:
        checkpoint: the checkpoint.
        use_ema: whether the averaged weights are used.
    """
    if use_ema or checkpoint.get("metric_weights") != "state_dict_ema":
        return []
    return ["These are the trained weights, the averaged ones were better: --use-ema takes those"]


# Where trainers keep a model's weights and their average, in the order in which they are looked for.
_PLACES = ("state_dict", "model", "model_state_dict", "model_state", "module", "net")
_PLACES_OF_AVERAGES = ("state_dict_ema", "model_ema", "model_ema_state_dict", "ema_state_dict", "ema")

# Trainers put the first ones before all names. PyTorch's wrappers put the second ones anywhere in a name.
_OUTER = ("module.", "model.", "net.", "backbone.", "ema_model.")
_INNER = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def weights(checkpoint: dict[str, Any], use_ema: bool | None = False) -> dict[str, Tensor]:
    """Return a state_dict of a checkpoint of any trainer, without the names of wrappers around the model.

    Args:
        checkpoint: the checkpoint, or a state_dict itself.
        use_ema: take the averaged weights; None takes them if there are any.

    Raises:
        InputError: there is no such state_dict.
    """
    average = _first(checkpoint, _PLACES_OF_AVERAGES)
    if use_ema and average is None:
        raise InputError("the checkpoint holds no EMA weights: leave out --use-ema")
    if use_ema is None:
        use_ema = average is not None
    state = average if use_ema else _first(checkpoint, _PLACES)
    state = checkpoint if state is None else state
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    ):
        raise InputError("the checkpoint holds no state_dict: give a file with the weights of a model")
    return _unwrapped(state)


def _first(checkpoint: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((checkpoint[name] for name in names if isinstance(checkpoint.get(name), dict)), None)


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the names of wrappers, and the counter of PyTorch's averages. A name without a wrapper stays as it is."""
    state = {_INNER.sub("", name): value for name, value in state.items() if name != "n_averaged"}
    while wrapper := _wrapper(state):
        unwrapped = {name.removeprefix(wrapper): value for name, value in state.items()}
        if len(unwrapped) < len(state):
            break
        state = unwrapped
    return state


def _wrapper(names: Collection[str]) -> str | None:
    """Return what most names begin with, if a trainer put it there."""
    return next((each for each in _OUTER if 2 * sum(name.startswith(each) for name in names) > len(names)), None)


def fit(
    model: nn.Module, state: dict[str, Tensor], name: str, *, size: Size | None = None, is_start: bool = False
) -> dict[str, Tensor]:
    """Rename weights to a model's names. A Vision Transformer's are also resampled to its image and patches.

    Args:
        model: the model.
        state: weights in any format of :mod:`flashkat.checkpoints.formats`.
        name: name of the weights, for errors.
        size: height and width of the images that the weights are of, if known.
        is_start: whether the model starts from them, see :func:`flashkat.checkpoints.adapt.source_grid`.

    Raises:
        InputError: the position or patch embedding cannot be resampled.
    """
    state = rename_rationals(state, model.state_dict().keys())
    if not isinstance(model, VisionTransformer):
        return state
    # timm guesses at the grid of positions, and copies them if only their count is the same. It converts DINOv2's.
    positions = None if "mask_token" in state else state.pop("pos_embed", None)
    with explain(f"cannot fit {name} to {model_name(model)}"):
        fitted = checkpoint_filter_fn(state, model)
        if positions is not None:
            grid = source_grid(model, {**state, "pos_embed": positions}, size, name, is_start=is_start)
            is_googles = name.endswith(".npz")
            fitted["pos_embed"] = positions if grid is None else with_grid(positions, grid, model, is_googles)
    return fitted


def load_weights(
    model: nn.Module, state: dict[str, Tensor], name: str, *, size: Size | None = None, partial: bool = False
) -> str:
    """Load a state_dict in any format of :mod:`flashkat.checkpoints.formats`.

    Args:
        model: the model to load into, in place.
        state: a state_dict, as from :func:`weights`.
        name: name of the weights, for errors.
        size: height and width of the images that the weights are of, if known.
        partial: load the tensors that fit, and keep the model's others.

    Returns:
        A line about the tensors that did not fit, "" if all did.

    Raises:
        InputError: the weights do not fit. The message says which are missing, unexpected or of another shape. With
            ``partial``, no tensor fits at all.
    """
    return _load(model, fit(model, state, name, size=size), name, read=state, partial=partial)


def _load(
    model: nn.Module, state: dict[str, Tensor], name: str, *, read: dict[str, Tensor], partial: bool = False
) -> str:
    """Load a fitted state_dict, see :func:`load_weights`.

    Args:
        model: the model to load into, in place.
        state: the weights, fitted to the model.
        name: name of the weights, for errors.
        read: the weights before fitting, whose shapes errors show.
        partial: load the tensors that fit.
    """
    own = model.state_dict()
    found = describe(compare(own, state, rename_rationals(read, own.keys())))
    if not found:
        model.load_state_dict(state)
        return ""
    fitting = {
        key: value
        for key, value in state.items()
        if key in own and value.shape == own[key].shape and (own[key].is_complex() or not value.is_complex())
    }
    if not partial or not fitting:
        raise InputError(f"{name} is of another model than {model_name(model)} as asked for: {found}")
    model.load_state_dict({**own, **fitting})
    return found


def start_from(
    model: nn.Module, path: str | os.PathLike[str], *, use_ema: bool | None = None, partial: bool = False
) -> list[str]:
    """Load weights to fine-tune from: a KAT's, or those of a Vision Transformer of the same size.

    Weights of a ViT leave the rationals at their starting functions. If the number of classes differs, the classifier
    keeps its initialisation. The position embedding is resampled to the model's image size, and the patch embedding is
    adapted to its number of channels, both as timm does.

    Args:
        model: the model to load into, in place.
        path: any file that :func:`read` takes.
        use_ema: take the averaged weights; None takes them if there are any, as in timm.
        partial: load the tensors that fit, and ignore all others.

    Returns:
        A line for each part that is new, or was adapted.

    Raises:
        InputError: the file cannot be read, or differs from the model in other ways.
    """
    checkpoint = read(path)
    as_read, size = weights(checkpoint, use_ema), stated_size(checkpoint)
    state = fit(model, as_read, str(path), size=size, is_start=True)
    own, notes = model.state_dict(), notes_on_fit(model, as_read, path, size)
    rationals = rational_names(own)
    if rationals and not rational_names(state):
        state |= {key: own[key] for key in rationals}
        notes.append(f"{len(rationals) // 2} rationals keep their starting functions: {path}, of a ViT, has none")

    configuration = getattr(model, "pretrained_cfg", None) or {}
    head = [f"{configuration.get('classifier') or 'head'}.{kind}" for kind in ("weight", "bias")]
    if any((key in own) != (key in state) or (key in own and own[key].shape != state[key].shape) for key in head):
        notes.append(f"the classifier is new: {_classes(state, head)} classes in {path}, {_classes(own, head)} here")
        state = {key: value for key, value in state.items() if key not in head}
        state |= {key: own[key] for key in head if key in own}

    first = f"{configuration.get('first_conv') or 'patch_embed.proj'}.weight"
    if first in own and first in state and own[first].ndim == state[first].ndim == 4:
        channels = own[first].shape[1]
        if state[first].shape[1] != channels:
            notes.append(f"the patch embedding is adapted: {state[first].shape[1]} channels in {path}, {channels} here")
            state[first] = with_channels(state[first], channels)

    left = _load(model, state, str(path), read=as_read, partial=partial)
    return notes + ([f"{path} fits in part: {left}"] if left else [])


def notes_on_fit(
    model: Any, state: dict[str, Tensor], path: str | os.PathLike[str], size: Size | None = None
) -> list[str]:
    """Return a line for each embedding that was resampled to the model, or whose grid is a guess.

    Args:
        model: the model.
        state: the weights before :func:`fit`.
        path: name of the weights.
        size: height and width of the images that the weights are of, if known.
    """
    notes: list[str] = []
    if isinstance(model, VisionTransformer) and (grid := source_grid(model, state, size, str(path), is_start=True)):
        own = tuple(model.patch_embed.grid_size)
        if grid != own:
            notes.append(_change("position", grid, own, path))
        elif size is None and grid[0] != grid[1]:
            notes.append(
                f"the position embedding is taken for that of {grid[0]} x {grid[1]} patches, as here: {path} does not "
                "state the size of its images"
            )
    kernel = "patch_embed.proj.weight"
    weight = dict(model.named_parameters()).get(kernel)
    if kernel in state and weight is not None and state[kernel].ndim == weight.ndim == 4:
        old, new = state[kernel].shape[2:], weight.shape[2:]
        if old != new:
            notes.append(_change("patch", old, new, path))
    return notes


def _change(name: str, old: Sequence[int], new: Sequence[int], path: str | os.PathLike[str]) -> str:
    return f"the {name} embedding is resampled: {old[0]} x {old[1]} in {path}, {new[0]} x {new[1]} here"


def _classes(state: dict[str, Tensor], head: list[str]) -> int:
    return next((len(state[key]) for key in head if key in state), 0)
