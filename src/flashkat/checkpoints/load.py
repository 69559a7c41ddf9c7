"""Load weights into a model: all of them, those that fit, or to fine-tune from."""

import os
from typing import Any

from timm.models import adapt_input_conv, clean_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from ..errors import InputError, explain
from ..nn.formats import rational_names, rename_rationals
from .formats import compare, describe, model_name
from .io import read

__all__ = ["fit", "load_weights", "notes_on_average", "start_from", "weights"]


def notes_on_average(checkpoint: dict[str, Any], use_ema: bool) -> list[str]:
    """Return a note if the trained weights are used, but the averaged ones have the better metric.

    Args:
        checkpoint: the checkpoint.
        use_ema: whether the averaged weights are used.
    """
    if use_ema or checkpoint.get("metric_weights") != "state_dict_ema":
        return []
    return ["These are the trained weights, the averaged ones were better: --use-ema takes those"]


def weights(checkpoint: dict[str, Any], use_ema: bool | None = False) -> dict[str, Tensor]:
    """Return a state_dict of a checkpoint.

    Args:
        checkpoint: the checkpoint, or a state_dict itself.
        use_ema: take the averaged weights; None takes them if there are any.

    Raises:
        InputError: there is no such state_dict.
    """
    average = checkpoint.get("state_dict_ema", checkpoint.get("model_ema"))
    if use_ema and average is None:
        raise InputError("the checkpoint holds no EMA weights: leave out --use-ema")
    if use_ema is None:
        use_ema = average is not None
    state = average if use_ema else checkpoint.get("state_dict", checkpoint.get("model"))
    state = checkpoint if state is None else state
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    ):
        raise InputError("the checkpoint holds no state_dict")
    return clean_state_dict(state)


def fit(model: nn.Module, state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Rename weights to a model's names. For a Vision Transformer, timm also resamples them to its image and patches.

    Args:
        model: the model.
        state: weights in any format of :mod:`flashkat.checkpoints.formats`.
        name: name of the weights, for errors.

    Raises:
        InputError: timm cannot resample the position or patch embedding.
    """
    state = rename_rationals(state, model.state_dict().keys())
    if not isinstance(model, VisionTransformer):
        return state
    # timm resamples Google's files in another way than its own.
    how = {"interpolation": "bilinear", "antialias": False} if name.endswith(".npz") else {}
    with explain(f"cannot fit {name} to {model_name(model)}"):
        return checkpoint_filter_fn(state, model, **how)


def load_weights(model: nn.Module, state: dict[str, Tensor], name: str, *, partial: bool = False) -> str:
    """Load a state_dict in any format of :mod:`flashkat.checkpoints.formats`.

    Args:
        model: the model to load into, in place.
        state: a state_dict, as from :func:`weights`.
        name: name of the weights, for errors.
        partial: load the tensors that fit, and keep the model's others.

    Returns:
        A line about the tensors that did not fit, "" if all did.

    Raises:
        InputError: the weights do not fit. The message says which are missing, unexpected or of another shape. With
            ``partial``, no tensor fits at all.
    """
    return _load(model, fit(model, state, name), name, read=state, partial=partial)


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
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
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
    adapted to its number of channels, both by timm.

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
    as_read = weights(read(path), use_ema)
    state = fit(model, as_read, str(path))
    own, notes = model.state_dict(), _resampled(as_read, state, path)
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
            with explain(f"cannot adapt {path} to {channels} channels"):
                state[first] = adapt_input_conv(channels, state[first])

    left = _load(model, state, str(path), read=as_read, partial=partial)
    return notes + ([f"{path} fits in part: {left}"] if left else [])


def _resampled(read: dict[str, Tensor], fitted: dict[str, Tensor], path: str | os.PathLike[str]) -> list[str]:
    """Return a line for each embedding that timm resampled to the model's image and patches."""
    sizes = [
        (name, tuple(read[key].shape), tuple(fitted[key].shape))
        for name, key in (("position", "pos_embed"), ("patch", "patch_embed.proj.weight"))
        if key in read and key in fitted and read[key].ndim == fitted[key].ndim
    ]
    return [f"the {name} embedding is resampled: {old} in {path}, {new} here" for name, old, new in sizes if old != new]


def _classes(state: dict[str, Tensor], head: list[str]) -> int:
    return next((len(state[key]) for key in head if key in state), 0)
