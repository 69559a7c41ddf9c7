"""The two published kernels of the operator, written anew from the descriptions in their papers.

- ``kat`` is KAT's kernel (Yang & Wang, ICLR 2025, section 4.3). Raffel & Chen (AAAI 2026) describe its backward pass.
  Each thread has one element. In the backward pass each element adds its m + n terms of the coefficients' gradients by
  float32 atomics.
- ``flashkat`` is FlashKAT's kernel (Raffel & Chen, AAAI 2026, section 4). Its grid is two-dimensional: each block has
  several rows of one group's channels. It reads the coefficients once and sums the terms of its elements. Only its
  sums go through atomics.

Both compute in float32. Under autocast separate passes cast the input up and the output down, as in the published
code. The block sizes are ours. x is contiguous, (..., channels). Shared coefficients are repeated for every group, and
their gradients are summed over groups afterwards.

Legend: ``a`` is the numerator (1 or G, m), ``b`` the denominator (1 or G, n), ``y`` = F(x).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor]

_KAT_BLOCK = 256  # elements: one for each thread of 8 warps
_KAT_WARPS = 8
_FLASHKAT_ROWS = 16
_FLASHKAT_ELEMENTS_PER_THREAD = 16


@triton.jit
def _polynomials(x, a_ptr, b_ptr, M: tl.constexpr, N: tl.constexpr):
    """Return P, P', Q and dQ/d|x|. The pointers to coefficients are scalars, or one for each element."""
    u = tl.abs(x)
    p = tl.zeros_like(x)
    dp = tl.zeros_like(x)
    for i in tl.static_range(M):
        dp = dp * x + p
        p = p * x + tl.load(a_ptr + (M - 1 - i))
    q = tl.zeros_like(x)
    dq = tl.zeros_like(x)
    for j in tl.static_range(N):
        dq = dq * u + q
        q = q * u + tl.abs(tl.load(b_ptr + (N - 1 - j)))
    return p, dp, q * u + 1.0, dq * u + q


@triton.jit
def _sign(value):
    return tl.where(value < 0, -1.0, 1.0)


