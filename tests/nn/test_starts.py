"""Starting functions: how well the stored and fresh fits follow torch's own activations."""

import json
import math
import runpy
import sys
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from rational_oracle import evaluate, grid, largest_error

from flashkat.nn import fitting, starts
from flashkat.nn.fitting import fit
from flashkat.nn.functions import FUNCTIONS
from flashkat.nn.starts import kept_start, starting_coefficients, variance_gain

# By name, the largest error allowed on [-3, 3] and, as a multiple of |x|, at |x| = 10.
EXPECTED = {
    "identity": (0.0, 0.0),
    "relu": (0.04, 0.3),
    "leaky_relu": (0.04, 0.3),
    "elu": (1e-3, 0.1),
    "gelu": (3e-3, 0.15),
    "gelu_old": (3e-3, 0.15),
    "leaky_relu_0.1": (0.05, 0.3),
    "erfc_Softplus_2": (1e-3, 0.1),
    "swish": (1e-4, 0.01),
    "silu": (1e-4, 0.01),
    "mish": (1e-3, 0.15),
    "softplus": (1e-4, 0.02),
    "tanh": (1e-4, 0.005),
    "sigmoid": (1e-4, 0.001),
    "geglu": (5e-3, 1.0),
    "swishglu": (2e-3, 0.5),
}
NAMES = list(EXPECTED)


def test_every_named_function_has_an_expectation_here():
    assert set(FUNCTIONS) == set(EXPECTED)


@pytest.mark.parametrize("name", NAMES)
def test_named_start_follows_its_function_on_the_interval(name):
    allowed, _ = EXPECTED[name]
    assert largest_error(starting_coefficients(name), FUNCTIONS[name], grid()) <= allowed


@pytest.mark.parametrize("name", NAMES)
def test_named_start_stays_sane_on_outliers(name):
    _, allowed = EXPECTED[name]
    assert (
        largest_error(starting_coefficients(name), FUNCTIONS[name], torch.tensor([-10.0, 10.0]).double())
        <= 10 * allowed
    )


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
    fresh = evaluate(*fit(FUNCTIONS[name], tail_weight=1 / 256), x)
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

    fitting._solved.cache_clear()
    yield run
    fitting._solved.cache_clear()  # it may hold the stand-in's answers
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
    assert largest_error((numerator, denominator), FUNCTIONS[name], grid()) <= allowed


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


# Table 1 of Yang & Wang, ICLR 2025; for ReLU the exact value (He et al., ICCV 2015).
@pytest.mark.parametrize(
    ("name", "published", "tolerance"),
    [("identity", 1.0, 1e-12), ("gelu", 2.3568, 0.01), ("swish", 2.8178, 0.01), ("relu", 2.0, 0.02)],
)
def test_variance_gain_is_the_published_one(name, published, tolerance):
    assert variance_gain(name) == pytest.approx(published, rel=tolerance)


def test_variance_gain_on_another_default_device():
    with torch.device("meta"):
        assert variance_gain("swish") == pytest.approx(2.8178, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_variance_gain_is_that_of_the_function_under_a_normal_input(name):
    x = grid(-8, 8, 160001)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    second_moment = torch.trapezoid(density * FUNCTIONS[name](x).square(), x).item()
    assert variance_gain(name) == pytest.approx(1 / second_moment, rel=0.01)


def test_variance_gain_follows_the_degrees():
    numerator, denominator = starting_coefficients("relu", 4, 2)
    x = grid(-8, 8, 160001)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    second_moment = torch.trapezoid(density * evaluate(numerator, denominator, x).square(), x).item()
    assert variance_gain("relu", 4, 2) == pytest.approx(1 / second_moment, rel=1e-3)
    assert variance_gain("relu", 4, 2) != pytest.approx(variance_gain("relu"), rel=1e-3)


# --- functions and fits as starts -------------------------------------------------------------------------------------


def test_a_function_without_a_name_is_fitted_as_a_named_one():
    for own, named in zip(starting_coefficients(F.gelu, 4, 2), starting_coefficients("gelu", 4, 2), strict=True):
        assert torch.equal(own, named)


@pytest.mark.parametrize("function", [torch.sin, lambda x: x * torch.sin(x), torch.nn.Softsign()])
@pytest.mark.parametrize(("m", "n"), [(6, 4), (8, 3)])
def test_any_function_is_a_start(function, m, n):
    numerator, denominator = starting_coefficients(function, m, n)
    assert (numerator.shape, denominator.shape) == ((m,), (n,))
    assert largest_error((numerator, denominator), function, grid()) <= 0.05


def test_a_fit_is_a_start_as_it_is():
    found = fit("gelu", 5, 2, (-6, 6), method="minimax")
    for _ in range(2):
        numerator, denominator = starting_coefficients(found, 5, 2)
        assert torch.equal(numerator, found.numerator)
        assert torch.equal(denominator, found.denominator)
        numerator.zero_()
        denominator.zero_()
    with pytest.raises(ValueError, match=r"fitted with m=5 and n=2, not m=6 and n=4"):
        starting_coefficients(found)


def test_a_start_that_is_kept_is_a_name_or_a_fit():
    assert kept_start("gelu", 6, 4) == "gelu"
    found = kept_start(torch.sin, 5, 2)
    assert found.name == "sin"
    assert kept_start(found, 5, 2) is found
    with pytest.raises(ValueError, match="not finite"):
        kept_start(torch.log, 6, 4)
    with pytest.raises(ValueError, match="swoosh"):
        kept_start("swoosh", 6, 4)


def test_a_function_whose_values_have_changed_is_fitted_anew():
    slope = torch.nn.PReLU(dtype=torch.float64)
    before = starting_coefficients(slope, 4, 2)
    slope.weight.data.fill_(-1)
    assert not torch.equal(starting_coefficients(slope, 4, 2)[0], before[0])


@pytest.mark.parametrize("function", [torch.sin, torch.abs, lambda x: x * torch.sigmoid(2 * x)])
def test_variance_gain_of_any_function(function):
    x = grid(-8, 8, 160001)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    second_moment = torch.trapezoid(density * function(x).square(), x).item()
    assert variance_gain(function) == pytest.approx(1 / second_moment, rel=0.02)
    assert variance_gain(fit(function, 8, 4), 8, 4) == pytest.approx(1 / second_moment, rel=0.02)
