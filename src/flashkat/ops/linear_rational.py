"""A linear layer's bias and the rational function as PyTorch sees them: one operator where there are kernels.

``torch.ops.flashkat.bias_rational`` and ``torch.ops.flashkat.bias_rational_backward`` are what compilers see;
:func:`linear_rational` is the door, which leaves the bias to the linear layer where the kernels do not take it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import has_kernels, has_memory, look
from .dispatch import fuses, triton_module
from .rational import rational
from .reference import differentiate
from .register import in_float64, register

__all__ = ["linear_rational"]


def linear_rational(x: Tensor, weight: Tensor, bias: Tensor | None, numerator: Tensor, denominator: Tensor) -> Tensor:
    """The rational function of a linear layer's output.

    The same as ``rational(linear(x, weight, bias), numerator, denominator)``. On a GPU with kernels these add the bias,
    in float32, and have its gradient in the backward pass, which then need not be read once more for that.

    Args:
        x: (..., C), with autocast of any floating-point dtype, else of that of ``weight``.
        weight: (D, C).
        bias: (D,), or None.
        numerator: (1, m) or (G, m), see :func:`flashkat.rational`.
        denominator: (1, n) or (G, n).

    Returns:
        (..., D).

    Raises:
        TypeError: see :func:`flashkat.rational`.
        ValueError: likewise.
        RuntimeError: sizes or devices that a linear layer cannot have, as PyTorch says it.
    """
    if fuses(x) and bias is not None and weight.ndim == 2:
        call = look(x, weight, bias, numerator, denominator)
        dtype = call.autocast
        # Of the layer's output, as the kernels see it.
        dtypes = (x.dtype if dtype is None else dtype,)
        if not call.transformed and has_kernels(call, x, weight.shape[0], (bias,), (numerator, denominator), dtypes):
            y = F.linear(x, weight).contiguous()
            operator = _Eager.apply if call.plain else torch.ops.flashkat.bias_rational
            return operator(y, bias, numerator, denominator, dtype)
    return rational(F.linear(x, weight, bias), numerator, denominator)


class _Eager(torch.autograd.Function):
    """The registered operator without its registration, through which a call takes the host several times as long."""

    @staticmethod
    def forward(ctx, x, bias, numerator, denominator, dtype):
        ctx.save_for_backward(x, bias, numerator, denominator)
        return _forward(x, bias, numerator, denominator, dtype)

    @staticmethod
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        if torch.is_grad_enabled() or not has_memory(grad):
            # Someone may want second derivatives.
            return *differentiate(_defined, grad, *saved), None
        return *_backward(grad, *saved), None


def _defined(x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """By operators that can be differentiated again."""
    return rational(x.to(torch.promote_types(x.dtype, bias.dtype)) + bias, numerator, denominator)


def _forward(
    x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    return triton_module("rational").forward(x, numerator, denominator, -1, dtype or x.dtype, bias)


def _backward(
    grad: Tensor, x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Of vectors, as the kernels take the bias, all tensors are.
    grad_x, grad_numerator, grad_denominator, grad_bias = triton_module("rational").backward(
        grad.contiguous(), x, numerator, denominator, -1, bias
    )
    return grad_x, grad_bias, grad_numerator, grad_denominator


def _fake_forward(
    x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    return torch.empty_like(x, dtype=dtype or x.dtype)


def _fake_backward(grad: Tensor, x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, ...]:
    parameters = bias, numerator, denominator
    return torch.empty_like(x), *(torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters)


def _formula(
    x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    return in_float64(x.float() + bias.float(), numerator, denominator, -1, dtype or x.dtype)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:4])


def _differentiate(ctx, grad: Tensor):
    return *torch.ops.flashkat.bias_rational_backward(grad, *ctx.saved_tensors), None


register(
    "bias_rational(Tensor x, Tensor bias, Tensor numerator, Tensor denominator, ScalarType? dtype=None) -> Tensor",
    _forward,
    _fake_forward,
    formula=_formula,
    save=_save,
    differentiate=_differentiate,
)
register(
    "bias_rational_backward(Tensor grad, Tensor x, Tensor bias, Tensor numerator, Tensor denominator)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
