"""Starting functions: how well the stored and fresh fits follow torch's own activations."""

import json
import math
import runpy
import sys
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flashkat.nn import starts
from flashkat.nn.starts import FUNCTIONS, fit, starting_coefficients, variance_gain

# What each name must mean, with the largest error allowed on [-3, 3] and, as a multiple of |x|, at |x| = 10.
EXPECTED = {
    "identity": (lambda x: x, 0.0, 0.0),
    "relu": (torch.relu, 0.04, 0.3),
    "leaky_relu": (lambda x: torch.where(x > 0, x, 0.01 * x), 0.04, 0.3),
    "elu": (lambda x: torch.where(x > 0, x, torch.expm1(x)), 1e-3, 0.1),
    "gelu": (lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2, 3e-3, 0.15),
    "gelu_old": (F.gelu, 3e-3, 0.15),
    "leaky_relu_0.1": (lambda x: torch.where(x < 0, 0.1 * x, x), 0.05, 0.3),
    "erfc_Softplus_2": (lambda x: torch.erfc(torch.log1p(torch.exp(x))) ** 2, 1e-3, 0.1),
    "swish": (lambda x: x / (1 + torch.exp(-x)), 1e-4, 0.01),
    "silu": (F.silu, 1e-4, 0.01),
    "mish": (lambda x: x * torch.tanh(torch.log1p(torch.exp(x))), 1e-3, 0.15),
    "softplus": (lambda x: torch.log1p(torch.exp(x)), 1e-4, 0.02),
    "tanh": (torch.tanh, 1e-4, 0.005),
    "sigmoid": (torch.sigmoid, 1e-4, 0.001),
    "geglu": (lambda x: x * F.gelu(x), 5e-3, 1.0),
    "swishglu": (lambda x: x * F.silu(x), 2e-3, 0.5),
}
NAMES = list(EXPECTED)


def evaluate(numerator, denominator, x):
    """P(x) / Q(x) by its formula, power by power, in float64."""
    top = sum(a * x**power for power, a in enumerate(numerator.tolist()))
    bottom = 1 + sum(abs(b) * x.abs() ** power for power, b in enumerate(denominator.tolist(), start=1))
    return top / bottom


def grid(low=-3.0, high=3.0, points=6001):
    return torch.linspace(low, high, points, dtype=torch.float64)


def largest_error(coefficients, function, x):
    return float((evaluate(*coefficients, x) - function(x)).abs().max())


def test_every_named_function_has_an_expectation_here():
    assert set(FUNCTIONS) == set(EXPECTED)


