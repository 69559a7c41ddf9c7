"""The operator as PyTorch sees it: checks, registration, fake tensors, autograd, autocast.

``torch.ops.flashkat.rational`` and ``torch.ops.flashkat.rational_backward`` are opaque to exporters, and to compilers
but for the kernels they launch, or a formula that they fuse where a tensor is small; :func:`rational` is the public
door that checks its arguments and reads autocast.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode

from .analysis import analyse_once
from .dispatch import choose_path, has_fast_float64
from .layout import vector_of
from .reference import rational_reference
from .triton import settings
from .triton.caching import distinguish_caches

__all__ = [
    "LIBRARY",
    "TAGS",
    "Metadata",
    "as_inputs",
    "autocast_dtype",
    "differentiate",
    "fits",
    "has_kernels",
    "in_float64",
    "is_batch",
    "is_plain_call",
    "is_transformed",
    "is_triton",
    "metadata",
    "rational",
    "register",
    "triton_module",
]


def rational(x: Tensor, numerator: Tensor, denominator: Tensor, *, dim: int = -1) -> Tensor:
    """Group-wise rational activation F(x) = P(x) / Q(x), the base function of GR-KAN.

    P(x) = a_0 + a_1 x + ... + a_{m-1} x^{m-1} and Q(x) = 1 + |b_1| |x| + ... + |b_n| |x|^n, with coefficients per
    contiguous group of channels (Yang & Wang, ICLR 2025, section 4). Differentiable in all three tensors; |v| has the
    derivative +1 at 0. The result and the gradients are the same bits every time. For finite inputs they are finite
    where the exact value fits the dtype, and +-inf, never NaN, where it does not; the coefficients' gradients in
    float64 up to 2^959. Gradients whose quotient by Q(x) is below the smallest normal number lose bits on GPUs.

    Second and higher derivatives, in eager mode, and all that transforms of torch.func see (grad, jvp, vmap and others)
    come from the definition (:func:`flashkat.ops.rational_reference`), which overflows where a power does.

    Args:
        x: float64, float32, bfloat16 or float16 tensor of one or more dimensions, with any strides, on any device.
        numerator: (1, m) or (G, m) coefficients a_0 ... a_{m-1} of any of these dtypes, m >= 1; one row is shared by
            all G groups.
        denominator: (1, n) or (G, n) coefficients b_1 ... b_n, likewise, n >= 0.
        dim: the channel dimension of ``x``. Its D channels form G contiguous groups of D / G.

    Returns:
        A tensor of the shape and memory format of ``x``. Its dtype is that of ``x``, or autocast's where autocast is
        on. Arithmetic is float64 for float64 ``x`` and float32 otherwise, which the coefficients are rounded to.

    Raises:
        TypeError: a tensor is of another dtype, or sparse.
        ValueError: shapes, groups, dimension or devices that do not fit together.
    """
    tensors = metadata(x), metadata(numerator), metadata(denominator)
    dtype = autocast_dtype(x)
    if is_plain_call(x, numerator, denominator):
        _check_once(*tensors, dim)
        return _Eager.apply(x, numerator, denominator, dim, dtype)
    _check(*tensors, dim)
    if is_transformed():
        # They cannot look into an operator: some raise, and jvp takes its derivative for zero.
        value = rational_reference(x, numerator, denominator, dim)
        return value if dtype is None else value.to(dtype)
    return torch.ops.flashkat.rational(x, numerator, denominator, dim, dtype)


_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter))


def is_plain_call(*tensors: Tensor) -> bool:
    """Whether nobody looks on: no compiler, tracer, tensor subclass, dispatch mode or function transform."""
    return (
        not torch.compiler.is_compiling()
        and not tensors[0].is_meta
        and _PLAIN_TYPES.issuperset(map(type, tensors))
        and torch._C._len_torch_dispatch_stack() == 0
        and not is_transformed()
        and not torch.jit.is_tracing()
    )


def is_transformed() -> bool:
    """Whether this is a call within a transform of torch.func: grad, jvp, vmap and others; compilers see through it."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