@triton.jit
def _kat_forward_kernel(
    x_ptr, a_ptr, b_ptr, y_ptr, count, channels, width,
    M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store y = F(x) for one block of the ``count`` elements. A group has ``width`` channels."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < count
    group = (offsets % channels) // width
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    p, _, q, _ = _polynomials(x, a_ptr + group * M, b_ptr + group * N, M, N)
    tl.store(y_ptr + offsets, p / q, mask=mask)


@triton.jit
def _kat_backward_kernel(
    grad_ptr, x_ptr, a_ptr, b_ptr, grad_x_ptr, grad_a_ptr, grad_b_ptr, count, channels, width,
    M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store grad_x, and add every element's terms to grad_a (G, M) and grad_b (G, N), which start at zero."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < count
    group = (offsets % channels) // width
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0)
    p, dp, q, dq = _polynomials(x, a_ptr + group * M, b_ptr + group * N, M, N)
    y = p / q
    weight = grad / q
    tl.store(grad_x_ptr + offsets, weight * (dp - _sign(x) * dq * y), mask=mask)
    term = weight
    for i in tl.static_range(M):
        tl.atomic_add(grad_a_ptr + group * M + i, term, mask=mask, sem="relaxed")
        term = term * x
    term = -weight * y
    for j in tl.static_range(N):
        term = term * tl.abs(x)
        sign = _sign(tl.load(b_ptr + group * N + j))
        tl.atomic_add(grad_b_ptr + group * N + j, term * sign, mask=mask, sem="relaxed")


@triton.jit
def _flashkat_tile(rows_count, channels, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return offsets and mask of a program's tile. The program is (block of rows, group)."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    offsets = rows[:, None] * channels + tl.program_id(1) * width + columns[None, :]
    return offsets, (rows < rows_count)[:, None] & (columns < width)[None, :]


@triton.jit
def _flashkat_forward_kernel(
    x_ptr, a_ptr, b_ptr, y_ptr, rows_count, channels, width,
    M: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store y = F(x) for a block of rows of one group. COLUMNS is ``width`` rounded up to a power of two."""
    offsets, mask = _flashkat_tile(rows_count, channels, width, ROWS, COLUMNS)
    group = tl.program_id(1)
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    p, _, q, _ = _polynomials(x, a_ptr + group * M, b_ptr + group * N, M, N)
    tl.store(y_ptr + offsets, p / q, mask=mask)


@triton.jit
def _flashkat_backward_kernel(
    grad_ptr, x_ptr, a_ptr, b_ptr, grad_x_ptr, grad_a_ptr, grad_b_ptr, rows_count, channels, width,
    M: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store grad_x, and add the block's sums to grad_a (G, M) and grad_b (G, N), which start at zero."""
    offsets, mask = _flashkat_tile(rows_count, channels, width, ROWS, COLUMNS)
    group = tl.program_id(1)
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0)
    p, dp, q, dq = _polynomials(x, a_ptr + group * M, b_ptr + group * N, M, N)
    y = p / q
    weight = grad / q
    tl.store(grad_x_ptr + offsets, weight * (dp - _sign(x) * dq * y), mask=mask)
    term = weight
    for i in tl.static_range(M):
        tl.atomic_add(grad_a_ptr + group * M + i, tl.sum(term), sem="relaxed")
        term = term * x
    term = -weight * y
    for j in tl.static_range(N):
        term = term * tl.abs(x)
        sign = _sign(tl.load(b_ptr + group * N + j))
        tl.atomic_add(grad_b_ptr + group * N + j, tl.sum(term) * sign, sem="relaxed")


def kat_forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Compute F(x) in the dtype of x with KAT's kernel."""
    wide, wide_a, wide_b = _in_float32(x, a, b)
    y = torch.empty_like(wide)
    _kat_forward_kernel[_kat_grid(x)](
        wide, wide_a, wide_b, y, x.numel(), x.shape[-1], x.shape[-1] // len(wide_b), **_kat_constants(a, b)
    )
    return y.to(x.dtype)


def kat_backward(grad: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Gradients:
    """Compute the gradients of x (in the dtype of ``grad``), a and b with KAT's kernel."""
    wide, wide_a, wide_b = _in_float32(x, a, b)
    grad_x, grad_a, grad_b = torch.empty_like(wide), torch.zeros_like(wide_a), torch.zeros_like(wide_b)
    _kat_backward_kernel[_kat_grid(x)](
        grad.float(), wide, wide_a, wide_b, grad_x, grad_a, grad_b,
        x.numel(), x.shape[-1], x.shape[-1] // len(wide_b), **_kat_constants(a, b),
    )  # fmt: skip
    return grad_x.to(grad.dtype), _like_given(grad_a, a), _like_given(grad_b, b)


def flashkat_forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Compute F(x) in the dtype of x with FlashKAT's kernel."""
    wide, wide_a, wide_b = _in_float32(x, a, b)
    rows, width = x.numel() // x.shape[-1], x.shape[-1] // len(wide_b)
    y = torch.empty_like(wide)
    _flashkat_forward_kernel[_flashkat_grid(rows, wide_b)](
        wide, wide_a, wide_b, y, rows, x.shape[-1], width, **_flashkat_constants(a, b, width)
    )
    return y.to(x.dtype)


def flashkat_backward(grad: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Gradients:
    """Compute the gradients of x (in the dtype of ``grad``), a and b with FlashKAT's kernel."""
    wide, wide_a, wide_b = _in_float32(x, a, b)
    rows, width = x.numel() // x.shape[-1], x.shape[-1] // len(wide_b)
    grad_x, grad_a, grad_b = torch.empty_like(wide), torch.zeros_like(wide_a), torch.zeros_like(wide_b)
    _flashkat_backward_kernel[_flashkat_grid(rows, wide_b)](
        grad.float(), wide, wide_a, wide_b, grad_x, grad_a, grad_b,
        rows, x.shape[-1], width, **_flashkat_constants(a, b, width),
    )  # fmt: skip
    return grad_x.to(grad.dtype), _like_given(grad_a, a), _like_given(grad_b, b)


def kat(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Compute F(x) with KAT's kernel, differentiably."""
    return _Differentiable.apply(x, a, b, kat_forward, kat_backward)


def flashkat(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Compute F(x) with FlashKAT's kernel, differentiably."""
    return _Differentiable.apply(x, a, b, flashkat_forward, flashkat_backward)


class _Differentiable(torch.autograd.Function):
    """The published behaviour under autograd: it saves the float32 copy of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, forward: Any, backward: Any) -> Tensor:
        wide = x.float()
        ctx.save_for_backward(wide, a, b)
        ctx.backward_pass = backward
        return forward(wide, a, b).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.backward_pass(grad, *ctx.saved_tensors), None, None


def _in_float32(x: Tensor, a: Tensor, b: Tensor) -> Gradients:
    """Return x and the coefficients in float32, the latter with a row for every group."""
    groups = max(len(a), len(b))
    return x.float(), a.float().expand(groups, -1).contiguous(), b.float().expand(groups, -1).contiguous()


def _like_given(gradient: Tensor, coefficients: Tensor) -> Tensor:
    shared = len(coefficients) < len(gradient)
    return (gradient.sum(0, keepdim=True) if shared else gradient).to(coefficients.dtype)


def _kat_grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), _KAT_BLOCK),)


def _kat_constants(a: Tensor, b: Tensor) -> dict[str, Any]:
    return {
        "M": a.shape[1],
        "N": b.shape[1],
        "BLOCK": _KAT_BLOCK,
        "num_warps": _KAT_WARPS,
        "enable_fp_fusion": True,
    }


def _flashkat_grid(rows: int, b: Tensor) -> tuple[int, int]:
    return triton.cdiv(rows, _FLASHKAT_ROWS), len(b)


def _flashkat_constants(a: Tensor, b: Tensor, width: int) -> dict[str, Any]:
    columns = triton.next_power_of_2(width)
    warps = _FLASHKAT_ROWS * columns // (32 * _FLASHKAT_ELEMENTS_PER_THREAD)
    return {
        "M": a.shape[1],
        "N": b.shape[1],
        "ROWS": _FLASHKAT_ROWS,
        "COLUMNS": columns,
        "num_warps": min(max(warps, 1), 16),
        "enable_fp_fusion": True,
    }
