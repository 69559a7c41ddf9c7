"""The second half of a KAT's block as one node of autograd, where nobody looks on: small models are bound by the host.

Compilers and others who look on see :func:`add_norm_rational`, :func:`linear_rational` and a linear layer.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .bias_op import linear_rational
from .norm_op import MOST_CHANNELS, add_norm_rational
from .op import (
    Metadata,
    autocast_dtype,
    differentiate,
    fits,
    is_batch,
    is_plain_call,
    is_triton,
    metadata,
    rational,
    triton_module,
)

__all__ = ["add_norm_grkan"]

Layers = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def add_norm_grkan(x: Tensor, branch: Tensor, layers: Layers, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """x + branch, and a GR-KAN layer of its LayerNorm: rational, linear, rational, linear (KAT, section 4.3).

    The same as :func:`add_norm_rational`, :func:`linear_rational` and ``linear``, one after the other. Where gradients
    are wanted of tensors on a GPU with kernels, it is one node of autograd, which takes the host less time, and the
    gradients of float32 weights are not rounded to autocast's dtype. Differentiable in all tensors, any number of times
    in eager mode.

    Args:
        x: (..., C), float64, float32, bfloat16 or float16.
        branch: of the shape of ``x``.
        layers: scale (C,) and bias (C,) of the LayerNorm; numerator (1 or G, m) and denominator (1 or G, n), see
            :func:`flashkat.rational`; weight (H, C) and bias (H,) of a linear layer; numerator and denominator of the
            second rational; weight (D, H) and bias (D,) of the second linear layer.
        eps: added to the variance.

    Returns:
        The sum, with the dtype that ``x + branch`` has, and the result (..., D), with autocast's where autocast is on.

    Raises:
        TypeError: see :func:`flashkat.rational`.
        ValueError: likewise.
        RuntimeError: sizes or devices that a sum, a LayerNorm or a linear layer cannot have, as PyTorch says it.
    """
    if torch.is_grad_enabled() and is_plain_call(x, branch, *layers):
        plan = _plan(metadata(x), metadata(branch), tuple(map(metadata, layers)), eps, autocast_dtype(x))
        if plan is not None:
            return _Eager.apply(x, branch, *layers, eps, plan)
    total, first = add_norm_rational(x, branch, *layers[:4], eps)
    return total, F.linear(linear_rational(first, *layers[4:8]), *layers[8:])


@functools.lru_cache(maxsize=1024)
def _plan(
    x: Metadata, branch: Metadata, layers: tuple[Metadata, ...], eps: float, autocast: torch.dtype | None
) -> Any | None:
    """What there is to launch, None where the kernels are not for it, or PyTorch has something to say about it."""
    (shape, x_dtype, device, _), branch_dtype = x, branch[1]
    scale, shift, a1, b1, weight1, bias1, a2, b2, weight2, bias2 = layers
    dtype = autocast or torch.promote_types(x_dtype, branch_dtype)
    dtypes = (dtype, torch.float32) if autocast else (dtype,)
    if any(each[2:] != (device, torch.strided) for each in (x, branch, *layers)):
        return None
    if any(each[1] not in dtypes for each in (weight1, bias1, weight2, bias2)):
        return None
    if not shape or len(weight1[0]) != 2 or len(weight2[0]) != 2:
        return None
    channels, hidden, outputs = shape[-1], weight1[0][0], weight2[0][0]
    if branch[0] != shape or weight1[0][1] != channels or weight2[0][1] != hidden or bias2[0] != (outputs,):
        return None
    if not shape.numel() or not hidden or not outputs or channels > MOST_CHANNELS or not is_triton(device):
        return None
    if not fits(device, x_dtype, channels, (scale, shift), (a1, b1), (x_dtype, branch_dtype, dtype)):
        return None
    if not fits(device, dtype, hidden, (bias1,), (a2, b2), (dtype,)):
        return None
    return triton_module("grkan_launch").Plan.make(x, branch, layers, eps, dtype)


class _Eager(torch.autograd.Function):
    """One node for all of it."""

    @staticmethod
    def forward(ctx, x, branch, *rest):
        *layers, ctx.eps, ctx.plan = rest
        total, out, saved = ctx.plan.forward(x, branch, layers)
        ctx.save_for_backward(*saved, *layers)
        ctx.dtypes = x.dtype, branch.dtype
        return total, out

    @staticmethod
    def backward(ctx, grad_total, grad_out):
        tensors = list(ctx.saved_tensors)
        layers = tensors[-_LAYERS:]
        if torch.is_grad_enabled() or is_batch(grad_total, grad_out):
            # Someone may want second derivatives.
            return *_differentiable(grad_total, grad_out, tensors[0], layers, ctx.eps, ctx.dtypes), None, None
        del tensors[-_LAYERS:]
        ctx.maybe_clear_saved_tensors()
        wanted = ctx.needs_input_grad[2:-2]
        return *ctx.plan.backward(grad_total, grad_out, tensors, layers, wanted), None, None


_LAYERS = 10


def _differentiable(
    grad_total: Tensor,
    grad_out: Tensor,
    total: Tensor,
    layers: list[Tensor],
    eps: float,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> tuple[Tensor, ...]:
    """The gradients by PyTorch's own operators, which can be differentiated again."""
    grad, *others = differentiate(_of_the_sum, grad_out, total, *layers, eps)
    grad = grad + grad_total
    return grad.to(dtypes[0]), grad.to(dtypes[1]), *others


def _of_the_sum(total: Tensor, *rest: Any) -> Tensor:
    *layers, eps = rest
    wide = functools.reduce(torch.promote_types, (each.dtype for each in layers), total.dtype)
    total, scale, shift, a1, b1, weight1, bias1, a2, b2, weight2, bias2 = (each.to(wide) for each in (total, *layers))
    first = rational(F.layer_norm(total, scale.shape, scale, shift, eps), a1, b1)
    return F.linear(rational(F.linear(first, weight1, bias1), a2, b2), weight2, bias2)
