"""The choice of a path from the tensor's device. No other file asks for the device."""

import functools
import importlib
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .aten import windows as aten
from .cpu import native

# Triton 3 compiles the kernels' dtypes for compute capability 8.0 and newer.
_MINIMUM_CAPABILITY = (8, 0)
# These GPUs have half as many units for float64 as for float32. Others have a 32nd or a 64th, and so have H20 and H800,
# which share capability 9.0. The results there are the same, only slower.
_FLOAT64_CAPABILITIES = {(8, 0), (9, 0), (10, 0)}


@dataclass(frozen=True)
class Path:
    """A path of the operator: its name "triton", "native" or "aten", the reason for it, and its module."""

    name: str
    reason: str
    implementation: ModuleType


@functools.cache
def choose_path(device: torch.device) -> Path:
    """Return the path for tensors on ``device``. Warn once where a GPU cannot run the kernels."""
    if device.type == "cpu":
        library, where = native.load()
        if library is None:
            return Path("aten", f"PyTorch's own operators, several times slower than compiled code; {where}", aten)
        return Path("native", f"compiled code for CPUs, {where}", native)
    if device.type != "cuda":
        return Path("aten", f"the Triton kernels are for GPUs; {device.type} runs PyTorch's own operators", aten)
    reason = _why_not_triton(device)
    if reason is None:
        return Path("triton", "GPU with a working triton", triton_module("rational"))
    warnings.warn(
        f"flashkat runs PyTorch's own operators on {device}, correct but slow and hungry for memory: {reason}",
        stacklevel=2,
    )
    return Path("aten", reason, aten)


def fuses(x: Tensor) -> bool:
    """Return whether fused operators have kernels where ``x`` is. Ask this first: on a CPU nothing fuses."""
    # A stand-in of torch.fx has no device yet, and its truth cannot be asked.
    return x.is_cuda is True and is_triton(x.device)


@torch.compiler.assume_constant_result
def is_triton(device: torch.device) -> bool:
    """Return whether tensors on ``device`` take the Triton kernels."""
    return choose_path(device).name == "triton"


@functools.cache
def triton_module(name: str) -> Any:
    """Import a module of ``ops/triton`` where it is first needed."""
    return importlib.import_module(f".triton.{name}", __package__)


@functools.cache
def has_fast_float64(device: torch.device) -> bool:
    """Return whether a GPU has half as many units for float64 as for float32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in _FLOAT64_CAPABILITIES


def _why_not_triton(device: torch.device) -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError:
        return "triton is not installed (on Linux it comes with torch; on Windows: pip install triton-windows)"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < _MINIMUM_CAPABILITY:
        needed = ".".join(map(str, _MINIMUM_CAPABILITY))
        return f"its compute capability is {capability[0]}.{capability[1]}, the kernels need {needed}"
    return None
