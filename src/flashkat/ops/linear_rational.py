"""F(x W + b): where there are kernels, they add the bias of a linear layer. A second linear layer may follow.

Compilers see ``torch.ops.flashkat.bias_rational``. Where no kernel takes the bias, the linear layer adds it.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import EagerFunction, ForwardModeError, has_kernels, has_memory, is_exporting, look, without_autocast
from .dispatch import fuses, triton_module
from .layout import PLAIN_TYPES
from .rational import rational
from .reference import differentiate
from .register import decomposed, in_float64, register

__all__ = ["linear_rational", "linear_rational_linear", "recomputing_gradients"]


def linear_rational(x: Tensor, weight: Tensor, bias: Tensor | None, numerator: Tensor, denominator: Tensor) -> Tensor:
    """Apply the rational function to a linear layer's output.

    The same as ``rational(linear(x, weight, bias), numerator, denominator)``. On a GPU the kernels add the bias in
    float32. Their backward pass also sums the bias's gradient, which saves a pass over memory.

    Args:
        x: (..., C), of the dtype of ``weight``, or of any floating-point dtype with autocast.
        weight: (D, C).
        bias: (D,), or None.
        numerator: (1, m) or (G, m), see :func:`flashkat.rational`.
        denominator: (1, n) or (G, n).

    Returns:
        (..., D).

    Raises:
        TypeError: see :func:`flashkat.rational`.
        ValueError: likewise.
        RuntimeError: PyTorch's linear layer refuses the sizes or devices.
    """
    if fuses(x) and bias is not None and weight.ndim == 2:
        call = look(x, weight, bias, numerator, denominator)
        dtype = call.autocast
        dtypes = (x.dtype if dtype is None else dtype,)
        if has_kernels(call, x, weight.shape[0], (bias,), (numerator, denominator), dtypes):
            y = F.linear(x, weight).contiguous()
            operator = _Eager.apply if call.plain else torch.ops.flashkat.bias_rational
            try:
                return operator(y, bias, numerator, denominator, dtype)
            except ForwardModeError:
                pass  # by the parts, below
    return rational(F.linear(x, weight, bias), numerator, denominator)


def linear_rational_linear(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> Tensor:
    """Apply a linear layer, the rational function and a linear layer.

    The same as ``linear(linear_rational(x, weight1, bias1, numerator, denominator), weight2, bias2)``, with the same
    bits. In training on a GPU the rational's values are not saved, if both linear layers are trained. The backward pass
    computes them again.

    Args:
        x: (..., C), see :func:`linear_rational`.
        weight1: (H, C).
        bias1: (H,).
        numerator: (1, m) or (G, m), see :func:`flashkat.rational`.
        denominator: (1, n) or (G, n).
        weight2: (D, H).
        bias2: (D,).

    Returns:
        (..., D).

    Raises:
        TypeError: see :func:`flashkat.rational`.
        ValueError: likewise.
        RuntimeError: PyTorch's linear layer refuses the sizes or devices.
    """
    if fuses(x) and torch.is_grad_enabled() and not torch.jit.is_tracing() and weight1.ndim == weight2.ndim == 2:
        tensors = x, weight1, bias1, numerator, denominator, weight2, bias2
        call = look(*tensors)
        dtype = call.autocast or x.dtype
        compiles = torch.compiler.is_compiling() and not is_exporting()
        if (
            (call.plain or (compiles and all(type(each) in PLAIN_TYPES for each in tensors)))
            and weight2.requires_grad
            and (x.requires_grad or weight1.requires_grad)
            and weight2.device == bias2.device == x.device
            and (call.autocast is not None or weight2.dtype == bias2.dtype == dtype)
            and (weight2.shape[1], bias2.shape) == (weight1.shape[0], weight2.shape[:1])
            and 0 not in weight2.shape
            and has_kernels(call, x, weight1.shape[0], (bias1,), (numerator, denominator), (dtype,))
        ):
            y = F.linear(x, weight1).contiguous()
            operator = _EagerWithLinear.apply if call.plain else torch.ops.flashkat.bias_rational_linear
            try:
                return operator(y, bias1, numerator, denominator, weight2.to(dtype), bias2.to(dtype))
            except ForwardModeError:
                pass  # by the parts, below
    return F.linear(linear_rational(x, weight1, bias1, numerator, denominator), weight2, bias2)


class _Eager(EagerFunction):
    @staticmethod
    def forward(ctx, x, bias, numerator, denominator, dtype):
        ctx.save_for_backward(x, bias, numerator, denominator)
        return _forward(x, bias, numerator, denominator, dtype)

    @staticmethod
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        if torch.is_grad_enabled() or not has_memory(grad):
            # A second derivative may follow.
            return *differentiate(_defined, grad, *saved), None
        return *_backward(grad, *saved)[:4], None


def _defined(x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """Compute it by operators that can be differentiated again."""
    return rational(x.to(torch.promote_types(x.dtype, bias.dtype)) + bias, numerator, denominator)


class _EagerWithLinear(EagerFunction):
    @staticmethod
    def forward(ctx, x, *parameters):
        ctx.save_for_backward(x, *parameters)
        bias, numerator, denominator, weight, last_bias = parameters
        # F.linear may return a view, and a view of a custom function cannot be changed in place.
        out = x.new_empty((*x.shape[:-1], weight.shape[0]))
        second = _forward(x, bias, numerator, denominator).view(-1, x.shape[-1])
        torch.addmm(last_bias, second, weight.t(), out=out.view(-1, out.shape[-1]))
        return out

    @staticmethod
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        if torch.is_grad_enabled() or not has_memory(grad):
            # A second derivative may follow.
            return differentiate(_defined_with_linear, grad, *saved)
        with without_autocast(grad.device):
            return recomputing_gradients(_backward, grad, *saved[:-1])


def _defined_with_linear(x: Tensor, *parameters: Tensor) -> Tensor:
    *rest, weight, last_bias = parameters
    return F.linear(_defined(x, *rest).to(weight.dtype), weight, last_bias)


def recomputing_gradients(
    backward: Callable[..., Any],
    grad: Tensor,
    x: Tensor,
    bias: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    weight: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of ``linear(rational(x + bias), weight, last_bias)``, without the rational's saved value.

    Args:
        backward: :func:`_backward` or its operator. It computes the value again.
        grad: (..., D), the gradient of the result.
        x: (..., H), contiguous.
        bias: (H,).
        numerator: (1, m) or (G, m).
        denominator: (1, n) or (G, n).
        weight: (D, H).

    Returns:
        The gradients of x, bias, numerator, denominator, weight and last bias.
    """
    rows = grad.reshape(-1, grad.shape[-1])
    *grads, second = backward(torch.mm(rows, weight).view(x.shape), x, bias, numerator, denominator, True)
    return *grads, torch.mm(rows.t(), second.view(-1, second.shape[-1])), rows.sum(0)


