"""What the device flags ask of the process and of a model: dtype, layout, compilation."""

import importlib
import os
from argparse import Namespace

import torch
from timm.layers import set_fast_norm
from torch import nn

from .errors import InputError, explain

__all__ = ["compile_in_place", "place", "prepare_process"]


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
    if args.torchcompile_mode and not args.torchcompile:
        raise InputError("--torchcompile-mode needs --torchcompile")
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


def compile_in_place(model: nn.Module, args: Namespace) -> None:
    """Have a module's calls compiled as ``--torchcompile`` asks; its state_dict keeps its names.

    Raises:
        InputError: there is no such backend or mode.
    """
    if args.torchcompile:
        with explain(f"cannot compile with {args.torchcompile} {args.torchcompile_mode or ''}".rstrip()):
            model.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
