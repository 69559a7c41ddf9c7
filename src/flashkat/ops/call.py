"""The record of a call: what is asked once about its tensors and its surroundings, and handed down."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .layout import PLAIN_TYPES, Metadata, vector_of
from .private import dispatch_modes, transform, transforms_are_known

__all__ = ["DTYPES", "Call", "fits", "has_kernels", "has_memory", "look", "metadata"]


class Call(NamedTuple):
    """How a call is to be answered.

    ``plain``: in eager mode, where no compiler, tracer, tensor subclass, dispatch mode or function transform is active.
    ``transformed``: within a transform of ``torch.func``: grad, jvp, vmap and others. Compilers see through it.
    ``autocast``: the dtype that autocast asks for where the first tensor is, None where it is off.
    """

    plain: bool
    transformed: bool
    autocast: torch.dtype | None


def look(*tensors: Tensor) -> Call:
    """Look at the surroundings of a call with these tensors."""
    device = tensors[0].device.type
    # PyTorch has no autocast for meta tensors, and raises when asked.
    is_meta = device == "meta"
    autocast = torch.get_autocast_dtype(device) if not is_meta and torch.is_autocast_enabled(device) else None
    if torch.compiler.is_compiling():
        return Call(False, False, autocast)
    if transform() is not None:
        return Call(False, transforms_are_known or not has_memory(*tensors), autocast)
    plain = (
        not is_meta
        and PLAIN_TYPES.issuperset(map(type, tensors))
        and dispatch_modes() == 0
        and not torch.jit.is_tracing()
    )
    return Call(plain, False, autocast)


def metadata(tensor: Tensor) -> Metadata:
    """What decides which kernels there are for a tensor."""
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout


def has_memory(*tensors: Tensor | None) -> bool:
    """Whether kernels can read them: not many gradients at once, of ``is_grads_batched``, or transformed tensors."""
    try:
        for tensor in tensors:
            if tensor is not None:
                tensor.untyped_storage()
    except NotImplementedError:
        return False
    return True


# What the kernels of the operators that do more than the rational compute in float32.
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
    """Whether there are such kernels for ``x``, and groups of so many channels hold whole vectors of these dtypes.

    Not for ``parameters``, of a number for each channel, or ``coefficients`` that do not fit: PyTorch's own operators
    say what is wrong with them. For callers that have asked :func:`flashkat.ops.dispatch.fuses`.
    """
    # Sizes are numbers in a plain call.
    fit = _fits_once if call.plain else fits
    tensors = tuple(map(metadata, parameters)), tuple(map(metadata, coefficients))
    return x.layout == torch.strided and bool(fit(x.device, x.dtype, channels, *tensors, dtypes))


def fits(
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    parameters: tuple[Metadata, ...],
    coefficients: tuple[Metadata, ...],
    dtypes: tuple[torch.dtype, ...],
) -> bool:
    """What :func:`has_kernels` asks: of x its device and dtype, of the others what is known."""
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
