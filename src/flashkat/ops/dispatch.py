"""Which path the operator takes: decided per call from the tensor's device, in this one place."""

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

# Triton 3 generates code for compute capability 8.0 and newer with all the dtypes that the kernels use.
_MINIMUM_CAPABILITY = (8, 0)
# With half as many units for float64 as for float32; others have a 32nd or a 64th. So have the variants H20 and H800 of
# 9.0, which cannot be told by their capability: the same results there, more slowly.
_FLOAT64_CAPABILITIES = {(8, 0), (9, 0), (10, 0)}


@dataclass(frozen=True)
class Path:
    """A path of the operator, "triton", "native" or "aten", and the reason for taking it."""

    name: str
    reason: str
    implementation: ModuleType


@functools.cache
def choose_path(device: torch.device) -> Path:
    """The path for tensors on ``device``; says so once, aloud, when a GPU has to do without its kernels."""
    if device.type == "cpu":
        library, where = native.load()
        if library is None:
            return Path("aten", f"PyTorch's own operators, several times slower than compiled code: {where}", aten)
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
    """Whether the fused operators have kernels where ``x`` is. Asked before all else: on a CPU nothing fuses."""
    return x.is_cuda and is_triton(x.device)


@torch.compiler.assume_constant_result
def is_triton(device: torch.device) -> bool:
    """Whether tensors on that device take the path of the Triton kernels."""
    return choose_path(device).name == "triton"


@functools.cache
def triton_module(name: str) -> Any:
    """A module of this package that needs Triton, imported where it is first used."""
    return importlib.import_module(f".triton.{name}", __package__)


@functools.cache
def has_fast_float64(device: torch.device) -> bool:
    """Whether a GPU computes in float64 about as fast as in float32."""
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
