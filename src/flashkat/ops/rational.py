"""F(x), the group-wise rational function: checks, derivatives and registration."""

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from .call import (
    DTYPES,
    EagerFunction,
    ForwardModeError,
    has_memory,
    is_plain,
    look,
    metadata,
    metadata_of_plain,
    wants_node,
)
from .dispatch import choose_path
from .layout import Metadata
from .reference import as_inputs, differentiate, rational_reference
from .register import decomposed, in_float64, register

__all__ = ["rational"]


def rational(
    x: Tensor, numerator: Tensor, denominator: Tensor, *, dim: int = -1, channels: int | None = None
) -> Tensor:
    """Apply the group-wise rational activation F(x) = P(x) / Q(x), the base function of GR-KAN.

    P(x) = a_0 + a_1 x + ... + a_{m-1} x^{m-1} and Q(x) = 1 + |b_1| |x| + ... + |b_n| |x|^n. Each contiguous group of
    channels has its coefficients (Yang & Wang, ICLR 2025, section 4). The function is differentiable in all three
    tensors, and |v| has the derivative +1 at 0. The result and the gradients are the same bits every time.

    For finite inputs, results are finite where the exact value fits the dtype. Where it does not, they are +-inf and
    never NaN. A gradient of the coefficients fits up to 2^959 in float64. On GPUs, gradients lose bits where their
    quotient by Q(x) is below the smallest normal number.

    Higher derivatives in eager mode come from the definition, :func:`flashkat.ops.rational_reference`. So do
    derivatives in forward mode, and everything within a transform of ``torch.func``, such as grad, jvp or vmap. The
    definition overflows where a power does.

    Args:
        x: float64, float32, bfloat16 or float16 tensor of one or more dimensions, with any strides, on any device. It
            may be a jagged nested tensor.
        numerator: (1, m) or (G, m) coefficients a_0 ... a_{m-1} of any of these dtypes, m >= 1. All G groups share a
            single row.
        denominator: (1, n) or (G, n) coefficients b_1 ... b_n, likewise, n >= 0.
        dim: the channel dimension of ``x``. Its D channels form G contiguous groups of D / G.
        channels: the number D that must be there. None takes every number that the groups divide.

    Returns:
        A tensor with the shape and memory format of ``x``. It has the dtype of ``x``, or autocast's where autocast is
        on. Arithmetic is float64 for float64 ``x`` and float32 otherwise. Coefficients are rounded to that.

    Raises:
        TypeError: a tensor has another dtype, or is sparse.
        ValueError: shapes, groups, dimension or devices do not fit together.
    """
    call = look(x, numerator, denominator)
    if call.overridden:
        tensors = x, numerator, denominator
        return handle_torch_function(rational, tensors, *tensors, dim=dim, channels=channels)
    if not call.plain and x.layout == torch.jagged:
        return _of_jagged(x, numerator, denominator, dim, channels)
    if call.plain:
        try:
            described = metadata_of_plain(x), metadata_of_plain(numerator), metadata_of_plain(denominator)
        except RuntimeError:
            if x.is_nested:
                raise TypeError("x must be a jagged nested tensor: make it with layout=torch.jagged") from None
            raise
        strides = x.stride() if x.layout is torch.strided else ()
        plan = _plan(*described, strides, dim, channels, call.autocast)
        if not wants_node(x):
            return plan.forward(x, numerator, denominator)
        try:
            return _Eager.apply(x, numerator, denominator, plan)
        except ForwardModeError:
            return _by_definition(x, numerator, denominator, dim, call.autocast)
    _check(metadata(x), metadata(numerator), metadata(denominator), dim, channels)
    if call.transformed:
        # Transforms cannot look into an operator. Some raise; jvp takes the derivative for zero.
        return _by_definition(x, numerator, denominator, dim, call.autocast)
    if torch.onnx.is_in_onnx_export():
        # ONNX's exporters know no operators but PyTorch's.
        return decomposed(x, numerator, denominator, dim, call.autocast)
    return torch.ops.flashkat.rational(x, numerator, denominator, dim, call.autocast)


def _by_definition(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int, dtype: torch.dtype | None) -> Tensor:
    value = rational_reference(x, numerator, denominator, dim)
    return value if dtype is None else value.to(dtype)


def _of_jagged(x: Any, numerator: Tensor, denominator: Tensor, dim: int, channels: int | None) -> Tensor:
    """Apply the function to the values of a jagged nested tensor. Its result has the same jagged dimension."""
    values: Tensor = x.values()
    jagged = next(index for index, size in enumerate(x.shape[1:], 1) if size != values.shape[index - 1])
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim {dim} is out of range for x of shape {tuple(x.shape)}")
    if dim % x.ndim in (0, jagged):
        raise ValueError(
            f"dim {dim} of x of shape {tuple(x.shape)} holds the batch or is jagged: give the channels' dim"
        )
    value = rational(values, numerator, denominator, dim=dim % x.ndim - 1, channels=channels)
    return torch.nested.nested_tensor_from_jagged(value, x.offsets(), x.lengths(), jagged)


