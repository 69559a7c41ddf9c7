"""The device of a command: finding it, and placing a model on it with the dtype, layout and precision asked for."""

import contextlib
import importlib
import os
import warnings
from argparse import Namespace
from collections.abc import Iterator

import torch
from timm.layers import set_fast_norm
from torch import nn

from ..errors import InputError, explain

__all__ = ["resolve_device"]


def resolve_device(name: str | None) -> torch.device:
    """The device asked for, or the GPU if there is one, or the CPU.

    Raises:
        InputError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"no device {name!r} here: leave out --device, or give cpu, cuda or cuda:N") from error
    return device


def prepare_process(args: Namespace) -> None:
    """Set what has to be set before a model is made.

    Raises:
        InputError: flags that do not go together, or a module that cannot be imported.
    """
    for name in args.device_modules or []:
        with explain(f"cannot import {name} of --device-modules"):
            importlib.import_module(name)
    if args.amp and args.model_dtype not in (None, "float32"):
        raise InputError(f"--amp needs weights in float32: leave out --amp or --model-dtype {args.model_dtype}")
    if getattr(args, "local_rank", None) is not None:
        # As older launchers pass it; newer ones set the variable.
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    set_fast_norm(args.fast_norm)


def place(model: nn.Module, args: Namespace, device: torch.device) -> nn.Module:
    """The model on its device, in the dtype and layout that the flags ask for."""
    model.to(device=device, dtype=getattr(torch, args.model_dtype or "float32"))
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


@contextlib.contextmanager
def training_products(args: Namespace, device: torch.device) -> Iterator[None]:
    """On a GPU, multiply float32 matrices in TF32, or with ``--no-tf32`` convolve in float32 too; at the end as before.

    PyTorch by itself takes TF32 for convolutions and float32 for matrices.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_products("highest" if args.no_tf32 else "high", convolutions=not args.no_tf32)
    try:
        yield
    finally:
        _set_products(*before)


def _set_products(matrices: str, convolutions: bool) -> None:
    with warnings.catch_warnings():
        # Some versions point to newer settings. Using both kinds is an error, and other code reads these.
        warnings.filterwarnings("ignore", message="Please use the new API settings")
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions
