"""The second half of a KAT's block as one autograd node.

In plain eager calls it saves the host time, since small models are host-bound. In eager and compiled training it saves
memory: the backward kernels compute both rationals again. All else sees :func:`add_norm_rational`,
:func:`linear_rational` and a linear layer.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .add_norm_rational import MOST_CHANNELS, add_norm_rational, differentiable, of_the_sum_alone
from .call import (
    Call,
    EagerFunction,
    ForwardModeError,
    fits,
    has_memory,
    is_exporting,
    look,
    metadata,
    metadata_of_plain,
    wants_node,
)
from .dispatch import fuses, triton_module
from .layout import PLAIN_TYPES, Layers, Metadata
from .linear_rational import linear_rational, recomputing_gradients
from .rational import rational
from .register import register
from .triton import settings

__all__ = ["add_norm_grkan", "takes_one_call"]


def add_norm_grkan(
    x: Tensor, branch: Tensor, layers: Layers, eps: float = 1e-5, recompute: bool = True
) -> tuple[Tensor, Tensor]:
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
        recompute: save no values of the rationals, where all layers are trained. The backward pass computes them again.
            That takes a fifth less memory, and changes no bit.

    Returns:
        The sum, with the dtype of ``x + branch``, and the result (..., D), with that or with autocast's dtype.

    Raises:
        TypeError: see :func:`flashkat.rational`.
        ValueError: likewise.
        RuntimeError: PyTorch's sum, LayerNorm or linear layer refuses the sizes or devices.
    """
    if fuses(x) and takes_one_call(x, recompute) and _none_is_frozen(branch, *layers):
        call = look(x, branch, *layers)
        if call.plain:
            described = Layers(*map(metadata_of_plain, layers))
            plan = _plan(metadata_of_plain(x), metadata_of_plain(branch), described, eps, call.autocast, recompute)
            if plan is not None:
                if not wants_node(x):
                    return plan.without_gradients(x, branch, layers)
                try:
                    return _Eager.apply(x, branch, *layers, eps, plan)
                except ForwardModeError:
                    pass  # by the parts, below
        elif torch.compiler.is_compiling() and (dtype := _compiled_dtype(call, x, branch, layers)) is not None:
            weight1, weight2, bias2 = (each.to(dtype) for each in (layers.weight1, layers.weight2, layers.bias2))
            layers = layers._replace(weight1=weight1, weight2=weight2, bias2=bias2)
            total, out, *_ = torch.ops.flashkat.add_norm_grkan(x, branch, *layers, eps)
            return total, out
    total, first = add_norm_rational(x, branch, *layers[:4], eps)
    return total, F.linear(linear_rational(first, *layers[4:8]), layers.weight2, layers.bias2)


def takes_one_call(x: Tensor, recompute: bool = True) -> bool:
    """Return whether one call may save time or memory.

    In eager mode it may with gradients or for a small tensor. In compiled training it may with ``recompute``.
    """
    if torch.jit.is_tracing():
        return False
    if torch.compiler.is_compiling():
        return recompute and torch.is_grad_enabled() and not is_exporting()
    return torch.is_grad_enabled() or x.numel() <= settings.ONE_CALL_ELEMENTS


def _none_is_frozen(*tensors: Tensor) -> bool:
    """Return whether all gradients are wanted, or none. Frozen parts save memory and time as separate operators."""
    return not torch.is_grad_enabled() or False not in [each.requires_grad for each in tensors]


def _compiled_dtype(call: Call, x: Tensor, branch: Tensor, layers: Layers) -> torch.dtype | None:
    """Answer :func:`_dtype` for compiled code. DTensors take the parts, which say how they are sharded."""
    if call.transformed or call.overridden or torch.onnx.is_in_onnx_export():
        return None
    if not all(type(each) in PLAIN_TYPES for each in (x, branch, *layers)):
        return None
    return _dtype(metadata(x), metadata(branch), Layers(*map(metadata, layers)), call.autocast)


@functools.lru_cache(maxsize=1024)
def _plan(
    x: Metadata, branch: Metadata, layers: Layers, eps: float, autocast: torch.dtype | None, recompute: bool
) -> Any | None:
    """Return what to launch. None where kernels do not fit, or where PyTorch has to report an error."""
    dtype = _dtype(x, branch, layers, autocast)
    return None if dtype is None else triton_module("grkan").Plan.make(x, branch, layers, eps, dtype, recompute)


def _dtype(x: Metadata, branch: Metadata, layers: Layers, autocast: torch.dtype | None) -> torch.dtype | None:
    """Return what linear layers compute in. None where kernels do not fit, or where PyTorch has to report an error."""
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
    return dtype if fits(device, dtype, hidden, *second, (dtype,)) else None


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


def _forward(x: Tensor, branch: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Return total, result, and what the backward pass reads: mean, rstd and hidden."""
    *tensors, eps = rest
    layers, operators = Layers(*tensors), torch.ops.flashkat
    total, first, mean, rstd = operators.add_norm_rational(x, branch, *layers[:4], eps, layers.weight1.dtype)
    hidden = torch.mm(first.view(-1, first.shape[-1]), layers.weight1.t())
    out = operators.bias_rational_linear(hidden, *layers[5:])
    return total, out.view(*x.shape[:-1], out.shape[-1]), mean, rstd, hidden


def _fake_forward(x: Tensor, branch: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *tensors, _ = rest
    layers = Layers(*tensors)
    (hidden, channels), outputs = layers.weight1.shape, layers.weight2.shape[0]
    total = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype))
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    new = functools.partial(x.new_empty, dtype=layers.weight1.dtype)
    return total, new((*x.shape[:-1], outputs)), mean, rstd, new((x.numel() // channels, hidden))


def _save(ctx, inputs, output) -> None:
    x, branch, *layers, _ = inputs
    total, _, mean, rstd, hidden = output
    ctx.save_for_backward(total, mean, rstd, hidden, *layers)
    ctx.dtypes = (x.dtype, branch.dtype)
    # The sum depends on x and branch alone.
    has_sum = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
    ctx.mark_non_differentiable(mean, rstd, hidden, *(() if has_sum else (total,)))
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_total: Tensor | None, grad_out: Tensor | None, *_: None):
    """Return the gradients by operators that compilers see. A weight's comes after what its layer read."""
    if grad_out is None:
        assert grad_total is not None
        return of_the_sum_alone(grad_total, ctx.dtypes, 2 + _LAYERS + 1)
    total, mean, rstd, hidden, *tensors = ctx.saved_tensors
    layers, operators, (x_dtype, branch_dtype) = Layers(*tensors), torch.ops.flashkat, ctx.dtypes
    grad_hidden, *last = recomputing_gradients(operators.bias_rational_backward, grad_out, hidden, *layers[5:9])
    grad_first = torch.mm(grad_hidden, layers.weight1).view(total.shape)
    grad_x, grad_branch, *norm, first = operators.add_norm_rational_backward(
        grad_total, grad_first, total, mean, rstd, *layers[:4], x_dtype, branch_dtype, True
    )
    grad_weight1 = torch.mm(grad_hidden.t(), first.view(-1, first.shape[-1]))
    return grad_x, grad_x if x_dtype == branch_dtype else grad_branch, *norm, grad_weight1, *last, None


register(
    f"add_norm_grkan(Tensor x, Tensor branch, {', '.join(f'Tensor {name}' for name in Layers._fields)}, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
    save=_save,
    differentiate=_differentiate,
    is_composite=True,
)
