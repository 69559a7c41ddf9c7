"""F(x W + b): where there are kernels, they add the bias of a linear layer.

Compilers see ``torch.ops.flashkat.bias_rational``. Where no kernel takes the bias, the linear layer adds it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import EagerFunction, ForwardModeError, has_kernels, has_memory, look
from .dispatch import fuses, triton_module
from .rational import rational
from .reference import differentiate
from .register import in_float64, register

__all__ = ["linear_rational"]


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
        grad.contiguous(), x, numerator, denominator, -1, bias, out
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


def _formula(
    x: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    return in_float64(x.float() + bias.float(), numerator, denominator, -1, dtype or x.dtype)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:4])


def _differentiate(ctx, grad: Tensor):
    return *torch.ops.flashkat.bias_rational_backward(grad, *ctx.saved_tensors)[:4], None


register(
    "bias_rational(Tensor x, Tensor bias, Tensor numerator, Tensor denominator, ScalarType? dtype=None) -> Tensor",
    _forward,
    _fake_forward,
    formula=_formula,
    save=_save,
    differentiate=_differentiate,
)
register(
    "bias_rational_backward(Tensor grad, Tensor x, Tensor bias, Tensor numerator, Tensor denominator,"
    " bool recompute=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
