"""Mantissas and exponents: exact in their parts, right where plain arithmetic overflows, and saturated in sums."""

import math

import pytest
import torch
from oracle import assert_close, exact

from flashkat.ops.aten import scaled


def chunk(size=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(8)
    g, x = torch.randn(2, 5, 4, 3, generator=generator).to(dtype).unbind(0)
    a, b = torch.randn(4, 4, generator=generator), torch.randn(4, 2, generator=generator)
    one_b = torch.cat([torch.ones(4, 1), b.abs()], 1)
    return (
        g,
        size * x,
        a,
        b,
        [column[:, None] for column in a.unbind(1)],
        [column[:, None] for column in one_b.unbind(1)],
    )


def test_matches_float64():
    g, x, a, b, p, q = chunk()
    truth = exact(g, x, a, b, 1)
    assert_close(scaled.forward(x, p, q).float(), truth["value"], 24, "value")
    grad_x, sums = scaled.backward(g, x, p, q)
    assert_close(grad_x.float(), truth["grad_x"], 24, "grad_x")
    torch.testing.assert_close(sums[:4].T, truth["grad_numerator"].value)
    torch.testing.assert_close(torch.where(b < 0, -1, 1) * sums[4:].T, truth["grad_denominator"].value)


def test_powers_beyond_float64_are_no_obstacle():
    _, x, _, _, p, q = chunk(1e200, torch.float64)
    found = scaled.forward(x, p, q)
    assert found.isfinite().all()
    torch.testing.assert_close(found, p[3] / q[2] * x)


def test_small_mantissas_hide_no_overflow():
    """x^4 is beyond float64 with a mantissa far below a half."""
    x = torch.full((1, 1, 1), 2.308e161, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    _, sums = scaled.backward(torch.ones_like(x), x, [one] * 6, [one])
    assert (sums.abs() >= 2.0 ** (scaled.SUM_EXPONENT - 1)).squeeze(1).tolist() == [False] * 2 + [True] * 4


def test_terms_of_sums_saturate():
    x, one = torch.full((1, 1, 1), 1e300, dtype=torch.float64), torch.ones(1, 1)
    _, sums = scaled.backward(torch.ones_like(x), x, [one] * 4, [one])
    assert sums.isfinite().all()
    assert sums[3].item() > 2.0 ** (scaled.SUM_EXPONENT - 8)


@pytest.mark.parametrize("value", [1.0, -3.5, 5e-324, 1.7e308, 2.0**-1030])
def test_numbers_are_put_together_again(value):
    mantissa, exponent = scaled._split(torch.tensor(value, dtype=torch.float64))
    assert 0.5 <= mantissa.abs() < 1
    assert scaled._scale(mantissa, exponent).item() == value


def test_what_is_no_number_becomes_nan():
    mantissa, _ = scaled._split(torch.tensor([math.inf, -math.inf, math.nan], dtype=torch.float64))
    assert mantissa.isnan().all()
