"""The registration of the operators with PyTorch: names, fake tensors, derivatives, and what compilers see."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import private
from .dispatch import has_fast_float64, is_triton
from .reference import compute_dtype, horner
from .triton import settings
from .triton.caching import distinguish_caches

__all__ = ["DECOMPOSITIONS", "decomposed", "in_float64", "register"]

distinguish_caches()

_LIBRARY = torch.library.Library("flashkat", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)

DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {}
"""For ``ExportedProgram.run_decompositions``: our operators by PyTorch's own.

Their derivatives are those of :func:`flashkat.rational`, but for x = 0. There |x| has PyTorch's derivative, 0.
"""


def register(
    signature: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    formula: Callable[..., Any] | None = None,
    decomposition: Callable[..., Any] | None = None,
    save: Callable[..., None] | None = None,
    differentiate: Callable[..., Any] | None = None,
    is_composite: bool = False,
) -> None:
    """Define an operator ``torch.ops.flashkat.NAME``.

    torch.compile calls the operator whole. For small tensors on a GPU it takes ``formula``, unless a size is a symbol.
    ``torch.export`` keeps the operator, and ``DECOMPOSITIONS`` replaces it.

    Args:
        signature: the name and the schema.
        function: computes it.
        fake: returns empty tensors with the metadata of the results.
        formula: computes it by operators that a compiler fuses. Its last tensors are numerator and denominator.
        decomposition: computes it by operators that every runtime has; default is ``formula``.
        save: ``setup_context`` of the derivative.
        differentiate: ``backward`` of the derivative.
        is_composite: compilers look into ``function``, and take its operators with the derivative given here.
    """
    name = signature.partition("(")[0]
    qualified = f"flashkat::{name}"
    _LIBRARY.define(signature, tags=_TAGS)
    torch.library.impl(_LIBRARY, name, "CompositeExplicitAutograd")(function)
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    rule = _formula_rule(formula) if formula is not None else _composite_rule(function) if is_composite else None
    if rule is not None and private.FunctionalTensorMode is not None:
        torch.library.register_torch_dispatch(qualified, private.FunctionalTensorMode, rule, lib=_LIBRARY)
    decomposition = decomposition or formula
    if decomposition is not None:
        DECOMPOSITIONS[getattr(torch.ops.flashkat, name).default] = decomposition
    if differentiate is not None:
        torch.library.register_autograd(qualified, differentiate, setup_context=save, lib=_LIBRARY)


def _formula_rule(formula: Callable[..., Any]) -> Callable[..., Any]:
    """Return the rule by which a compiler takes a formula in place of an operator, for small tensors on a GPU."""

    def rule(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
        tensors = [each for each in args if isinstance(each, Tensor)]
        sizes = [size for tensor in tensors for size in (*tensor.shape, *tensor.stride())]
        if (
            torch.compiler.is_exporting()
            or not all(isinstance(size, int) for size in sizes)
            or not is_triton(tensors[0].device)
            or not _is_fused(tensors[0], tensors[-2:])
        ):
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return formula(*args, **kwargs)

    return rule


def _composite_rule(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the rule by which a compiler takes the operators of a function."""

    def rule(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
        with mode:
            return function(*args, **kwargs)

    return rule


# Up to this degree, a power of a float32 times a float32 coefficient stays below 2^1023.
_FLOAT64_DEGREE = 6


def _is_fused(x: Tensor, coefficients: Sequence[Tensor]) -> bool:
    """Return whether a compiler fuses the formula of F(x) with its neighbours, in place of a kernel.

    For small tensors, a launch takes the host longer than the formula takes the GPU. In CUDA graphs, where the host
    launches nothing, the formula saves a pass over memory.
    """
    m, n = (each.shape[1] for each in coefficients)
    return (
        x.numel() <= settings.FUSED_ELEMENTS
        and x.dtype != torch.float64
        and max(m - 1, n) <= _FLOAT64_DEGREE
        and has_fast_float64(x.device)
    )


def in_float64(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Compute F(x) by its definition in float64, where float32 cannot overflow up to ``_FLOAT64_DEGREE``."""
    p, q = _polynomials(x, numerator, denominator.abs(), dim, torch.float64)
    value = p if q is None else p * _reciprocal(q)
    return value.float().to(dtype or x.dtype)


# These less the bits of a float64 number q are the bits of a number within 5.1% of 1 / q.
_RECIPROCAL_BITS = 0x7FDE623822FC16E6


def _reciprocal(q: Tensor) -> Tensor:
    """Return 1 / q within 2^-38, for 1 <= q < 2^1000.

    Compiled for an H100, it has no branches, and a kernel with four elements a thread has 312 instructions. With an
    exact division these are 456.
    """
    r = (_RECIPROCAL_BITS - q.view(torch.int64)).view(torch.float64).abs()  # so that an infinite q makes a NaN
    for _ in range(2):  # each cubes the relative error
        error = 1.0 - q * r
        r = r + r * (error + error * error)
    return r


def _polynomials(
    x: Tensor, numerator: Tensor, sizes: Tensor, dim: int, wide: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Return P and Q in the dtype ``wide``, from coefficients that are rounded as ever. Q is None if it is 1.

    ``sizes`` are the absolute values of the denominator. For those of x there is no ``torch.where``, which takes ONNX
    Runtime ten times as long as an addition.
    """
    groups = max(numerator.shape[0], sizes.shape[0])
    dim = dim % x.ndim
    rows, trailing = x.shape[dim] // groups, (1,) * (x.ndim - dim - 1)

    def columns(table: Tensor) -> list[Tensor]:
        """Return a tensor for each power, with a number for each channel, so that runtimes broadcast long rows."""
        table = table.to(compute_dtype(x.dtype)).to(wide).expand(groups, -1).repeat_interleave(rows, 0)
        return [column.reshape(-1, *trailing) for column in table.unbind(1)]

    z = x.to(wide)
    p, b = horner(columns(numerator), z), columns(sizes)
    if not b:
        return p, None
    size = z.abs()
    return p, horner(b, size) * size + 1.0


# A float16 is below 2^16. Up to this degree, its powers times coefficients below 2^40 fit float32.
_HALF_DEGREE = 5


def decomposed(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Compute F(x) by operators that every runtime has, without the fused kernels.

    float32 and bfloat16 ``x`` take float64, in which no power overflows up to degree 6. float16 takes float32 up to
    degree 5.
    """
    degree = max(numerator.shape[1] - 1, denominator.shape[1])
    is_small = x.dtype == torch.float16 and degree <= _HALF_DEGREE
    wide = torch.float32 if is_small else torch.float64
    # A program may be trained. With torch.abs, a coefficient of 0 would never learn.
    sizes = denominator * (1.0 - 2.0 * (denominator < 0))
    p, q = _polynomials(x, numerator, sizes, dim, wide)
    quotient = p if q is None else p / q
    return quotient.to(compute_dtype(x.dtype)).to(dtype or x.dtype)
