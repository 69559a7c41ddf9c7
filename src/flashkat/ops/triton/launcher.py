"""Launch Triton kernels with little host time: stored arguments, the current device, and numbers of programs."""

import functools
import operator
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from ..layout import VECTOR_BYTES, Metadata
from ..private import kernel_launcher

_NEWEST_TRITON = (3, 9)


def _knows_triton(version: str) -> bool:
    """Return whether :class:`Launch` may use Triton's internals, which takes the host less time.

    These are ``triton.runtime.driver.active.get_current_stream``, and ``run``, ``function``, ``packed_metadata``,
    ``metadata`` and ``src`` of a compiled kernel. They were tried with Triton 3.6, and compared with the source of 3.8
    and 3.9.
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
        small: bool = False,
    ) -> None:
        """Keep the arguments.

        Args:
            kernel: what Triton compiles.
            grid: two sizes of the grid.
            numbers: the arguments after the pointers.
            constants: the arguments after those, by name.
            warps: of a program.
            options: for Triton. With ``launch_pdl`` a kernel starts before the one before it has ended.
            small: the host takes longer than the GPU. Then a kernel starts early in CUDA graphs alone.
        """
        self._kernel, self._grid = kernel, (*grid, 1)
        self._numbers, self._constants = numbers, constants
        self._options = {"num_warps": warps, "enable_fp_fusion": True, **(options or {})}
        # Triton's launcher takes these after the pointers, PyTorch's takes those that are no constants.
        self._rest = (*numbers, *constants.values())
        self._variables: tuple[int | float | None, ...] = ()
        self._compiled: Any = None
        self._starts_early, self._small = "launch_pdl" in self._options, small
        self._start: Any = None
        self._head: tuple[Any, ...] = ()
        self._stream: Any = None

    def __call__(self, *tensors: Tensor) -> None:
        pointers = tuple(map(_POINTER, tensors))
        aligned = functools.reduce(operator.or_, pointers) % VECTOR_BYTES == 0
        if not aligned or self._compiled is None:
            # Triton compiles for the alignment of the pointers.
            compiled = self._kernel[self._grid](*tensors, *self._numbers, **self._constants, **self._options)
            if aligned and _KNOWS_TRITON and compiled is not None:  # None where Triton interprets
                self._keep(compiled)
            return
        stream = self._stream(tensors[0].get_device())
        if self._start is not None and (not self._starts_early or not torch.cuda.is_current_stream_capturing()):
            self._start(*self._head, (*pointers, *self._variables), stream)
            return
        compiled = self._compiled
        compiled.run(
            *self._grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *pointers, *self._rest
        )

    def _keep(self, compiled: Any) -> None:
        """Keep a compiled kernel, and what PyTorch's launcher takes where that can start it."""
        can = _is_simple(compiled) and (self._small or not self._starts_early)
        start = kernel_launcher() if can else None
        if start is not None:
            names = self._kernel.arg_names
            kinds = {name: kind for name, kind in compiled.src.signature.items() if kind != "constexpr"}
            values = dict(zip(names[-len(self._rest) :], self._rest, strict=True))
            # Two pointers at the end are for memory that these kernels do not need.
            self._variables = (*(values[name] for name in kinds if name in values), None, None)
            types = "".join(_TYPES.get(kind, "O") for kind in kinds.values()) + "OO"
            warps, _, shared = compiled.packed_metadata
            self._head = compiled.function, *self._grid, warps, shared, types
        self._start, self._stream, self._compiled = start, driver.active.get_current_stream, compiled


_POINTER = Tensor.data_ptr
# What PyTorch's launcher calls the types of numbers. Those of pointers begin with a star.
_TYPES = {"i32": "i", "i64": "l", "fp32": "f"}


def _is_simple(compiled: Any) -> bool:
    """Return whether PyTorch's launcher takes a kernel: for NVIDIA, without clusters and scratch memory."""
    metadata = compiled.metadata
    return (
        torch.version.hip is None
        and metadata.num_ctas == 1
        and metadata.global_scratch_size == 0
        and metadata.profile_scratch_size == 0
        and not metadata.launch_cooperative_grid
        and all(kind[0] == "*" or kind == "constexpr" or kind in _TYPES for kind in compiled.src.signature.values())
    )


def on(device: torch.device) -> AbstractContextManager:
    """Make ``device`` the current one, unless it is: the switch takes the host time."""
    index = device.index  # None for a CPU, where Triton interprets
    if index is None or torch.cuda.current_device() == index:
        return _NOTHING
    return torch.cuda.device(device)


_NOTHING = nullcontext()


def dense(*tensors: Tensor) -> list[Tensor]:
    """Return contiguous tensors whose memory holds their numbers, not lazily negated: kernels read memory alone."""
    return [tensor.resolve_neg().contiguous() for tensor in tensors]


# Shapes and dtypes of numerator and denominator.
Coefficients = tuple[torch.Size, torch.Size, torch.dtype, torch.dtype]


def coefficients_of(numerator: Tensor, denominator: Tensor) -> Coefficients:
    """Return what launches depend on."""
    return numerator.shape, denominator.shape, numerator.dtype, denominator.dtype


def described_coefficients(numerator: Metadata, denominator: Metadata) -> Coefficients:
    """Return the same from metadata."""
    return numerator[0], denominator[0], numerator[1], denominator[1]


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
