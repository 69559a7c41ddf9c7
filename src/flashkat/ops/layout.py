"""How a path sees a tensor: as (outer, channels, inner), whatever its rank, strides and channel dimension."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter))
"""Tensors that are no subclass with a mind of its own."""

# What decides which kernels there are for a tensor.
Metadata = tuple[torch.Size, torch.dtype, torch.device, torch.layout]


class Layers(NamedTuple):
    """LayerNorm, rational, linear, rational, linear: their tensors, or what is known of each tensor.

    With C channels, H in between and D at the end: ``scale`` (C,) and ``shift`` (C,) of the LayerNorm; ``numerator1``
    and ``denominator1``, see :func:`flashkat.rational`; ``weight1`` (H, C) and ``bias1`` (H,); ``numerator2`` and
    ``denominator2``; ``weight2`` (D, H) and ``bias2`` (D,).
    """

    scale: Any
    shift: Any
    numerator1: Any
    denominator1: Any
    weight1: Any
    bias1: Any
    numerator2: Any
    denominator2: Any
    weight2: Any
    bias2: Any


# What a thread of a kernel takes from memory at a time.
VECTOR_BYTES = 16


def vector_of(*dtypes: torch.dtype) -> int:
    """How many elements of the widest dtype that is."""
    return VECTOR_BYTES // max(dtype.itemsize for dtype in dtypes)


def outer_channels_inner(shape: torch.Size, dim: int) -> tuple[int, int, int]:
    """The sizes before, at, and after dimension ``dim``."""
    dim = dim % len(shape)
    return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])


def as_three_dimensional(x: Tensor, dim: int) -> Tensor:
    """``x`` as (outer, channels, inner): a view where the strides allow one, a contiguous copy where they do not."""
    return x.reshape(outer_channels_inner(x.shape, dim))


def channels_last_as_rows(result: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """(outer, C, inner) tensors as (outer * inner, C, 1) where ``result`` lies in memory like that, else unchanged."""
    tensors = result, *inputs
    if result.transpose(1, 2).is_contiguous():
        return tuple(tensor.transpose(1, 2).reshape(-1, tensor.shape[1], 1) for tensor in tensors)
    return tensors


class Output:
    """A fresh result shaped like ``x`` with its memory format, to be written through ``view`` as (outer, C, inner).

    Like PyTorch's own pointwise operators, the result is dense and keeps the order of ``x``'s strides. A few
    permutations cannot be seen as three dimensions; then the view is a buffer that ``finish`` copies into place.
    """

    def __init__(self, x: Tensor, dim: int, dtype: torch.dtype) -> None:
        self._result = torch.empty_like(x, dtype=dtype)
        self.view = as_three_dimensional(self._result, dim)

    def finish(self) -> Tensor:
        if self.view.data_ptr() != self._result.data_ptr():
            self._result.copy_(self.view.view(self._result.shape))
        return self._result
