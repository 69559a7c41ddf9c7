"""Whether and how a model is compiled."""

import os
import shutil
from argparse import Namespace

import torch
from torch import nn

from ..errors import InputError, explain, is_installed
from . import distributed

__all__ = ["choose_compilation", "compile_in_place"]

# As Triton looks for one, after the variable CC.
_C_COMPILERS = ("gcc", "clang", "cc")

# With CUDA graphs the processor need not launch each kernel.
_GRAPHS = "reduce-overhead"
_GRAPH_MODES = (_GRAPHS, "max-autotune")


def choose_compilation(args: Namespace, device: torch.device, training: bool = False) -> list[str]:
    """Settle in ``args.torchcompile`` whether the model is compiled; returns lines about what no flag asked for.

    Training compiles on a GPU unless the flags say otherwise. Evaluating after its epochs then costs one compilation
    more, which the average of the weights shares. A single evaluation seldom makes up for one: it has to be asked for.

    Raises:
        InputError: flags that do not go together.
    """
    notes: list[str] = []
    if training:
        if args.no_compile and (args.torchcompile or args.torchcompile_mode):
            flag = "--torchcompile" if args.torchcompile else "--torchcompile-mode"
            raise InputError(f"{flag} and --no-compile contradict each other: leave out one")
        if args.torchcompile_mode in _GRAPH_MODES and args.grad_accum_steps > 1:
            # PyTorch replays a graph into the gradients that it left before; some versions say so, others lose them.
            raise InputError(
                f"--torchcompile-mode {args.torchcompile_mode} keeps the gradients of one batch only: leave it out or "
                "--grad-accum-steps"
            )
        if args.torchcompile and _trains_on_single_images(args):
            raise InputError("--torchcompile trains on batches of two images or more: give -b 2 or more")
        if device.type == "cuda" and not (args.torchcompile or args.no_compile):
            notes = _compile_by_default(args)
    if args.torchcompile_mode and not args.torchcompile:
        raise InputError("--torchcompile-mode needs --torchcompile, where training is not compiled by default")
    return notes


def _compile_by_default(args: Namespace) -> list[str]:
    reason = _why_not_compiled(args)
    if reason:
        return [f"The model is not compiled: {reason}"]
    args.torchcompile = "inductor"
    if args.torchcompile_mode is None and args.grad_accum_steps == 1 and distributed.size() == 1:
        args.torchcompile_mode = _GRAPHS
    return ["Compiling the model, which takes a minute or two, once; --no-compile leaves it out"]


def _why_not_compiled(args: Namespace) -> str | None:
    if _trains_on_single_images(args):
        return "that takes batches of two images or more"
    if args.fsdp:
        return "with --fsdp it has to be asked for, by --torchcompile"
    if not is_installed("triton"):
        return "Triton is not installed"
    if os.name == "posix" and not (os.environ.get("CC") or any(map(shutil.which, _C_COMPILERS))):
        return "Triton finds no C compiler"
    return None


def _trains_on_single_images(args: Namespace) -> bool:
    """Whether a batch is one image. Compiled, a ViT would train wrong.

    The gradients of its position embedding and class token would share memory (seen with torch 2.15), and whatever is
    done to the one, adding the next batch's or clipping, is done to both.
    """
    halves = args.mixup_mode == "half" and (args.mixup or args.cutmix or args.cutmix_minmax)
    return args.batch_size // (2 if halves else 1) == 1


def compile_in_place(model: nn.Module, args: Namespace) -> None:
    """Have a module's calls compiled as ``--torchcompile`` asks; its state_dict keeps its names.

    It is compiled for each shape anew, as code for all of them would be slower: give it batches of one size.

    Raises:
        InputError: there is no such backend or mode.
    """
    if args.torchcompile:
        with explain(f"cannot compile with {args.torchcompile} {args.torchcompile_mode or ''}".rstrip()):
            model.compile(backend=args.torchcompile, mode=args.torchcompile_mode, dynamic=False)
