"""The formulas of the kernels on one tile: plain where that is right, scaled the same and never overflowing."""

# ruff: noqa: N803 -- Triton's constants are written in capitals.

import pytest
import torch
from oracle import assert_close, exact

pytest.importorskip("triton")
import triton
import triton.language as tl

from flashkat.ops.triton import arithmetic

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where there is no GPU, Triton interprets


@triton.jit
def one_tile(
    x_ptr, g_ptr, a_ptr, b_ptr, out_ptr, dx_ptr, terms_ptr, plain_ptr, again_ptr,
    P: tl.constexpr, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr, SCALED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    p, c = tl.arange(0, P), tl.arange(0, C)
    offsets = (p[:, None] * C + c[None, :])[None, :, :]
    x, g = tl.load(x_ptr + offsets).to(COMPUTE), tl.load(g_ptr + offsets).to(COMPUTE)
    a = arithmetic.load_coefficients(a_ptr, c, c < C, M, False, COMPUTE)
    b = arithmetic.load_coefficients(b_ptr, c, c < C, N, True, COMPUTE)
    if SCALED:
        out = arithmetic.scaled_value(x, a, b, M, N)
        dx, terms = arithmetic.scaled_gradients(g, x, a, b, M, N)
    else:
        out = arithmetic.plain_value(x, a, b, M, N)
        again, dx, terms = arithmetic.plain_gradients(g, x, a, b, M, N, True)
        tl.store(again_ptr + offsets, again)
    tl.store(out_ptr + offsets, out)
    tl.store(dx_ptr + offsets, dx)
    for k in tl.static_range(M + N):
        tl.store(terms_ptr + k * P * C + p[:, None] * C + c[None, :], terms[k].to(tl.float64))
    largest = arithmetic.largest_coefficient(a, b, M, N)
    tl.store(plain_ptr, arithmetic.stays_plain(tl.max(tl.abs(x)), largest, M, N).to(tl.int32))


def run(x, g, a, b, scaled):
    out, dx = torch.empty_like(x), torch.empty_like(x)
    terms = torch.empty(a.shape[1] + b.shape[1], *x.shape, dtype=torch.float64, device=x.device)
    plain = torch.empty(1, dtype=torch.int32, device=x.device)
    compute = tl.float64 if x.dtype == torch.float64 else tl.float32
    again = torch.empty_like(x)
    one_tile[(1,)](x, g, a, b, out, dx, terms, plain, again, *x.shape, a.shape[1], b.shape[1], scaled, compute)
    assert scaled or torch.equal(out, again)  # the bits of the forward pass, in the backward one
    return out, dx, terms.sum(1), bool(plain)


def tile(dtype, size=1.0):
    generator = torch.Generator().manual_seed(4)
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((4, 8), (4, 8), (8, 4), (8, 3))]
    tensors[0] *= size
    return [tensor.to(DEVICE) for tensor in tensors]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_float64(dtype, scaled):
    x, g, a, b = tile(dtype)
    out, dx, terms, plain = run(x, g, a, b, scaled)
    truth = exact(*(each.cpu() for each in (g, x, a, b)), -1)
    assert plain
    assert_close(out.cpu(), truth["value"], 24, "value")
    assert_close(dx.cpu(), truth["grad_x"], 24, "grad_x")
    signs = torch.where(b < 0, -1.0, 1.0).to(terms)
    for found, name in ((terms[:4].T, "grad_numerator"), (signs * terms[4:].T, "grad_denominator")):
        near = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(found.cpu(), truth[name].value, rtol=near, atol=10 * near)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e20), (torch.float64, 1e160)])
def test_scaled_does_not_overflow_where_plain_would(dtype, size):
    x, g, a, b = tile(dtype, size)
    out, dx, _, plain = run(x, g, a, b, True)
    assert not plain
    assert out.isfinite().all()
    assert dx.isfinite().all()
    # As the leading coefficients say: a_3 x^3 over |b_3| |x|^3.
    limit = a[:, 3] / b[:, 2].abs() * x.sign()
    torch.testing.assert_close(out, limit.to(dtype), rtol=1e-4, atol=1e-4)