@pytest.mark.parametrize("name", NAMES)
def test_name_means_the_function_it_says(name):
    torch.testing.assert_close(FUNCTIONS[name](grid()), EXPECTED[name][0](grid()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_named_start_follows_its_function_on_the_interval(name):
    function, allowed, _ = EXPECTED[name]
    assert largest_error(starting_coefficients(name), function, grid()) <= allowed


@pytest.mark.parametrize("name", NAMES)
def test_named_start_stays_sane_on_outliers(name):
    function, _, allowed = EXPECTED[name]
    assert largest_error(starting_coefficients(name), function, torch.tensor([-10.0, 10.0]).double()) <= 10 * allowed


@pytest.mark.parametrize("name", NAMES)
def test_named_start_has_float64_vectors_of_the_default_degrees_and_a_non_negative_denominator(name):
    numerator, denominator = starting_coefficients(name)
    assert (numerator.dtype, denominator.dtype) == (torch.float64, torch.float64)
    assert (numerator.shape, denominator.shape) == ((6,), (4,))
    assert (denominator >= 0).all()
    assert numerator.isfinite().all()
    assert denominator.isfinite().all()


def test_identity_is_exact():
    numerator, denominator = starting_coefficients("identity")
    assert numerator.tolist() == [0, 1, 0, 0, 0, 0]
    assert denominator.tolist() == [0, 0, 0, 0]


def test_silu_is_swish():
    for silu, swish in zip(starting_coefficients("silu"), starting_coefficients("swish"), strict=True):
        assert torch.equal(silu, swish)


def test_stored_table_holds_every_name_but_the_identity():
    table = json.loads(resources.files("flashkat.nn").joinpath("starts.json").read_text())
    assert set(table) == set(EXPECTED) - {"identity"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "identity"])
def test_stored_start_is_what_a_fresh_fit_gives(name):
    x = grid()
    fresh = evaluate(*fit(EXPECTED[name][0], tail_weight=1 / 256), x)
    torch.testing.assert_close(evaluate(*starting_coefficients(name), x), fresh, rtol=0, atol=1e-6)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the module as a command, and returns what it printed. The installed table must stay as it is."""
    stored = Path(starts.__file__).with_name("starts.json")
    before = stored.stat().st_mtime_ns, stored.read_text()

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["starts.py", *arguments])
        monkeypatch.delitem(sys.modules, "flashkat.nn.starts", raising=False)
        runpy.run_module("flashkat.nn.starts", run_name="__main__")
        return capsys.readouterr().out

    yield run
    assert (stored.stat().st_mtime_ns, stored.read_text()) == before


def test_the_command_prints_the_table(command, monkeypatch):
    monkeypatch.setattr("scipy.optimize.least_squares", lambda residual, start, **_: SimpleNamespace(x=start))
    table = json.loads(command())
    assert set(table) == set(EXPECTED) - {"identity"}
    assert {len(row["numerator"]) for row in table.values()} == {6}


@pytest.mark.parametrize(("flag", "status"), [("--help", 0), ("--write", 2)])
def test_the_command_fits_nothing_when_it_is_asked_for_help(command, flag, status):
    with pytest.raises(SystemExit) as caught:
        command(flag)
    assert caught.value.code == status


@pytest.mark.parametrize(("name", "m", "n"), [("swish", 6, 4), ("swish", 4, 2), ("identity", 6, 4)])
def test_returned_coefficients_are_the_callers_own(name, m, n):
    before = [tensor.clone() for tensor in starting_coefficients(name, m, n)]
    for tensor in starting_coefficients(name, m, n):
        tensor.fill_(math.nan)
    for tensor, expected in zip(starting_coefficients(name, m, n), before, strict=True):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize(
    ("name", "allowed"), [("gelu", 0.015), ("swish", 0.005), ("tanh", 0.003), ("sigmoid", 1e-3), ("relu", 0.15)]
)
def test_named_start_with_lower_degrees_is_fitted_on_demand(name, allowed):
    numerator, denominator = starting_coefficients(name, 4, 2)
    assert (numerator.shape, denominator.shape) == ((4,), (2,))
    assert (denominator >= 0).all()
    assert largest_error((numerator, denominator), EXPECTED[name][0], grid()) <= allowed


def test_identity_with_the_fewest_coefficients_is_exact():
    numerator, denominator = starting_coefficients("identity", 2, 0)
    assert numerator.tolist() == [0, 1]
    assert denominator.shape == (0,)


def test_identity_without_a_linear_term_is_refused():
    with pytest.raises(ValueError, match=r"identity needs m >= 2.* not 1"):
        starting_coefficients("identity", 1, 4)


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match="'swoosh'") as caught:
        starting_coefficients("swoosh")
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize(
    ("name", "m", "n", "message"),
    [
        ("gelu", 0, 4, "m=0"),
        ("gelu", 6, -1, "n=-1"),
        ("identity", 6, -1, "n=-1"),
    ],
)
def test_impossible_degrees_are_refused(name, m, n, message):
    with pytest.raises(ValueError, match=message):
        starting_coefficients(name, m, n)


@pytest.mark.parametrize(
    ("function", "m", "n", "interval", "allowed"),
    [
        (torch.sin, 6, 4, (-math.pi, math.pi), 1e-3),
        (torch.sin, 8, 2, (-3.0, 3.0), 1e-3),
        (torch.exp, 6, 4, (-1.0, 2.0), 1e-2),
        (torch.exp, 3, 3, (-9.0, -2.0), 3e-3),
        # Beyond the interval these are not finite everywhere, which must not matter.
        (torch.log, 6, 4, (0.5, 2.0), 1e-6),
        (torch.sqrt, 6, 4, (0.5, 3.0), 1e-6),
    ],
)
def test_fit_follows_any_function_on_any_interval(function, m, n, interval, allowed):
    numerator, denominator = fit(function, m, n, interval)
    assert (numerator.shape, denominator.shape) == ((m,), (n,))
    assert (numerator.dtype, denominator.dtype) == (torch.float64, torch.float64)
    assert (denominator >= 0).all()
    assert largest_error((numerator, denominator), function, grid(*interval)) <= allowed


def test_fit_recovers_a_polynomial():
    numerator, denominator = fit(lambda x: 1 - 2 * x + x**3, m=4, n=0)
    torch.testing.assert_close(numerator, torch.tensor([1.0, -2.0, 0.0, 1.0]).double(), rtol=0, atol=1e-10)
    assert denominator.shape == (0,)


def test_fit_recovers_a_rational_function():
    numerator, denominator = fit(lambda x: (1 + 2 * x + x**2) / (1 + x.abs() + 0.5 * x**2), m=3, n=2)
    torch.testing.assert_close(numerator, torch.tensor([1.0, 2.0, 1.0]).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(denominator, torch.tensor([1.0, 0.5]).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "m"),
    [
        (torch.exp, 5),
        (torch.relu, 6),
        (torch.tanh, 6),
    ],
)
def test_fit_without_denominator_is_about_as_good_as_the_least_squares_polynomial(function, m):
    numerator, denominator = fit(function, m, 0, (-1.0, 1.0))
    assert denominator.shape == (0,)
    x = grid(-1, 1)
    best = np.polynomial.Polynomial.fit(x.numpy(), function(x).numpy(), m - 1)
    best_error = np.sqrt(np.mean((best(x.numpy()) - function(x).numpy()) ** 2))
    error = float((evaluate(numerator, denominator, x) - function(x)).square().mean().sqrt())
    # The fit's points are denser towards the ends of the interval than the grid, so they need not be equal.
    assert error <= 1.5 * best_error


def test_a_denominator_makes_the_fit_better():
    errors = [largest_error(fit(torch.tanh, 6, n), torch.tanh, grid()) for n in (0, 2, 4)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_fit_gives_the_same_bits_every_time_whatever_the_global_seeds():
    first = fit(torch.sin, 5, 3)
    torch.manual_seed(1)
    np.random.seed(1)
    for once, again in zip(first, fit(torch.sin, 5, 3), strict=True):
        assert torch.equal(once, again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"m": 0}, "m=0"),
        ({"n": -1}, "n=-1"),
        ({"interval": (3.0, -3.0)}, "3.0, -3.0"),
        ({"interval": (1.0, 1.0)}, "low < high"),
        ({"interval": (math.nan, 1.0)}, "low < high"),
    ],
)
def test_fit_refuses_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(torch.sin, **arguments)


def test_fit_refuses_a_function_that_is_not_finite_on_the_interval():
    with pytest.raises(ValueError, match="not finite"):
        fit(torch.log, interval=(-1.0, 1.0))


# Table 1 of Yang & Wang, ICLR 2025; for ReLU the exact value (He et al., ICCV 2015).
@pytest.mark.parametrize(
    ("name", "published", "tolerance"),
    [("identity", 1.0, 1e-12), ("gelu", 2.3568, 0.01), ("swish", 2.8178, 0.01), ("relu", 2.0, 0.02)],
)
def test_variance_gain_is_the_published_one(name, published, tolerance):
    assert variance_gain(name) == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_variance_gain_is_that_of_the_function_under_a_normal_input(name):
    x = grid(-8, 8, 160001)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    second_moment = torch.trapezoid(density * EXPECTED[name][0](x).square(), x).item()
    assert variance_gain(name) == pytest.approx(1 / second_moment, rel=0.01)


def test_variance_gain_follows_the_degrees():
    numerator, denominator = starting_coefficients("relu", 4, 2)
    x = grid(-8, 8, 160001)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    second_moment = torch.trapezoid(density * evaluate(numerator, denominator, x).square(), x).item()
    assert variance_gain("relu", 4, 2) == pytest.approx(1 / second_moment, rel=1e-3)
    assert variance_gain("relu", 4, 2) != pytest.approx(variance_gain("relu"), rel=1e-3)
