"""Decide whether and how a model is compiled, and compile it."""

import os
import shutil
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..errors import InputError, explain, is_installed

__all__ = ["Compilation", "captures_steps", "choose_for_training", "compile_in_place", "require_backend"]

# Triton looks for one of these, after the variable CC.
_C_COMPILERS = ("gcc", "clang", "cc")

# Modes in which PyTorch itself makes CUDA graphs of the model.
_GRAPH_MODES = ("reduce-overhead", "max-autotune")


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """How to compile the model. Fields have the names of the flags.

    Attributes:
        torchcompile: backend of ``torch.compile``; with None, training on a GPU compiles and all else is eager.
        no_compile: never compile.
        torchcompile_mode: mode of ``torch.compile``; None takes the default.
    """

    torchcompile: str | None = None
    no_compile: bool = False
    torchcompile_mode: str | None = None


def require_backend(asked: Compilation) -> None:
    """Raise InputError if a mode is given without a backend."""
    if asked.torchcompile_mode and not asked.torchcompile:
        raise InputError("--torchcompile-mode needs --torchcompile, as nothing is compiled by default here: give both")


def choose_for_training(
    asked: Compilation, device: torch.device, *, images: int, accumulates: bool, is_sharded: bool
) -> tuple[Compilation, list[str]]:
    """Choose how training compiles the model. By default it does so on a GPU.

    Evaluation costs one more compilation, which the model and its average share.

    Args:
        asked: the section of the configuration.
        device: where the model computes.
        images: images in a batch.
        accumulates: whether an update accumulates the gradients of several batches.
        is_sharded: whether FSDP shards the weights.

    Returns:
        The section with the choice, and lines that tell the user of it.

    Raises:
        InputError: the settings contradict each other.
    """
    mode = asked.torchcompile_mode
    if asked.no_compile and (asked.torchcompile or mode):
        flag = "--torchcompile" if asked.torchcompile else "--torchcompile-mode"
        raise InputError(f"{flag} and --no-compile contradict each other: leave out one")
    if mode in _GRAPH_MODES and accumulates:
        # A replayed graph overwrites the gradients of the batch before. Only some PyTorch versions raise an error.
        raise InputError(
            f"--torchcompile-mode {mode} keeps the gradients of one batch only: leave it out or --grad-accum-steps"
        )
    # A compiled ViT computes wrong gradients on single images (seen with torch 2.15). Those of position embedding and
    # class token share memory, so that clipping one of them changes both.
    if asked.torchcompile and images == 1:
        raise InputError("--torchcompile trains on batches of two images or more: give -b 2 or more")
    if device.type != "cuda" or asked.torchcompile or asked.no_compile:
        require_backend(asked)
        return asked, []
    reason = _why_not_compiled(images, is_sharded)
    if reason:
        require_backend(asked)
        return asked, [f"The model is not compiled: {reason}"]
    line = "Compiling the model once, which takes a minute or two. --no-compile avoids it"
    return replace(asked, torchcompile="inductor"), [line]


def captures_steps(compilation: Compilation, device: torch.device) -> bool:
    """Return whether whole training steps are captured as CUDA graphs: compiled by inductor, without another mode."""
    return device.type == "cuda" and compilation.torchcompile == "inductor" and compilation.torchcompile_mode is None


def _why_not_compiled(images: int, is_sharded: bool) -> str | None:
    if images == 1:
        return "that takes batches of two images or more"
    if is_sharded:
        return "with --fsdp it has to be asked for, by --torchcompile"
    if not is_installed("triton"):
        return "Triton is not installed"
    if os.name == "posix" and not (os.environ.get("CC") or any(map(shutil.which, _C_COMPILERS))):
        return "Triton finds no C compiler"
    return None


def compile_in_place(model: nn.Module, compilation: Compilation) -> None:
    """Compile a module's calls in place if a backend is given. Its state_dict keeps its names.

    Each shape is compiled anew, as code for dynamic shapes would be slower. So give it batches of one size.

    Args:
        model: the module.
        compilation: the section of the configuration.

    Raises:
        InputError: there is no such backend or mode.
    """
    backend, mode = compilation.torchcompile, compilation.torchcompile_mode
    if backend:
        with explain(f"cannot compile with {backend} {mode or ''}".rstrip()):
            model.compile(backend=backend, mode=mode, dynamic=False)