def _forward(
    x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    return triton_module("rational").forward(x, numerator, denominator, -1, dtype or x.dtype, bias)


def _backward(
    grad: Tensor, x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor, recompute: bool = False
) -> tuple[Tensor, ...]:
    """Return the gradients, and last the value of the forward pass, or an empty tensor without ``recompute``."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if recompute else None
    grad_x, grad_numerator, grad_denominator, grad_bias = triton_module("rational").backward(
        grad, x, numerator, denominator, -1, bias, out
    )
    return grad_x, grad_bias, grad_numerator, grad_denominator, x.new_empty(0) if out is None else out


def _fake_forward(
    x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    return torch.empty_like(x, dtype=dtype or x.dtype)


def _fake_backward(
    grad: Tensor, x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor, recompute: bool = False
) -> tuple[Tensor, ...]:
    grads = (torch.empty_like(p, memory_format=torch.contiguous_format) for p in (bias, numerator, denominator))
    return torch.empty_like(x), *grads, torch.empty_like(x) if recompute else x.new_empty(0)


def _by_formula(
    formula: Callable[..., Tensor],
    x: Tensor,
    bias: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return F(x + bias) by ``formula``."""
    return formula(x.float() + bias.float(), numerator, denominator, -1, dtype or x.dtype)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:4])


def _differentiate(ctx, grad: Tensor):
    return *torch.ops.flashkat.bias_rational_backward(grad, *ctx.saved_tensors)[:4], None


register(
    "bias_rational(Tensor x, Tensor bias, Tensor numerator, Tensor denominator, ScalarType? dtype=None) -> Tensor",
    _forward,
    _fake_forward,
    formula=functools.partial(_by_formula, in_float64),
    decomposition=functools.partial(_by_formula, decomposed),
    save=_save,
    differentiate=_differentiate,
)
register(
    "bias_rational_backward(Tensor grad, Tensor x, Tensor bias, Tensor numerator, Tensor denominator,"
    " bool recompute=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)


def _forward_with_linear(
    x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor, weight: Tensor, last_bias: Tensor
) -> Tensor:
    second = torch.ops.flashkat.bias_rational(x, bias, numerator, denominator)
    out = torch.addmm(last_bias, second.view(-1, second.shape[-1]), weight.t())
    return out.view(*x.shape[:-1], out.shape[-1])


def _fake_forward_with_linear(
    x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor, weight: Tensor, last_bias: Tensor
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _save_with_linear(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:5])


def _differentiate_with_linear(ctx, grad: Tensor):
    return recomputing_gradients(torch.ops.flashkat.bias_rational_backward, grad, *ctx.saved_tensors)


register(
    "bias_rational_linear(Tensor x, Tensor bias, Tensor numerator, Tensor denominator, Tensor weight, Tensor last_bias)"
    " -> Tensor",
    _forward_with_linear,
    _fake_forward_with_linear,
    save=_save_with_linear,
    differentiate=_differentiate_with_linear,
    is_composite=True,
)