def _check(x: Metadata, numerator: Metadata, denominator: Metadata, dim: int, channels: int | None) -> None:
    shape, _, device, _ = x
    for name, (_, dtype, where, layout) in (("x", x), ("numerator", numerator), ("denominator", denominator)):
        if layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, not {layout}: convert it with .to_dense()")
        if dtype not in DTYPES:
            how = "apply it to .real and .imag" if dtype.is_complex else "convert it with .float()"
            raise TypeError(f"{name} must be a float64, float32, bfloat16 or float16 tensor, not {dtype}: {how}")
        if where != device:
            raise ValueError(f"x is on {device} but {name} is on {where}: move both to one device")
    if len(shape) == 0:
        raise ValueError("x must have at least one dimension, the channels")
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"dim {dim} is out of range for x of shape {tuple(shape)}")
    if channels is not None and shape[dim] != channels:
        raise ValueError(f"expected {channels} channels in dim {dim}, got x of shape {tuple(shape)}")
    shapes = tuple(numerator[0]), tuple(denominator[0])
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][1] == 0:
        raise ValueError(
            "numerator must have shape (groups, m) with m >= 1 and denominator (groups, n), "
            f"not {shapes[0]} and {shapes[1]}"
        )
    rows = shapes[0][0], shapes[1][0]
    groups = max(rows)
    if not all(count in (1, groups) for count in rows) or groups == 0:
        raise ValueError(
            "numerator and denominator must have as many rows as there are groups, or one: "
            f"not {shapes[0]} and {shapes[1]}"
        )
    if shape[dim] % groups != 0:
        raise ValueError(f"{shape[dim]} channels (dim {dim} of x) do not divide into {groups} groups")


@dataclass(frozen=True)
class _Plan:
    """How to compute a call whose arguments were found to fit."""

    path: ModuleType
    dim: int
    dtype: torch.dtype

    def forward(self, x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
        return self.path.forward(x, numerator, denominator, self.dim, self.dtype)

    def backward(self, grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, ...]:
        return self.path.backward(grad, x, numerator, denominator, self.dim)


@functools.lru_cache(maxsize=1024)
def _plan(
    x: Metadata,
    numerator: Metadata,
    denominator: Metadata,
    strides: tuple[int, ...],
    dim: int,
    channels: int | None,
    autocast: torch.dtype | None,
) -> Any:
    """Return the plan of a plain call. All checks and choices are made once for each set of arguments."""
    _check(x, numerator, denominator, dim, channels)
    path, dtype = choose_path(x[2]), autocast or x[1]
    if path.name == "triton":
        plan = path.implementation.plan(x, strides, numerator, denominator, dim, dtype)
        if plan is not None:
            return plan
    return _Plan(path.implementation, dim, dtype)


class _Eager(EagerFunction):
    @staticmethod
    def forward(ctx, x, numerator, denominator, plan):
        ctx.save_for_backward(x, numerator, denominator)
        ctx.plan = plan
        return plan.forward(x, numerator, denominator)

    @staticmethod
    def backward(ctx, grad):
        x, numerator, denominator = ctx.saved_tensors
        if not has_memory(grad):
            grads = differentiate(rational_reference, grad, x, numerator, denominator, ctx.plan.dim)
        elif torch.is_grad_enabled() or not is_plain(grad, x, numerator):
            # A second derivative may follow.
            grads = torch.ops.flashkat.rational_backward(grad, x, numerator, denominator, ctx.plan.dim)
        else:
            grads = ctx.plan.backward(grad, x, numerator, denominator)
        return *grads, None


def _forward(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    return choose_path(x.device).implementation.forward(x, numerator, denominator, dim, dtype or x.dtype)


def _backward(
    grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    return choose_path(x.device).implementation.backward(grad, x, numerator, denominator, dim)


def _fake_forward(
    x: Tensor, numerator: Tensor, denominator: Tensor, dim: int, dtype: torch.dtype | None = None
) -> Tensor:
    return torch.empty_like(x, dtype=dtype or x.dtype)


def _fake_backward(
    grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x),
        torch.empty_like(numerator, memory_format=torch.contiguous_format),
        torch.empty_like(denominator, memory_format=torch.contiguous_format),
    )


def _save_forward(ctx, inputs, output) -> None:
    x, numerator, denominator, ctx.dim, _ = inputs
    ctx.save_for_backward(x, numerator, denominator)


def _differentiate(ctx, grad: Tensor):
    grads = torch.ops.flashkat.rational_backward(grad, *ctx.saved_tensors, ctx.dim)
    return *grads, None, None


def _save_backward(ctx, inputs, output) -> None:
    *tensors, ctx.dim = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_twice(ctx, *grads: Tensor):
    """Differentiate the derivative of the definition."""
    higher = torch.is_grad_enabled()
    with torch.enable_grad():
        tensors = as_inputs(ctx.saved_tensors)
        first = differentiate(rational_reference, *tensors, ctx.dim)
        # A constant (m = 1, n = 0) has gradients that depend on nothing.
        used = [(f, g) for f, g in zip(first, grads, strict=True) if f.requires_grad]
        second = torch.autograd.grad(
            [f for f, _ in used], tensors, [g for _, g in used], create_graph=higher, materialize_grads=True
        )
    return *second, None


register(
    "rational(Tensor x, Tensor numerator, Tensor denominator, int dim, ScalarType? dtype=None) -> Tensor",
    _forward,
    _fake_forward,
    formula=in_float64,
    decomposition=decomposed,
    save=_save_forward,
    differentiate=_differentiate,
)
register(
    "rational_backward(Tensor grad, Tensor x, Tensor numerator, Tensor denominator, int dim)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    save=_save_backward,
    differentiate=_differentiate_twice,
)
