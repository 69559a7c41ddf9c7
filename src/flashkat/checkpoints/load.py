"""Loading weights into a model: whole, in part, or to fine-tune from."""

import os
from typing import TYPE_CHECKING, Any

from timm.models import adapt_input_conv, clean_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from ..errors import InputError, explain
from ..nn.formats import rational_names, rename_rationals
from .formats import compare, describe, model_name

if TYPE_CHECKING:
    pass

from .io import read

__all__ = ["fit", "load_weights", "notes_on_average", "start_from", "weights"]


def notes_on_average(checkpoint: dict[str, Any], use_ema: bool) -> list[str]:
    """What to tell who takes a checkpoint's own weights where the averaged ones have the better metric."""
    if use_ema or checkpoint.get("metric_weights") != "state_dict_ema":
        return []
    return ["These are the trained weights, the averaged ones were better: --use-ema takes those"]


def weights(checkpoint: dict[str, Any], use_ema: bool | None = False) -> dict[str, Tensor]:
    """The state_dict of a checkpoint, or the one of its exponential moving average; None takes that where there is one.

    Raises:
        InputError: there is none.
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
    """Weights in the names of a model, a Vision Transformer's also at its sizes of image and patches, by timm.

    Raises:
        InputError: position or patch embeddings that timm cannot resample.
    """
    state = rename_rationals(state, model.state_dict().keys())
    if not isinstance(model, VisionTransformer):
        return state
    with explain(f"cannot fit {name} to {model_name(model)}"):
        return checkpoint_filter_fn(state, model)


def load_weights(model: nn.Module, state: dict[str, Tensor], name: str, *, partial: bool = False) -> str:
    """Load a state_dict, in any of the formats of :mod:`flashkat.names`.

    Args:
        model: what to load into.
        state: as from :func:`weights`.
        name: what to call the weights in errors.
        partial: load what fits and leave the model's other weights as they are.

    Returns:
        What did not fit, in a line; empty if all did.

    Raises:
        InputError: the weights are of another model; says what is missing, unexpected or of another shape. Where
            ``partial``: nothing fits at all.
    """
    return _load(model, fit(model, state, name), name, read=state, partial=partial)


def _load(
    model: nn.Module, state: dict[str, Tensor], name: str, *, read: dict[str, Tensor], partial: bool = False
) -> str:
    """``load_weights`` of what fits as far as it can, told apart by the shapes that it was read in."""
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

    What a new task or a ViT cannot give stays as the model was initialised: the rationals at their starting functions
    where the weights hold none at all, and the classifier where the number of classes is another. The position
    embedding is resampled to the model's image size, and the patch embedding to its number of channels, both by timm.

    Args:
        model: what to load into.
        path: any file that :func:`read` takes.
        use_ema: the averaged weights; None, as in timm, where there are any.
        partial: load what fits, whatever else is missing or beside it.

    Returns:
        A line for each thing that was not taken from the file.

    Raises:
        InputError: the file cannot be read, or is of another model but for what is said above.
    """
    as_read = weights(read(path), use_ema)
    state = fit(model, as_read, str(path))
    own, notes = model.state_dict(), []
    rationals = rational_names(own)
    if rationals and not rational_names(state):
        state |= {key: own[key] for key in rationals}
        notes.append(f"{len(rationals) // 2} rationals keep their starting functions: {path} is of a ViT without any")

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


def _classes(state: dict[str, Tensor], head: list[str]) -> int:
    return next((len(state[key]) for key in head if key in state), 0)
