"""Checkpoint files: writing them whole, reading them without running code, loading weights into a model.

A checkpoint of a run has timm's layout: a dictionary with ``arch``, ``args``, ``epoch``, ``metric``, ``state_dict``,
``optimizer``, and where there are any ``amp_scaler`` and ``state_dict_ema``; ``classes`` names the outputs in order.
Everything in it is a tensor, a number, a string, or a list or dictionary of them.

Read are also bare state_dicts, those under ``model`` and ``model_ema`` as DeiT's code writes them, ``.safetensors``,
and Google's ``.npz``. What the weights in them are called is the matter of :mod:`flashkat.names`.
"""

import argparse
import os
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.models import adapt_input_conv, clean_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from .errors import InputError, explain
from .files import check_writable, replaced
from .names import compare, describe, from_google, model_name, rational_names, rename_rationals

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "check_output",
    "fit",
    "load_weights",
    "notes_on_average",
    "read",
    "start_from",
    "weights",
    "write",
    "write_weights",
]

# timm's own checkpoints carry their arguments as a Namespace: a bag of names with no behaviour.
_SAFE_GLOBALS: list[Any] = [argparse.Namespace]

# What other programs write under these names may be anything.
_ENTRIES: dict[Any, type] = {"arch": str, "args": dict, "classes": list, "epoch": int}

_SUFFIXES = (".pth", ".pth.tar", ".pt", ".bin", ".safetensors")


def write(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint so that at every moment ``path`` is a whole file, the old one or the new one."""
    with replaced(path) as partial:
        torch.save(checkpoint, partial)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a PyTorch, ``.safetensors`` or ``.npz`` file to the CPU without running code.

    Raises:
        InputError: the file is missing, may not be read, is truncated, no checkpoint, or would need to run code to
            load; an ``.npz`` is not of one of Google's original ViTs.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a checkpoint in it, such as {path / 'last.pth.tar'}")
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    with explain(f"cannot read {path}"):
        path.open("rb").close()
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return {"state_dict": from_google(_read_npz(path), str(path))}
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, beside the error that follows
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch raise almost anything
        if _needs_code(path, error):
            raise InputError(
                f"{path} would need to run code to load, so it was not: save its state_dict alone, or as safetensors"
            ) from error
        raise InputError(f"{path} is not a checkpoint, or truncated or damaged: copy or download it again") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds no state_dict")
    return _without_misfits(checkpoint)


def _without_misfits(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint whose entries beside the weights are what their names promise; others are left out."""
    if isinstance(checkpoint.get("args"), argparse.Namespace):
        checkpoint["args"] = vars(checkpoint["args"])
    kept: dict[str, Any] = {
        name: value for name, value in checkpoint.items() if isinstance(value, _ENTRIES.get(name, object))
    }
    args: dict[str, Any] = kept.get("args", {})
    if not isinstance(args.get("model_kwargs", {}), dict):
        del args["model_kwargs"]
    return kept


def _needs_code(path: Path, error: Exception) -> bool:
    """Whether torch refused a whole file for the functions or classes that it names."""
    if not isinstance(error, pickle.UnpicklingError):
        return False
    try:
        return bool(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # only the zip format can be asked; for older ones torch's words have to do
        with path.open("rb") as file:
            is_pickle = file.read(1) == pickle.PROTO  # a text may begin like a pickle without it
        return is_pickle and "global" in str(error).lower()


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {"state_dict": load_file(path)}
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or damaged: copy or download it again") from error


def _read_npz(path: Path) -> "dict[str, np.ndarray]":
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # damaged files make numpy and zipfile raise almost anything
        if "Object arrays" in str(error):
            raise InputError(f"{path} would need to run code to load, so it was not") from error
        raise InputError(f"{path} is no .npz, or truncated or damaged: copy or download it again") from error


def write_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Write a bare state_dict, as ``.safetensors`` or for ``torch.load`` by the suffix of ``path``.

    Raises:
        InputError: the suffix is none of a checkpoint's, or nothing can be written there; nothing is left then.
    """
    check_output(path)
    try:
        with replaced(path) as partial, partial.open("wb") as file:
            if path.suffix == ".safetensors":
                from safetensors.torch import save

                # Copies, because the format has no place for tensors that share memory.
                copies = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
                file.write(save(copies, {"format": "pt"}))
            else:
                torch.save(state, file)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def check_output(path: Path) -> None:
    """Raise InputError unless weights can be written to a file of this name."""
    if not path.name.endswith(_SUFFIXES):
        raise InputError(f"cannot write {path}: give a name that ends in {', '.join(_SUFFIXES)}")
    check_writable(path)


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