class _Eager(torch.autograd.Function):
    """The registered operator without its registration, through which a call takes the host several times as long."""

    @staticmethod
    def forward(ctx, x, numerator, denominator, dim, dtype):
        ctx.save_for_backward(x, numerator, denominator)
        ctx.dim = dim
        return choose_path(x.device).implementation.forward(x, numerator, denominator, dim, dtype or x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, numerator, denominator = ctx.saved_tensors
        if is_batch(grad):
            grads = differentiate(rational_reference, grad, x, numerator, denominator, ctx.dim)
        elif torch.is_grad_enabled() or not is_plain_call(grad, x, numerator):
            # Someone may want second derivatives.
            grads = torch.ops.flashkat.rational_backward(grad, x, numerator, denominator, ctx.dim)
        else:
            grads = choose_path(x.device).implementation.backward(grad, x, numerator, denominator, ctx.dim)
        return *grads, None, None


def is_batch(*grads: Tensor | None) -> bool:
    """Whether these are many gradients at once, of torch.autograd's ``is_grads_batched``, which kernels cannot read."""
    return not all(grad is None or torch._C._has_storage(grad) for grad in grads)


def differentiate(function: Callable[..., Tensor], grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """The gradients of ``function`` in the tensors that ``inputs`` begin with, which can be differentiated again."""
    higher = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = as_inputs([each for each in inputs if isinstance(each, Tensor)])
        out = function(*leaves, *inputs[len(leaves) :])
        return torch.autograd.grad(out, leaves, grad.to(out.dtype), create_graph=higher, materialize_grads=True)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for where ``x`` is, None where it is off."""
    device = x.device.type
    # PyTorch has no autocast for meta tensors, and raises when asked.
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


# What the kernels of the operators that do more than the rational compute in float32.
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DTYPES = (torch.float64, *_KERNEL_DTYPES)


def has_kernels(
    x: Tensor,
    channels: int,
    parameters: Sequence[Tensor],
    coefficients: Sequence[Tensor],
    dtypes: tuple[torch.dtype, ...],
    plain: bool,
) -> bool:
    """Whether there are such kernels for ``x``, and groups of so many channels hold whole vectors of these dtypes.

    Not for ``parameters``, of a number for each channel, or ``coefficients`` that do not fit: PyTorch's own operators
    say what is wrong with them. Sizes are numbers in a ``plain`` call.
    """
    if not x.is_cuda or x.layout != torch.strided:
        return False
    fit = _fits_once if plain else fits
    tensors = tuple(map(metadata, parameters)), tuple(map(metadata, coefficients))
    return bool(fit(x.device, x.dtype, channels, *tensors, dtypes)) and is_triton(x.device)


@torch.compiler.assume_constant_result
def is_triton(device: torch.device) -> bool:
    """Whether tensors on that device take the path of the Triton kernels."""
    return choose_path(device).name == "triton"


@functools.cache
def triton_module(name: str) -> Any:
    """A module of this package that needs Triton, imported where it is first used."""
    return importlib.import_module(f".triton.{name}", __package__)


Metadata = tuple[torch.Size, torch.dtype, torch.device, torch.layout]


def metadata(tensor: Tensor) -> Metadata:
    """What decides which kernels there are for a tensor."""
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout


def _check(x: Metadata, numerator: Metadata, denominator: Metadata, dim: int) -> None:
    shape, _, device, _ = x
    for name, (_, dtype, where, layout) in (("x", x), ("numerator", numerator), ("denominator", denominator)):
        if layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, not {layout}: convert it with .to_dense()")
        if dtype not in _DTYPES:
            raise TypeError(
                f"{name} must be a float64, float32, bfloat16 or float16 tensor, not {dtype}: convert it with .float()"
            )
        if where != device:
            raise ValueError(f"x is on {device} but {name} is on {where}: move both to one device")
    if len(shape) == 0:
        raise ValueError("x must have at least one dimension, the channels")
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"dim {dim} is out of range for x of shape {tuple(shape)}")
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


def fits(
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    parameters: tuple[Metadata, ...],
    coefficients: tuple[Metadata, ...],
    dtypes: tuple[torch.dtype, ...],
) -> bool:
    """What :func:`has_kernels` asks of all but the path: of x its device and dtype, of the others what is known."""
    if any(each not in _KERNEL_DTYPES for each in (dtype, *dtypes)):
        return False
    if any(where != device or layout != torch.strided for *_, where, layout in (*parameters, *coefficients)):
        return False
    if any(each not in _KERNEL_DTYPES for _, each, *_ in parameters):
        return False
    if any(each not in _DTYPES for _, each, *_ in coefficients):
        return False
    if any(shape != (channels,) for shape, *_ in parameters) or any(len(shape) != 2 for shape, *_ in coefficients):
        return False
    rows = [shape[0] for shape, *_ in coefficients]
    groups = max(rows)
    if groups == 0 or not all(count in (1, groups) for count in rows) or coefficients[0][0][1] == 0:
        return False
    return channels % (groups * vector_of(*dtypes)) == 0


# What has been looked at once need not be looked at again.
_check_once, _fits_once = functools.lru_cache(maxsize=1024)(_check), functools.lru_cache(maxsize=1024)(fits)


distinguish_caches()

LIBRARY = torch.library.Library("flashkat", "DEF")
TAGS = (torch.Tag.pt2_compliant_tag,)
LIBRARY.define(
    "rational(Tensor x, Tensor numerator, Tensor denominator, int dim, ScalarType? dtype=None) -> Tensor", tags=TAGS
)
LIBRARY.define(
    "rational_backward(Tensor grad, Tensor x, Tensor numerator, Tensor denominator, int dim)"
    " -> (Tensor, Tensor, Tensor)",
    tags=TAGS,
)


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


def in_float64(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """F(x) by its definition, which compilers fuse with what is beside it.

    Float32 numbers cannot overflow there up to degree ``_FLOAT64_DEGREE``.
    """
    groups = max(numerator.shape[0], denominator.shape[0])
    channels = x.shape[dim] // groups or 1
    # A row for each channel: by rows of groups Inductor takes a LayerNorm, fused with this, for one of strided memory.
    a, b = (each.float().expand(groups, -1).repeat_interleave(channels, 0) for each in (numerator, denominator))
    value = rational_reference(x.double(), a, b, dim)
    return value.float().to(dtype or x.dtype)


def _save_forward(ctx, inputs, output) -> None:
    x, numerator, denominator, ctx.dim, _ = inputs
    ctx.save_for_backward(x, numerator, denominator)


def _differentiate(ctx, grad: Tensor):
    grads = torch.ops.flashkat.rational_backward(grad, *ctx.saved_tensors, ctx.dim)
    return *grads, None, None


def _save_backward(ctx, inputs, output) -> None:
    *tensors, ctx.dim = inputs
    ctx.save_for_backward(*tensors)


def as_inputs(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views to differentiate by: distinct nodes of the graph that the caller's tensors lead into."""
    return [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors]


def _differentiate_twice(ctx, *grads: Tensor):
    """Second and higher derivatives come from the definition, by differentiating its derivative."""
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


# No more powers than that: the largest of float32, 2^128, times a coefficient as large is below 2^1023 then.
_FLOAT64_DEGREE = 6


def _is_fused(x: Tensor, coefficients: Sequence[Tensor]) -> bool:
    """Whether F(x) is left to a compiler, which fuses it with what is before and after it.

    Launching a kernel takes the host longer than the formula takes the GPU. CUDA graphs, those that Inductor makes,
    spare the host that, so that there the formula has to be faster than the kernel itself: for fewer elements.
    """
    from torch._inductor import config  # slow to import

    m, n = (each.shape[1] for each in coefficients)
    most = settings.FUSED_ELEMENTS_IN_GRAPHS if config.triton.cudagraphs else settings.FUSED_ELEMENTS
    return (
        x.numel() <= most
        and x.dtype != torch.float64
        and max(m - 1, n) <= _FLOAT64_DEGREE
        and has_fast_float64(x.device)
    )


def register(
    name: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    formula: Callable[..., Any] | None = None,
) -> None:
    """Let ``function`` compute an operator, ``fake`` say what it returns, and compilers launch its kernels themselves.

    torch.compile looks into an operator of GPU tensors for that, and where these are small takes ``formula``, of the
    same arguments, numerator and denominator after the other tensors. Exporters keep the operator, and so do compilers
    where sizes are not numbers yet.
    """

    def decompose(mode, op, types, args, kwargs):
        from torch.export._trace import custom_triton_ops_decomposition_disabled  # slow to import

        tensors = [each for each in args if isinstance(each, Tensor)]
        sizes = [size for tensor in tensors for size in (*tensor.shape, *tensor.stride())]
        if (
            custom_triton_ops_decomposition_disabled()
            or not all(isinstance(size, int) for size in sizes)
            or not is_triton(tensors[0].device)
        ):
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            if formula is not None and _is_fused(tensors[0], tensors[-2:]):
                return formula(*args, **kwargs)
            analyse_once()
            return function(*args, **kwargs)

    torch.library.impl(LIBRARY, name, "CompositeExplicitAutograd")(function)
    torch.library.register_fake(f"flashkat::{name}", fake, lib=LIBRARY)
    torch.library.register_torch_dispatch(f"flashkat::{name}", FunctionalTensorMode, decompose, lib=LIBRARY)


register("rational", _forward, _fake_forward, in_float64)
register("rational_backward", _backward, _fake_backward)
torch.library.register_autograd("flashkat::rational", _differentiate, setup_context=_save_forward, lib=LIBRARY)
torch.library.register_autograd(
    "flashkat::rational_backward", _differentiate_twice, setup_context=_save_backward, lib=LIBRARY
)
