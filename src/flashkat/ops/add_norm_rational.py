"""F(LayerNorm(x + branch)): one pass over memory where there are kernels, PyTorch's own operators elsewhere."""

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Call, EagerFunction, ForwardModeError, has_kernels, has_memory, look
from .dispatch import fuses, triton_module
from .rational import rational
from .reference import differentiate
from .register import decomposed, in_float64, register

__all__ = ["MOST_CHANNELS", "add_norm_rational", "differentiable", "of_the_sum_alone"]

MOST_CHANNELS = 4096


def add_norm_rational(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Add ``branch`` to ``x``, and apply LayerNorm and the rational function to the sum.

    The second result is ``rational(layer_norm(x + branch, weight, bias, eps), numerator, denominator)``. On a GPU, one
    kernel reads and writes memory once, and intermediate values are float32. The function is differentiable in all six
    tensors, any number of times in eager mode.

    Args:
        x: (..., D) float64, float32, bfloat16 or float16.
        branch: the same shape.
        weight: (D,), LayerNorm's scale.
        bias: (D,), LayerNorm's shift.
        numerator: (1, m) or (G, m), see :func:`flashkat.rational`.
        denominator: (1, n) or (G, n).
        eps: added to the variance.

    Returns:
        The sum, with the dtype of ``x + branch``, and the result, with that or with autocast's dtype.

    Raises:
        TypeError: see :func:`flashkat.rational`.
        ValueError: likewise.
        RuntimeError: PyTorch's sum or LayerNorm refuses the sizes or devices.
    """
    if fuses(x):
        call = look(x, branch, weight, bias, numerator, denominator)
        if _has_kernels(call, x, branch, (weight, bias), (numerator, denominator)):
            operator = _Eager.apply if call.plain else torch.ops.flashkat.add_norm_rational
            try:
                return operator(x, branch, weight, bias, numerator, denominator, eps, call.autocast)[:2]
            except ForwardModeError:
                pass  # by the parts, below
    total = x + branch
    return total, _norm_rational(total, weight, bias, numerator, denominator, eps)


def _norm_rational(
    total: Tensor, weight: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor, eps: float
) -> Tensor:
    return rational(F.layer_norm(total, weight.shape, weight, bias, eps), numerator, denominator)


def _has_kernels(
    call: Call,
    x: Tensor,
    branch: Tensor,
    parameters: tuple[Tensor, Tensor],
    coefficients: tuple[Tensor, Tensor],
) -> bool:
    """Return whether the kernels take these tensors."""
    return (
        x.shape == branch.shape
        and x.device == branch.device
        and x.ndim > 0
        and x.shape[-1] <= MOST_CHANNELS
        and has_kernels(
            call, x, x.shape[-1], parameters, coefficients, (x.dtype, branch.dtype, call.autocast or x.dtype)
        )
    )


class _Eager(EagerFunction):
    @staticmethod
    def forward(ctx, x, branch, weight, bias, numerator, denominator, eps, dtype):
        total, out, mean, rstd = _forward(x, branch, weight, bias, numerator, denominator, eps, dtype)
        ctx.save_for_backward(total, mean, rstd, weight, bias, numerator, denominator)
        ctx.eps, ctx.dtypes = eps, (x.dtype, branch.dtype)
        ctx.set_materialize_grads(False)
        if not (ctx.needs_input_grad[0] or ctx.needs_input_grad[1]):
            ctx.mark_non_differentiable(total)
        return total, out

    @staticmethod
    def backward(ctx, grad_total, grad_out):
        if grad_out is None:
            return of_the_sum_alone(grad_total, ctx.dtypes, len(ctx.needs_input_grad))
        if torch.is_grad_enabled() or not has_memory(grad_total, grad_out):
            # A second derivative may follow.
            total, _, _, *parameters = ctx.saved_tensors
            grads = differentiable(_norm_rational, grad_total, grad_out, total, parameters, ctx.eps, ctx.dtypes)
            return *grads, None, None
        return *triton_module("norm").backward(grad_total, grad_out, *ctx.saved_tensors, *ctx.dtypes), None, None


def of_the_sum_alone(
    grad_total: Tensor, dtypes: tuple[torch.dtype, torch.dtype], inputs: int
) -> tuple[Tensor | None, ...]:
    """Return gradients for the number of ``inputs``, x and branch first, where only the sum was used."""
    return grad_total.to(dtypes[0]), grad_total.to(dtypes[1]), *(None,) * (inputs - 2)


def differentiable(
    function: Callable[..., Tensor],
    grad_total: Tensor | None,
    grad_out: Tensor,
    total: Tensor,
    parameters: Sequence[Tensor],
    eps: float,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> tuple[Tensor, ...]:
    """Return gradients of x, branch and parameters that can be differentiated again.

    Args:
        function: computes the result from the sum, the parameters and ``eps``.
        grad_total: the gradient of the sum, if it was used.
        grad_out: the gradient of the result.
        total: the sum.
        parameters: the other tensors.
        eps: added to the variance.
        dtypes: those of x and branch.
    """
    grad, *others = differentiate(function, grad_out, total, *parameters, eps)
    grad = grad if grad_total is None else grad + grad_total
    return grad.to(dtypes[0]), grad.to(dtypes[1]), *others


def _forward(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    eps: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return total, out, mean and rstd."""
    total, mean, rstd, out = triton_module("norm").forward(
        x, branch, weight, bias, numerator, denominator, eps, dtype or torch.promote_types(x.dtype, branch.dtype)
    )
    return total, out, mean, rstd


def _backward(
    grad_total: Tensor | None,
    grad_out: Tensor,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    x_dtype: torch.dtype,
    branch_dtype: torch.dtype,
    recompute: bool = False,
) -> tuple[Tensor, ...]:
    """Return the gradients, and last the value of the forward pass, or an empty tensor without ``recompute``.

    The branch's gradient is empty where it equals that of x: results must not share memory.
    """
    out = torch.empty_like(grad_out, memory_format=torch.contiguous_format) if recompute else None
    grad_x, grad_branch, *parameters = triton_module("norm").backward(
        grad_total, grad_out, total, mean, rstd, weight, bias, numerator, denominator, x_dtype, branch_dtype, out
    )
    if grad_branch is grad_x:
        grad_branch = grad_x.new_empty(0)
    return grad_x, grad_branch, *parameters, grad_out.new_empty(0) if out is None else out


def _fake_forward(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    eps: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like, promoted = x.contiguous(), torch.promote_types(x.dtype, branch.dtype)
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return torch.empty_like(like, dtype=promoted), torch.empty_like(like, dtype=dtype or promoted), mean, rstd


def _fake_backward(
    grad_total: Tensor | None,
    grad_out: Tensor,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    x_dtype: torch.dtype,
    branch_dtype: torch.dtype,
    recompute: bool = False,
) -> tuple[Tensor, ...]:
    grad_x = torch.empty_like(total, dtype=x_dtype, memory_format=torch.contiguous_format)
    grad_branch = total.new_empty(0, dtype=x_dtype) if x_dtype == branch_dtype else grad_x.to(branch_dtype)
    parameters = (
        torch.empty_like(each, memory_format=torch.contiguous_format) for each in (weight, bias, numerator, denominator)
    )
    return grad_x, grad_branch, *parameters, grad_out.new_empty(grad_out.shape if recompute else 0)


def _by_formula(
    formula: Callable[..., Tensor],
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    eps: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return total, out, mean and rstd, with F(z) by ``formula``."""
    total = (x + branch).contiguous()  # as the kernels of the backward pass read it
    z, mean, rstd = torch.native_layer_norm(total.float(), weight.shape, weight.float(), bias.float(), eps)
    return total, formula(z, numerator, denominator, -1, dtype or total.dtype), mean.squeeze(-1), rstd.squeeze(-1)


def _save(ctx, inputs, output) -> None:
    x, branch, weight, bias, numerator, denominator, _, _ = inputs
    total, _, mean, rstd = output
    ctx.save_for_backward(total, mean, rstd, weight, bias, numerator, denominator)
    ctx.dtypes = (x.dtype, branch.dtype)
    # The sum depends on x and branch alone.
    has_sum = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
    ctx.mark_non_differentiable(mean, rstd, *(() if has_sum else (total,)))
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_total: Tensor | None, grad_out: Tensor | None, *_: None):
    x_dtype, branch_dtype = ctx.dtypes
    if grad_out is None:
        assert grad_total is not None
        return of_the_sum_alone(grad_total, ctx.dtypes, 8)
    if grad_total is None and hasattr(grad_out, "device_mesh"):
        # DTensor of PyTorch 2.11 looks for the mesh in the first argument alone.
        grad_total = torch.zeros_like(ctx.saved_tensors[0])
    grad_x, grad_branch, *parameters, _ = torch.ops.flashkat.add_norm_rational_backward(
        grad_total, grad_out, *ctx.saved_tensors, x_dtype, branch_dtype
    )
    return grad_x, grad_x if x_dtype == branch_dtype else grad_branch, *parameters, None, None


register(
    "add_norm_rational(Tensor x, Tensor branch, Tensor weight, Tensor bias, Tensor numerator, Tensor denominator,"
    " float eps, ScalarType? dtype=None) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
    formula=functools.partial(_by_formula, in_float64),
    decomposition=functools.partial(_by_formula, decomposed),
    save=_save,
    differentiate=_differentiate,
)
register(
    "add_norm_rational_backward(Tensor? grad_total, Tensor grad_out, Tensor total, Tensor mean, Tensor rstd,"
    " Tensor weight, Tensor bias, Tensor numerator, Tensor denominator, ScalarType x_dtype, ScalarType branch_dtype,"
    " bool recompute=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
