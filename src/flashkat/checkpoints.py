"""Checkpoint files: writing them whole, reading them without running code, loading weights into a model.

A checkpoint of a run has timm's layout: a dictionary with ``arch``, ``args``, ``epoch``, ``metric``, ``state_dict``,
``optimizer``, and where there are any ``amp_scaler`` and ``state_dict_ema``; ``classes`` names the outputs in order.
Everything in it is a tensor, a number, a string, or a list or dictionary of them.
"""

import argparse
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict
from torch import Tensor, nn

from .errors import InputError

__all__ = ["load_weights", "read", "weights", "write"]

# timm's own checkpoints carry their arguments as a Namespace: a bag of names with no behaviour.
_SAFE_GLOBALS: list[Any] = [argparse.Namespace]

# What other programs write under these names may be anything.
_ENTRIES: dict[Any, type] = {"arch": str, "args": dict, "classes": list, "epoch": int}


def write(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint so that at every moment ``path`` is a whole file, the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    torch.save(checkpoint, partial)
    partial.replace(path)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a ``.safetensors`` or PyTorch file to the CPU without running code.

    Raises:
        InputError: the file is missing, truncated, no checkpoint, or would need to run code to load.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a checkpoint in it, such as {path / 'last.pth.tar'}")
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
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
        return "global" in str(error).lower()


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {"state_dict": load_file(path)}
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or damaged: copy or download it again") from error


def weights(checkpoint: dict[str, Any], use_ema: bool = False) -> dict[str, Tensor]:
    """The state_dict of a checkpoint, or the one of its exponential moving average."""
    if use_ema and "state_dict_ema" not in checkpoint:
        raise InputError("the checkpoint holds no EMA weights: leave out --use-ema")
    state = checkpoint.get("state_dict_ema") if use_ema else checkpoint.get("state_dict", checkpoint.get("model"))
    state = checkpoint if state is None else state
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    ):
        raise InputError("the checkpoint holds no state_dict")
    return clean_state_dict(state)


def load_weights(model: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load a state_dict strictly.

    Raises:
        InputError: the weights are of another model; says what is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
            for key in own.keys() & state.keys()
            if own[key].shape != state[key].shape
        ],
    }
    found = "; ".join(f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in problems.items() if keys)
    if found:
        raise InputError(f"{name} is of another model than {type(model).__name__} as asked for: {found}")
    model.load_state_dict(state)


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
