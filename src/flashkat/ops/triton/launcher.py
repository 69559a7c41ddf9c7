"""What all launches share: a kernel with its arguments, the current device, and numbers of programs."""

import functools
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import wrap_triton
from triton.runtime import driver

from ..layout import PLAIN_TYPES, VECTOR_BYTES

_NEWEST_TRITON = (3, 8)


def _knows_triton(version: str) -> bool:
    """Whether Triton's internals are as known here, so that a launch need not go through its front door.

    These are ``triton.runtime.driver.active.get_current_stream``, and of a compiled kernel ``run``, ``function`` and
    ``packed_metadata``. They were tried with 3.6 and compared with the sources of 3.8.
    """
    if tuple(int(part) for part in version.split(".")[:2]) <= _NEWEST_TRITON:
        return True
    warnings.warn(f"triton {version} is newer than flashkat knows: its kernels take longer to launch", stacklevel=2)
    return False


_KNOWS_TRITON = _knows_triton(triton.__version__)


class Launch:
    """A kernel with everything but its pointers, so that launching it again costs the host little."""

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
        # All that follows the pointers, as a compiled kernel takes it.
        self._rest = (*numbers, *constants.values())
        self._compiled: Any = None

    def __call__(self, *tensors: Tensor) -> None:
        if type(tensors[0]) not in PLAIN_TYPES and _is_traced(tensors[0]):
            self._trace(tensors)
            return
        pointers, bits = [], 0
        for tensor in tensors:
            pointer = tensor.data_ptr()
            pointers.append(pointer)
            bits |= pointer
        compiled = self._compiled
        if compiled is None or bits % VECTOR_BYTES:
            # Triton compiles for the alignment that it finds.
            compiled = self._kernel[self._grid](*tensors, *self._numbers, **self._constants, **self._options)
            if bits % VECTOR_BYTES == 0 and _KNOWS_TRITON:
                self._compiled = compiled
            return
        stream = driver.active.get_current_stream(tensors[0].get_device())
        compiled.run(
            *self._grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *pointers, *self._rest
        )

    def _trace(self, tensors: tuple[Tensor, ...]) -> None:
        """Put the launch into the graph of a compiler, which then launches it itself."""
        # Options that compilers do not pass on have to do without.
        constants = {**self._constants, **({"EARLY": False} if "EARLY" in self._constants else {})}
        wrap_triton(self._kernel)[self._grid](
            *tensors, *self._numbers, **constants, num_warps=self._options["num_warps"]
        )  # fmt: skip


def _is_traced(tensor: Tensor) -> bool:
    """Whether a compiler has a tensor of its own in place of the numbers."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


def on(device: torch.device) -> AbstractContextManager:
    """Make ``device`` the current one, which costs something, where it is not."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return _NOTHING
    return torch.cuda.device(device)


_NOTHING = nullcontext()

# Shapes and dtypes of numerator and denominator.
Coefficients = tuple[torch.Size, torch.Size, torch.dtype, torch.dtype]


def coefficients_of(numerator: Tensor, denominator: Tensor) -> Coefficients:
    """What launches know of these."""
    return numerator.shape, denominator.shape, numerator.dtype, denominator.dtype


def evenly(runs: int, most: int) -> int:
    """How many programs take the same number of runs each, or one less, if there can be ``most`` of them."""
    return triton.cdiv(runs, triton.cdiv(runs, most))


@functools.cache
def processors(device: torch.device) -> int:
    """How many multiprocessors there are."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def starts_early(device: torch.device) -> bool:
    """Whether a kernel can be on the device before the one that it waits for has ended."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def constants_of(coefficients: Coefficients) -> dict[str, Any]:
    """What kernels know of numerator and denominator."""
    (rows_a, m), (rows_b, n) = coefficients[:2]
    return {"M": m, "N": n, "NUMERATOR_SHARED": rows_a == 1, "DENOMINATOR_SHARED": rows_b == 1}
