"""Find the device of a run, and place a model on it with a dtype, layout and precision."""

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from timm.layers import set_fast_norm
from torch import nn

from ..errors import InputError, explain

__all__ = ["Runtime", "autocast", "open_queues", "place", "prepare_process", "resolve_device", "training_products"]


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Device, precision and random seed. Fields have the names of timm's flags.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``; None takes a GPU if there is one.
        device_modules: Python modules to import first, such as a device's plug-in.
        amp: compute in mixed precision (autocast).
        amp_dtype: dtype of mixed precision, ``bfloat16`` or ``float16``.
        model_dtype: dtype of weights and images, without ``amp``; None is float32.
        channels_last: use the channels-last layout for model and images.
        fast_norm: compute layer norms in the autocast dtype.
        no_tf32: compute float32 products on a GPU in float32, not TF32.
        synchronize_step: wait for the GPU after each update.
        seed: seed of all random numbers.
    """

    device: str | None = None
    device_modules: Sequence[str] | None = None
    amp: bool = False
    amp_dtype: str = "bfloat16"
    model_dtype: str | None = None
    channels_last: bool = False
    fast_norm: bool = False
    no_tf32: bool = False
    synchronize_step: bool = False
    seed: int = 42

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and images."""
        return getattr(torch, self.model_dtype or "float32")

    @property
    def scales_loss(self) -> bool:
        """Whether training scales its loss, and leaves out updates whose gradients overflow."""
        return self.amp and self.amp_dtype == "float16"


def resolve_device(name: str | None) -> torch.device:
    """Return the named device. None takes a GPU if there is one, otherwise the CPU.

    Raises:
        InputError: there is no such device.
    """
    open_queues()
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"no device {name!r} here: leave out --device, or give cpu, cuda or cuda:N") from error
    return device


def open_queues() -> None:
    """Let CUDA have 32 queues from the host to a GPU, before its first use. The environment may name another number.

    CUDA's 8 are shared by all streams. The kernels that decode images would wait there for training steps.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


def prepare_process(runtime: Runtime) -> None:
    """Import ``device_modules`` and set timm's fast norms, before a model is made.

    Raises:
        InputError: the settings contradict each other, or a module cannot be imported.
    """
    for name in runtime.device_modules or []:
        with explain(f"cannot import {name} of --device-modules"):
            importlib.import_module(name)
    if runtime.amp and runtime.model_dtype not in (None, "float32"):
        raise InputError(f"--amp needs weights in float32: leave out --amp or --model-dtype {runtime.model_dtype}")
    set_fast_norm(runtime.fast_norm)


def place(model: nn.Module, runtime: Runtime, device: torch.device) -> nn.Module:
    """Move a model to its device in place, in the configured dtype and layout, and return it."""
    model.to(device=device, dtype=runtime.dtype)
    if runtime.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def autocast(runtime: Runtime, device: torch.device) -> AbstractContextManager:
    """Return the context of mixed precision. Without ``amp`` it does nothing."""
    return torch.autocast(device.type, getattr(torch, runtime.amp_dtype)) if runtime.amp else nullcontext()


@contextlib.contextmanager
def training_products(runtime: Runtime, device: torch.device) -> Iterator[None]:
    """Use TF32 on a GPU for float32 matrix products and convolutions, or float32 for both with ``no_tf32``.

    PyTorch's default is TF32 for convolutions only. The context restores the previous settings at its end.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_products("highest" if runtime.no_tf32 else "high", convolutions=not runtime.no_tf32)
    try:
        yield
    finally:
        _set_products(*before)


def _set_products(matrices: str, convolutions: bool) -> None:
    with warnings.catch_warnings():
        # Some versions recommend newer settings. Mixing both kinds is an error, and other code reads these.
        warnings.filterwarnings("ignore", message="Please use the new API settings")
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions
