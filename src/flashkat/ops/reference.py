"""The definition of the rational in plain, differentiable PyTorch. Every other path is tested against it.

    F(x) = P(x) / Q(x)
    P(x) = a_0 + a_1 x + ... + a_{m-1} x^{m-1}
    Q(x) = 1 + |b_1| |x| + ... + |b_n| |x|^n

This is the "safe Padé activation unit", version A, of Molina et al., ICLR 2020. Each group of channels has its
coefficients, as in the Kolmogorov-Arnold Transformer (Yang & Wang, ICLR 2025, section 4). The code is written for
reading and for derivatives of any order. It overflows where the powers do. The other paths do not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _absolute(value: Tensor) -> Tensor:
    # torch.abs has derivative 0 at 0. With it, the denominator of a layer that starts as the identity never learns.
    return torch.where(value < 0, -value, value)


def horner(coefficients: list[Tensor], x: Tensor) -> Tensor:
    """Return the polynomial with these coefficients, in rising order."""
    value = coefficients[-1].expand_as(x)
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def rational_reference(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int = -1) -> Tensor:
    """Evaluate the group-wise rational function by its definition.

    Args:
        x: floating-point tensor of any shape, with D channels along ``dim``.
        numerator: (1, m) or (G, m) coefficients a_0 ... a_{m-1}.
        denominator: (1, n) or (G, n) coefficients b_1 ... b_n; n may be 0.
        dim: the channel dimension of ``x``; its channels form G contiguous groups of D / G.

    Returns:
        A tensor of the shape and dtype of ``x``, computed in float64 for float64 and in float32 otherwise.
    """
    groups = max(numerator.shape[0], denominator.shape[0])
    dtype = compute_dtype(x.dtype)
    dim = dim % x.ndim
    grouped = x.to(dtype).unflatten(dim, (groups, x.shape[dim] // groups))
    trailing = (1,) * (grouped.ndim - dim - 1)
    a = [column.reshape(-1, *trailing) for column in numerator.to(dtype).unbind(1)]
    b = [_absolute(column).reshape(-1, *trailing) for column in denominator.to(dtype).unbind(1)]
    quotient = horner(a, grouped) / horner([torch.ones_like(a[0]), *b], _absolute(grouped))
    return quotient.to(x.dtype).reshape(x.shape)


def differentiate(function: Callable[..., Tensor], grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Differentiate ``function`` in the tensors that ``inputs`` begin with.

    Args:
        function: returns a tensor.
        grad: the gradient of its result.
        inputs: its arguments, tensors first.

    Returns:
        A gradient for each tensor, which can be differentiated again where gradients are enabled.
    """
    higher = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = as_inputs([each for each in inputs if isinstance(each, Tensor)])
        out = function(*leaves, *inputs[len(leaves) :])
        return torch.autograd.grad(out, leaves, grad.to(out.dtype), create_graph=higher, materialize_grads=True)


def as_inputs(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return a view of each tensor: a node of its own, even where two of them are one tensor."""
    return [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors]
