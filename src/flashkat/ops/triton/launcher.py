"""Launch Triton kernels with little host time: stored arguments, the current device, and numbers of programs."""

import functools
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from ..layout import VECTOR_BYTES

_NEWEST_TRITON = (3, 8)


def _knows_triton(version: str) -> bool:
    """Return whether :class:`Launch` may use Triton's internals, which takes the host less time.

    These are ``triton.runtime.driver.active.get_current_stream``, and ``run``, ``function`` and ``packed_metadata`` of
    a compiled kernel. They were tried with Triton 3.6 and compared with the source of 3.8.
    """
    if tuple(int(part) for part in version.split(".")[:2]) <= _NEWEST_TRITON:
        return True
    warnings.warn(f"triton {version} is newer than flashkat knows: its kernels take longer to launch", stacklevel=2)
    return False


_KNOWS_TRITON = _knows_triton(triton.__version__)


class Launch:
    """A kernel with all arguments but its pointers, so that the next launch takes the host little time."""

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int],
        numbers: tuple[int | float, ...],
        constants: dict[str, Any],
        warps: int = 1,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._kernel, self._grid = kernel, (*grid, 1)
        self._numbers, self._constants = numbers, constants
        self._options = {"num_warps": warps, "enable_fp_fusion": True, **(options or {})}
        # A compiled kernel takes these after the pointers.
        self._rest = (*numbers, *constants.values())
        self._compiled: Any = None

    def __call__(self, *tensors: Tensor) -> None:
        pointers, bits = [], 0
        for tensor in tensors:
            pointer = tensor.data_ptr()
            pointers.append(pointer)
            bits |= pointer
        compiled = self._compiled
        if compiled is None or bits % VECTOR_BYTES:
            # Triton compiles for the alignment of the pointers.
            compiled = self._kernel[self._grid](*tensors, *self._numbers, **self._constants, **self._options)
            if bits % VECTOR_BYTES == 0 and _KNOWS_TRITON:
                self._compiled = compiled
            return
        stream = driver.active.get_current_stream(tensors[0].get_device())
        compiled.run(
            *self._grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *pointers, *self._rest
        )


def on(device: torch.device) -> AbstractContextManager:
    """Make ``device`` the current one, unless it is: the switch takes the host time."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return _NOTHING
    return torch.cuda.device(device)


_NOTHING = nullcontext()

# Shapes and dtypes of numerator and denominator.
Coefficients = tuple[torch.Size, torch.Size, torch.dtype, torch.dtype]


def coefficients_of(numerator: Tensor, denominator: Tensor) -> Coefficients:
    """Return what launches depend on."""
    return numerator.shape, denominator.shape, numerator.dtype, denominator.dtype


def evenly(runs: int, most: int) -> int:
    """Return how many programs, at most ``most``, share the runs so that each has the same number, or one less."""
    return triton.cdiv(runs, triton.cdiv(runs, most))


@functools.cache
def processors(device: torch.device) -> int:
    """Return the number of multiprocessors."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def starts_early(device: torch.device) -> bool:
    """Return whether a kernel can start before the kernel that it waits for has ended."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def constants_of(coefficients: Coefficients) -> dict[str, Any]:
    """Return the kernels' constants for numerator and denominator."""
    (rows_a, m), (rows_b, n) = coefficients[:2]
    return {"M": m, "N": n, "NUMERATOR_SHARED": rows_a == 1, "DENOMINATOR_SHARED": rows_b == 1}
