"""The record of a call: its surroundings, asked once and handed down."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.overrides import has_torch_function

from .layout import PLAIN_TYPES, Metadata, vector_of
from .private import dispatch_modes, transform, transforms_are_known

__all__ = [
    "DTYPES",
    "Call",
    "EagerFunction",
    "ForwardModeError",
    "fits",
    "has_kernels",
    "has_memory",
    "is_exporting",
    "is_plain",
    "look",
    "metadata",
    "metadata_of_plain",
    "wants_node",
    "without_autocast",
]


class Call(NamedTuple):
    """The surroundings of a call.

    ``plain`` is True for a plain eager call: no compiler, tracer, tensor subclass, dispatch mode or function transform
    is active, and no tensor is negated lazily. PyTorch negates the others before a registered operator reads them.
    ``transformed`` is True within a transform of ``torch.func``, unless that is compiled. ``autocast`` is
    autocast's dtype on the first tensor's device, or None where autocast is off. ``overridden`` is True where a tensor
    has a ``__torch_function__``, as those have that ``torch.fx`` traces with. It decides what the call does.
    """

    plain: bool
    transformed: bool
    autocast: torch.dtype | None
    overridden: bool = False


def look(*tensors: Tensor) -> Call:
    """Return the record of a call with these tensors."""
    is_compiling = torch.compiler.is_compiling()
    is_ordinary = not is_compiling and PLAIN_TYPES.issuperset(map(type, tensors))
    if not is_compiling and not is_ordinary and has_torch_function(tensors):
        return Call(False, False, None, overridden=True)
    # A device's name takes the host longer than these questions.
    first = tensors[0]
    device = "cuda" if first.is_cuda else "cpu" if first.is_cpu else first.device.type
    # PyTorch raises when asked for the autocast of meta tensors.
    is_meta = device == "meta"
    autocast = torch.get_autocast_dtype(device) if not is_meta and torch.is_autocast_enabled(device) else None
    if is_compiling:
        return Call(False, False, autocast)
    if transform() is not None:
        return Call(False, transforms_are_known or not has_memory(*tensors), autocast)
    plain = (
        is_ordinary
        and not is_meta
        and dispatch_modes() == 0
        and not torch.jit.is_tracing()
        and True not in map(_is_negated, tensors)
    )
    return Call(plain, False, autocast)


_is_negated = Tensor.is_neg


def is_plain(*tensors: Tensor) -> bool:
    """Return whether a call with these tensors is plain, see :class:`Call`; they have memory."""
    return (
        not torch.compiler.is_compiling()
        and PLAIN_TYPES.issuperset(map(type, tensors))
        and transform() is None
        and dispatch_modes() == 0
        and not torch.jit.is_tracing()
        and True not in map(_is_negated, tensors)
    )


def wants_node(tensor: Tensor) -> bool:
    """Return whether derivatives may be wanted. If not, a plain call needs no node of autograd.

    Args:
        tensor: one of the call. Without forward mode, PyTorch takes it for its own primal.
    """
    return torch.is_grad_enabled() or unpack_dual(tensor).primal is not tensor


class ForwardModeError(Exception):
    """An input of a kernel has a tangent. The caller computes the same by operators that take one."""


class EagerFunction(torch.autograd.Function):
    """An operator of plain eager calls. The registered one takes the host several times as long.

    Forward-mode differentiation shows only when PyTorch asks for the tangent: to look for it would slow down each call.
    """

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise ForwardModeError


@torch.compiler.assume_constant_result
def is_exporting() -> bool:
    """Return whether ``torch.export`` traces. Within traced code, torch 2.11 says so of every compiler."""
    return torch.compiler.is_exporting()


def metadata(tensor: Tensor) -> Metadata:
    """Return what decides which kernels fit a tensor."""
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout


metadata_of_plain: Callable[[Tensor], Metadata] = attrgetter("shape", "dtype", "device", "layout")
"""The same in half the host time, for plain calls: compilers need not look into it."""


def has_memory(*tensors: Tensor | None) -> bool:
    """Return whether kernels can read the tensors. The wrappers of vmap and other transforms have no memory."""
    try:
        for tensor in tensors:
            if tensor is not None:
                tensor.untyped_storage()
    except NotImplementedError:
        return False
    return True


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Keep autocast out of the products of a backward pass, which may run within it."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


# The fused kernels read these and compute in float32.
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = (torch.float64, *_KERNEL_DTYPES)


def has_kernels(
    call: Call,
    x: Tensor,
    channels: int,
    parameters: Sequence[Tensor],
    coefficients: Sequence[Tensor],
    dtypes: tuple[torch.dtype, ...],
) -> bool:
    """Return whether a fused kernel takes these tensors. Call this only where :func:`fuses` is True.

    Where it is False, PyTorch's own operators run. They say what is wrong with arguments that do not fit.

    Args:
        call: the record of the call.
        x: the input.
        channels: the number of channels of the rational. Each group must hold whole vectors.
        parameters: tensors with a number for each channel.
        coefficients: numerator and denominator.
        dtypes: those of all tensors that the kernel reads or writes as vectors.
    """
    if call.transformed or call.overridden or (not call.plain and torch.onnx.is_in_onnx_export()):
        return False
    # A cache cannot look up sizes that are symbols. Those of a plain call are numbers.
    fit, read = (_fits_once, metadata_of_plain) if call.plain else (fits, metadata)
    tensors = tuple(map(read, parameters)), tuple(map(read, coefficients))
    return x.layout == torch.strided and bool(fit(x.device, x.dtype, channels, *tensors, dtypes))


def fits(
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    parameters: tuple[Metadata, ...],
    coefficients: tuple[Metadata, ...],
    dtypes: tuple[torch.dtype, ...],
) -> bool:
    """Answer :func:`has_kernels` from metadata."""
    if any(each not in _KERNEL_DTYPES for each in (dtype, *dtypes)):
        return False
    if any(where != device or layout != torch.strided for *_, where, layout in (*parameters, *coefficients)):
        return False
    if any(each not in _KERNEL_DTYPES for _, each, *_ in parameters):
        return False
    if any(each not in DTYPES for _, each, *_ in coefficients):
        return False
    if any(shape != (channels,) for shape, *_ in parameters) or any(len(shape) != 2 for shape, *_ in coefficients):
        return False
    rows = [shape[0] for shape, *_ in coefficients]
    groups = max(rows)
    if groups == 0 or not all(count in (1, groups) for count in rows) or coefficients[0][0][1] == 0:
        return False
    return channels % (groups * vector_of(*dtypes)) == 0


_fits_once = functools.lru_cache(maxsize=1024)(fits)
