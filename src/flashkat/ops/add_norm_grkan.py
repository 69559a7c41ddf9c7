"""The second half of a KAT's block as one autograd node in plain eager calls, since small models are host-bound.

Compilers and tracers see :func:`add_norm_rational`, :func:`linear_rational` and a linear layer.
"""

import functools
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .add_norm_rational import MOST_CHANNELS, add_norm_rational, differentiable, of_the_sum_alone
from .call import EagerFunction, ForwardModeError, fits, has_memory, look, metadata_of_plain, wants_node
from .dispatch import fuses, triton_module
from .layout import Layers, Metadata
from .linear_rational import linear_rational
from .rational import rational
from .triton import settings

__all__ = ["add_norm_grkan", "takes_one_call"]


def add_norm_grkan(x: Tensor, branch: Tensor, layers: Layers, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Add ``branch`` to ``x``, and apply LayerNorm, rational, linear, rational, linear (KAT, section 4.3).

    The same as :func:`add_norm_rational`, :func:`linear_rational` and ``linear``, one after the other. On a GPU it
    takes the host less time, for small tensors without gradients and where all layers are trained. Then it is one
    autograd node, and gradients of float32 weights are not rounded to autocast's dtype. The function is differentiable
    in all tensors, any number of times in eager mode. Change none of them in place before the backward pass.

    Args:
        x: (..., C) float64, float32, bfloat16 or float16.
        branch: the same shape.
        layers: see :class:`flashkat.ops.Layers`.
        eps: added to the variance.

    Returns:
        The sum, with the dtype of ``x + branch``, and the result (..., D), with that or with autocast's dtype.

    Raises:
        TypeError: see :func:`flashkat.rational`.
        ValueError: likewise.
        RuntimeError: PyTorch's sum, LayerNorm or linear layer refuses the sizes or devices.
    """
    if fuses(x) and takes_one_call(x) and _none_is_frozen(branch, *layers):
        call = look(x, branch, *layers)
        if call.plain:
            described = Layers(*map(metadata_of_plain, layers))
            plan = _plan(metadata_of_plain(x), metadata_of_plain(branch), described, eps, call.autocast)
            if plan is not None:
                if not wants_node():
                    return plan.without_gradients(x, branch, layers)
                try:
                    return _Eager.apply(x, branch, *layers, eps, plan)
                except ForwardModeError:
                    pass  # by the parts, below
    total, first = add_norm_rational(x, branch, *layers[:4], eps)
    return total, F.linear(linear_rational(first, *layers[4:8]), layers.weight2, layers.bias2)


def takes_one_call(x: Tensor) -> bool:
    """Return whether one call may save time: in eager mode, with gradients or for a small tensor."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return torch.is_grad_enabled() or x.numel() <= settings.ONE_CALL_ELEMENTS


def _none_is_frozen(*tensors: Tensor) -> bool:
    """Return whether all gradients are wanted, or none. Frozen parts save memory and time as separate operators."""
    return not torch.is_grad_enabled() or all(map(_requires_grad, tensors))


_requires_grad = attrgetter("requires_grad")


@functools.lru_cache(maxsize=1024)
def _plan(x: Metadata, branch: Metadata, layers: Layers, eps: float, autocast: torch.dtype | None) -> Any | None:
    """Return what to launch. None where kernels do not fit, or where PyTorch has to report an error."""
    (shape, x_dtype, device, _), branch_dtype = x, branch[1]
    dtype = autocast or torch.promote_types(x_dtype, branch_dtype)
    dtypes = (dtype, torch.float32) if autocast else (dtype,)
    weight1, bias1, weight2, bias2 = layers.weight1, layers.bias1, layers.weight2, layers.bias2
    if any(each[2:] != (device, torch.strided) for each in (x, branch, *layers)):
        return None
    if any(each[1] not in dtypes for each in (weight1, bias1, weight2, bias2)):
        return None
    if not shape or len(weight1[0]) != 2 or len(weight2[0]) != 2:
        return None
    channels, hidden, outputs = shape[-1], weight1[0][0], weight2[0][0]
    if branch[0] != shape or weight1[0][1] != channels or weight2[0][1] != hidden or bias2[0] != (outputs,):
        return None
    if not shape.numel() or not hidden or not outputs or channels > MOST_CHANNELS:
        return None
    first = (layers.scale, layers.shift), (layers.numerator1, layers.denominator1)
    second = (bias1,), (layers.numerator2, layers.denominator2)
    if not fits(device, x_dtype, channels, *first, (x_dtype, branch_dtype, dtype)):
        return None
    if not fits(device, dtype, hidden, *second, (dtype,)):
        return None
    return triton_module("grkan").Plan.make(x, branch, layers, eps, dtype)


class _Eager(EagerFunction):
    """One autograd node for the second half."""

    @staticmethod
    def forward(ctx, x, branch, *rest):
        *tensors, ctx.eps, ctx.plan = rest
        layers = Layers(*tensors)
        total, out, saved = ctx.plan.forward(x, branch, layers)
        ctx.save_for_backward(*layers, *saved)
        ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    def backward(ctx, grad_total, grad_out):
        dtypes = ctx.plan.norm_backward.x, ctx.plan.norm_backward.branch
        if grad_out is None:
            return of_the_sum_alone(grad_total, dtypes, len(ctx.needs_input_grad))
        saved = list(ctx.saved_tensors)
        layers, total = Layers(*saved[:_LAYERS]), saved[_LAYERS]
        del saved[:_LAYERS]
        if torch.is_grad_enabled() or not has_memory(grad_total, grad_out):
            # A second derivative may follow.
            grads = differentiable(_of_the_sum, grad_total, grad_out, total, layers, ctx.eps, dtypes)
            return *grads, None, None
        if grad_total is None:
            grad_total = torch.zeros_like(total)
        del total
        ctx.maybe_clear_saved_tensors()
        return *ctx.plan.backward(grad_total, grad_out, saved, layers), None, None


_LAYERS = len(Layers._fields)


def _of_the_sum(total: Tensor, *rest: Any) -> Tensor:
    *tensors, eps = rest
    wide = functools.reduce(torch.promote_types, (each.dtype for each in tensors), total.dtype)
    total, layers = total.to(wide), Layers(*(each.to(wide) for each in tensors))
    normed = F.layer_norm(total, layers.scale.shape, layers.scale, layers.shift, eps)
    first = rational(normed, layers.numerator1, layers.denominator1)
    second = rational(F.linear(first, layers.weight1, layers.bias1), layers.numerator2, layers.denominator2)
    return F.linear(second, layers.weight2, layers.bias2)
