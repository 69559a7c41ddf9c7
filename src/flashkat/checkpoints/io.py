"""Checkpoint files: write them in one step, and read them without running code.

A run's checkpoint has timm's layout. It is a dictionary with ``arch``, ``args``, ``epoch``, ``metric``, ``state_dict``
and ``optimizer``, and if used ``amp_scaler`` and ``state_dict_ema``. ``classes`` names the outputs in order. It holds
only tensors, numbers, strings, and lists or dictionaries of these.

Other files that can be read are bare state_dicts, those under ``model`` and ``model_ema`` as in DeiT's code,
``.safetensors``, and Google's ``.npz``. :mod:`flashkat.checkpoints.formats` knows the names of their weights.
"""

import argparse
import errno
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..defaults import WEIGHTS
from ..errors import InputError, explain
from ..system.files import check_writable, placeholder, replaced
from .formats import from_google
from .integrity import (
    check_header,
    check_name,
    check_pickles,
    check_records,
    check_sizes,
    check_tensors,
    digest,
    seal,
)
from .numpy_values import NO_NUMBERS, SAFE_NUMPY

__all__ = ["check_output", "read", "write", "write_weights"]

# timm's checkpoints hold their arguments as its parser returns them: attributes with no behaviour.
_ARGUMENTS = type(argparse.ArgumentParser().parse_args([]))
_SAFE_GLOBALS: list[Any] = [_ARGUMENTS, *SAFE_NUMPY]

# The types of these entries. Other programs may write other types under the same names.
_ENTRIES: dict[Any, type] = {"arch": str, "args": dict, "classes": list, "epoch": int}

# In the metadata of safetensors, which other programs ignore.
_DIGEST = "flashkat_digest"

# Bytes that tell a pointer or a web page.
_HEAD = 64


def write(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint so that at every moment ``path`` is a whole file, the old one or the new one.

    Raises:
        OSError: it cannot be written. The old file stays.
    """
    with replaced(path, keeps_special=False) as partial:
        _save(checkpoint, partial)
        seal(partial)


def _save(content: dict[str, Any], path: Path) -> None:
    """Write to a file with :func:`torch.save`.

    It gets an open file. A path that exists would be truncated, and ext4 flushes such a file as it is closed. PyTorch
    keeps Python's lock meanwhile, which held up training for 0.5 s at each checkpoint of KAT-Base.

    Raises:
        OSError: it cannot be written.
    """
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        # PyTorch's writer hides the system's error behind one of its own.
        reason = error.__context__
        raise reason if isinstance(reason, OSError) else OSError(errno.EIO, str(error), str(path)) from error


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a PyTorch, ``.safetensors`` or ``.npz`` file to the CPU without running code.

    Every checksum that the file has is compared with what it holds.

    Raises:
        InputError: the file cannot be read, is damaged or no checkpoint, or would need to run code to load. Or an
            ``.npz`` is not one of Google's original ViTs.
    """
    path = Path(path)
    if path.is_dir():
        last = path / "last.pth.tar"
        example = f" in it, such as {last}" if last.is_file() else ""
        raise InputError(f"{path} is a folder: name a checkpoint{example}")
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    with explain(f"cannot read {path}"), path.open("rb") as file:
        other = placeholder(file.read(_HEAD))
    if other:
        raise InputError(f"{path} {other}")
    check_name(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return {"state_dict": from_google(str(path), _npz_shapes(path))}
    try:
        if _is_zip(path):
            check_sizes(path)
            check_records(path)
        else:
            check_pickles(path)
        with torch.serialization.safe_globals(_SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, beside the error that follows
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # damaged files make torch raise almost anything
        if _needs_code(path, error):
            raise InputError(
                f"{path} would need to run code to load, so it was not: save its state_dict alone, or as safetensors"
            ) from error
        raise InputError(f"{path} is not a checkpoint, or truncated or damaged: copy or download it again") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds no state_dict: give a file with the weights of a model")
    check_tensors(checkpoint, path)
    return _without_misfits(checkpoint)


def _is_zip(path: Path) -> bool:
    """Return whether torch will read a file as a zip archive. Older files are pickles."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _without_misfits(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Drop the entries of a checkpoint that do not have the type of their name."""
    if isinstance(checkpoint.get("args"), _ARGUMENTS):
        checkpoint["args"] = vars(checkpoint["args"])
    kept: dict[str, Any] = {
        name: value for name, value in checkpoint.items() if isinstance(value, _ENTRIES.get(name, object))
    }
    if not all(isinstance(name, str) for name in kept.get("classes", [])):
        del kept["classes"]
    args: dict[str, Any] = kept.get("args", {})
    if not isinstance(args.get("model_kwargs", {}), dict):
        del args["model_kwargs"]
    return kept


def _needs_code(path: Path, error: Exception) -> bool:
    """Return whether torch refused a complete file because it names functions or classes."""
    if NO_NUMBERS in str(error):
        return True
    if not isinstance(error, pickle.UnpicklingError):
        return False
    try:
        return bool(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # only the zip format can be asked; for older ones torch's words have to do
        with path.open("rb") as file:
            is_pickle = file.read(1) == pickle.PROTO  # a text may begin like a pickle without it
        return is_pickle and "global" in str(error).lower()


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get(_DIGEST)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        is_whole = expected is None or expected == digest(state)
    except Exception as error:  # of a damaged header, beside SafetensorError
        raise InputError(f"{path} is truncated or damaged: copy or download it again") from error
    if not is_whole:
        raise InputError(f"{path} is damaged, its checksum is another: copy or download it again")
    return {"state_dict": state}


def _npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read all arrays of an ``.npz``, so that a damaged one is found, and return their shapes by name."""
    try:
        check_sizes(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name].shape for name in archive.files}
    except InputError:
        raise
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
        with replaced(path) as partial:
            if path.suffix == ".safetensors":
                from safetensors.torch import save

                # Copies, because the format has no place for tensors that share memory.
                copies = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
                partial.write_bytes(save(copies, {"format": "pt", _DIGEST: digest(copies)}))
            else:
                _save(state, partial)
                if partial.is_file():
                    seal(partial)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def check_output(path: Path) -> None:
    """Raise InputError unless weights can be written to a file of this name."""
    if not path.name.endswith(WEIGHTS):
        raise InputError(f"cannot write {path}: give a name that ends in {', '.join(WEIGHTS)}")
    check_writable(path)
