"""Plain arithmetic on a chunk: right within its range, and refused beyond it."""

import pytest
import torch
from oracle import assert_close, exact

from flashkat.ops.aten import plain


def chunk(dtype=torch.float32, size=1.0, m=4, n=3):
    generator = torch.Generator().manual_seed(9)
    g, x = torch.randn(2, 8, 6, 2, generator=generator).to(dtype).unbind(0)
    return g, size * x, torch.randn(1, m, generator=generator), torch.randn(3, n, generator=generator)


def run(g, x, a, b):
    coefficients = plain.Coefficients(a, b, x)
    f, scratch = coefficients.polynomials(slice(0, x.shape[1])), plain.Scratch(coefficients.dtype, x.device)
    out, grad_x = torch.empty_like(x), torch.empty_like(x)
    fits = plain.forward(x, out, coefficients, f, scratch)
    return fits, out, grad_x, plain.backward(g, x, grad_x, coefficients, f, scratch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "n"), [(4, 3), (1, 2), (3, 0), (1, 0)])
def test_matches_float64(dtype, m, n):
    g, x, a, b = chunk(dtype, m=m, n=n)
    fits, out, grad_x, sums = run(g, x, a, b)
    truth = exact(g, x, a, b, 1)
    assert fits
    assert_close(out, truth["value"], 24, "value")
    assert_close(grad_x, truth["grad_x"], 24, "grad_x")
    assert (sums.shape, sums.dtype) == ((m + n, 6), torch.float64)
    near = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(sums[:m].sum(1), truth["grad_numerator"].value[0], **near)
    by_group = sums[m:].unflatten(1, (3, 2)).sum(2).T * torch.where(b < 0, -1, 1)
    torch.testing.assert_close(by_group, truth["grad_denominator"].value, **near)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e20), (torch.float64, 1e200)])
def test_powers_beyond_the_range_are_refused(dtype, size):
    fits, *_, sums = run(*chunk(dtype, size))
    assert not fits
    assert sums is None


def test_large_gradients_are_refused():
    g, x, a, b = chunk()
    fits, *_, sums = run(1e20 * g, x, a, b)
    assert fits
    assert sums is None


def test_coefficients_are_a_value_for_each_channel():
    _, x, a, b = chunk()
    f = plain.Coefficients(a, b, x).polynomials(slice(2, 5))
    assert [len(each) for each in f] == [4, 4, 3, 3]
    assert f.p[1].shape == (3, 1)
    assert f.q[1].flatten().tolist() == [b[1, 0].abs(), b[1, 0].abs(), b[2, 0].abs()]
    assert f.dq[1].flatten().tolist() == [2 * b[1, 1].abs(), 2 * b[1, 1].abs(), 2 * b[2, 1].abs()]
