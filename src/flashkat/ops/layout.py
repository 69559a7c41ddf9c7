"""Tensors as (outer, channels, inner), whatever their rank, strides and channel dimension."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter))
"""Types of tensors that are no subclass."""

# Shape, dtype, device and layout decide which kernels fit a tensor.
Metadata = tuple[torch.Size, torch.dtype, torch.device, torch.layout]


class Layers(NamedTuple):
    """The tensors of LayerNorm, rational, linear, rational, linear; or the metadata of each.

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


# A thread of a kernel loads so many bytes at a time.
VECTOR_BYTES = 16


def vector_of(*dtypes: torch.dtype) -> int:
    """Return how many elements of the widest dtype make a vector."""
    return VECTOR_BYTES // max(dtype.itemsize for dtype in dtypes)


def outer_channels_inner(shape: torch.Size, dim: int) -> tuple[int, int, int]:
    """Return the sizes before, at, and after dimension ``dim``."""
    dim = dim % len(shape)
    return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])


def as_three_dimensional(x: Tensor, dim: int) -> Tensor:
    """Return ``x`` as (outer, channels, inner): a view where the strides allow one, else a contiguous copy."""
    return x.reshape(outer_channels_inner(x.shape, dim))


def channels_last_as_rows(result: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return (outer, C, inner) tensors as (outer * inner, C, 1) if ``result`` is channels-last, else unchanged."""
    tensors = result, *inputs
    if result.transpose(1, 2).is_contiguous():
        return tuple(tensor.transpose(1, 2).reshape(-1, tensor.shape[1], 1) for tensor in tensors)
    return tensors


class Output:
    """A fresh result with the shape and memory format of ``x``, written through ``view`` as (outer, C, inner).

    As with PyTorch's pointwise operators, the result is dense and keeps the order of ``x``'s strides. A few
    permutations have no view of three dimensions. Then ``view`` is a buffer, which ``finish`` copies into place.
    """

    def __init__(self, x: Tensor, dim: int, dtype: torch.dtype) -> None:
        self._result = torch.empty_like(x, dtype=dtype)
        self.view = as_three_dimensional(self._result, dim)

    def finish(self) -> Tensor:
        if self.view.data_ptr() != self._result.data_ptr():
            self._result.copy_(self.view.view(self._result.shape))
        return self._result
