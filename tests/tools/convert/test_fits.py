import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flashkat.tools.convert.fits import Fits, UnfitError

NEAR = torch.linspace(-2, 2, 101, dtype=torch.float64)


def test_known_functions_have_their_named_start():
    fit = Fits(6, 4).choose(None, lambda x: x * torch.sigmoid(x), NEAR)
    assert (fit.name, fit.half) == ("swish", 3)
    made = fit.rational(16, 4, 1, torch.empty(0))
    assert (made.channels, made.groups, made.dim, made.start) == (16, 4, 1, "swish")
    x = NEAR.float()[:, None].expand(-1, 16)
    assert (made(x) - F.silu(x)).abs().max() <= fit.error + 1e-6


def test_other_functions_are_fitted():
    fit = Fits(6, 4).choose(None, F.hardsigmoid, NEAR)
    assert fit.name == "fit"
    x = NEAR.float()[:, None].expand(-1, 8)
    made = fit.rational(8, 8, -1, torch.empty(0))
    assert (made(x) - F.hardsigmoid(x)).abs().max() < 0.01
    nn.init.zeros_(made.numerator)
    made.reset_parameters()
    assert (made(x) - F.hardsigmoid(x)).abs().max() < 0.01


def test_a_start_may_be_another_function():
    fit = Fits(6, 4).choose("relu", F.gelu, NEAR)
    assert fit.name == "relu"
    assert fit.error < 0.04
    assert Fits(6, 4).choose(torch.sin, F.gelu, NEAR).error < 0.01


def test_wide_inputs_choose_a_wider_interval():
    fits = Fits(6, 4)
    far = fits.choose("gelu", F.gelu, torch.linspace(-20, 20, 101, dtype=torch.float64))
    assert far.half > 3
    made = far.rational(8, 8, -1, torch.empty(0))
    assert (far.name, made.start.name, made.start.interval[1]) == ("gelu", "gelu", far.half)
    assert fits.choose("gelu", F.gelu, NEAR).half == 3


def test_the_identity_is_exact_for_any_input():
    fit = Fits(6, 4).choose("identity", F.gelu, 1000 * NEAR)
    assert (fit.half, fit.error) == (3, 0)


def test_what_cannot_be_fitted():
    with pytest.raises(UnfitError, match="it cannot be fitted: log is not finite at x="):
        Fits(6, 4).choose(torch.log, F.gelu, NEAR)


def test_inputs_where_the_function_is_not_finite_do_not_count():
    sample = torch.cat([NEAR, torch.tensor([20.0], dtype=torch.float64)])
    fit = Fits(6, 4).choose(lambda x: torch.where(x > 10, float("nan"), x.sin()), F.gelu, sample)
    assert fit.half < 24
    assert fit.error < 0.1
    with pytest.raises(UnfitError, match="it is finite at no input"):
        Fits(6, 4).choose(lambda x: torch.where(x > 10, float("nan"), x.sin()), F.gelu, sample[-1:])


def test_small_inputs_choose_a_narrower_interval_if_the_error_is_large():
    fits = Fits(6, 4)
    relu = fits.choose("relu", F.relu, NEAR / 50)
    assert (relu.name, relu.half) == ("relu", 3 / 64)
    assert relu.error < 0.001
    assert fits.choose("gelu", F.gelu, NEAR / 4).half == 3
    assert fits.choose("relu", F.relu, 0 * NEAR).half == 3
