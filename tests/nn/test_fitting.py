"""Fits of functions and points: how well they follow, what they say of themselves, what they refuse."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from rational_oracle import evaluate, grid, largest_error

import flashkat
from flashkat import fit
from flashkat.defaults import FIT_METHODS
from flashkat.errors import InputError
from flashkat.nn.fitting import Fit
from flashkat.nn.functions import FUNCTIONS


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
    with pytest.raises(ValueError, match="not finite at x=-1: choose"):
        fit(torch.log, interval=(-1.0, 1.0))


@pytest.mark.parametrize(
    ("name", "m", "n", "best"), [("gelu", 6, 4, 1.2744e-3), ("relu", 6, 4, 1.2754e-2), ("tanh", 4, 2, 1.0017e-3)]
)
def test_minimax_has_a_smaller_largest_error_than_least_squares(name, m, n, best):
    squares, worst = (fit(name, m, n, method=method) for method in FIT_METHODS)
    assert worst.largest_error < 0.95 * squares.largest_error
    # A grid five times as fine shows no larger error. The bound was computed with one of 30,011 points.
    assert largest_error(worst, FUNCTIONS[name], grid(points=20011)) <= best


def test_minimax_errors_alternate_as_chebyshev_says():
    """The best polynomial with 4 coefficients touches its largest error 5 times, with alternating signs."""
    found = fit(torch.exp, 4, 0, (0.0, 1.0), method="minimax")
    x = grid(0, 1, 20001)
    error = evaluate(*found, x) - torch.exp(x)
    touching = error[error.abs() > 0.99 * error.abs().max()].sign()
    assert 1 + int((touching[1:] != touching[:-1]).sum()) == 5


def test_minimax_of_a_rational_function_is_exact():
    found = fit(lambda x: (1 + 2 * x) / (1 + x.abs() + 0.5 * x**2), m=2, n=2, method="minimax")
    assert found.largest_error < 1e-9


def test_a_fit_says_how_far_it_is_from_its_function():
    found = fit("gelu", interval=(-4, 2))
    x = grid(-4, 2)
    error = evaluate(*found, x) - FUNCTIONS["gelu"](x)
    assert found.name == "gelu"
    assert found.interval == (-4, 2)
    assert found.largest_error == pytest.approx(error.abs().max().item(), rel=1e-3)
    assert found.rms_error == pytest.approx(error.square().mean().sqrt().item(), rel=1e-2)
    at = torch.tensor(found.largest_error_at, dtype=torch.float64)
    assert abs(evaluate(*found, at) - FUNCTIONS["gelu"](at)).item() == pytest.approx(found.largest_error)
    for tail, (low, high) in zip(found.tails, [(-9, -4), (2, 7)], strict=True):
        x = grid(low, high)
        error = evaluate(*found, x) - FUNCTIONS["gelu"](x)
        assert low <= tail.x <= high
        assert abs(tail.error) == pytest.approx(error.abs().max().item(), rel=1e-3)
        assert tail.value == pytest.approx(evaluate(*found, torch.tensor(tail.x)).item())


def test_a_tail_where_the_function_is_unknown_has_no_error():
    left, right = fit(torch.log, interval=(0.001, 2.0)).tails
    assert left.error is None
    assert math.isfinite(left.value)
    assert right.error is not None


@pytest.mark.parametrize(
    ("numerator", "denominator", "slopes"),
    [
        ([0, 1], [], (1, 1)),
        ([5, 0, 0], [0, 0], (0, 0)),
        ([0, 0, 0], [1, 2], (0, 0)),
        ([0, 0, 0, 3], [1, 2], (1.5, 1.5)),
        ([0, 0, 3], [2], (-1.5, 1.5)),
        ([0, 0, -3], [0], (math.inf, -math.inf)),
        ([0, 0, 0, -3], [4], (-math.inf, -math.inf)),
        ([0, 0, 3, 0], [2, 0, 4], (0, 0)),
        ([0, 0, 3, 1e-12], [2, 1e-20], (-1.5, 1.5)),
    ],
)
def test_slopes_are_the_limits_of_the_ratio_to_x(numerator, denominator, slopes):
    tables = [torch.tensor(table, dtype=torch.float64) for table in (numerator, denominator)]
    found = Fit("f", *tables, (-1, 1), "least-squares", 0, 0, 0, ())
    assert found.slopes == slopes
    for x, slope in zip((-1e7, 1e7), slopes, strict=True):
        ratio = evaluate(*found, torch.tensor(x, dtype=torch.float64)).item() / x
        assert ratio == pytest.approx(slope, rel=1e-4, abs=1e-6) or (abs(ratio) > 1e6 and ratio * slope > 0)


def test_a_fit_is_a_function_and_unpacks():
    found = fit("swish")
    numerator, denominator = found
    assert torch.equal(numerator, found.numerator)
    x = grid(points=6000).reshape(3, 2, -1)
    torch.testing.assert_close(found(x), evaluate(numerator, denominator, x), rtol=1e-12, atol=1e-12)
    again = fit(found)
    assert again.largest_error < 1e-6
    assert again.name == "swish"


@pytest.mark.parametrize("method", FIT_METHODS)
def test_points_are_fitted_where_they_are(method):
    x = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 - 1
    found = fit((x, torch.sin(x)), 5, 2, method=method)
    assert found.interval == (x.min().item(), x.max().item())
    assert found.largest_error == pytest.approx(largest_error(found, torch.sin, x), rel=1e-9)
    assert found.largest_error < 0.03
    assert found.largest_error_at in x.tolist()
    assert [tail.error for tail in found.tails] == [None, None]


def test_minimax_looks_at_every_one_of_many_points():
    """The first linear program has 400 points. The outlier at 5,001 joins later."""
    x = np.linspace(-1, 1, 9001)
    y = x.copy()
    y[5001] += 1
    assert fit((x, y), 2, 0, method="minimax").largest_error == pytest.approx(0.5, rel=1e-3)


def test_points_beyond_the_interval_count_as_the_tail_weight_says():
    x = [-2, -1, 0, 1, 2, 3, 4]
    y = [-2, -1, 0, 1, 2, 7, 9]
    inside = fit((x, y), 2, 0, interval=(-2, 2))
    assert inside.numerator.tolist() == pytest.approx([0, 1], abs=1e-12)
    assert inside.tails[1].x == 4
    assert inside.tails[1].value == pytest.approx(4)
    assert inside.tails[1].error == pytest.approx(-5)
    everywhere = fit((x, y), 2, 0, interval=(-2, 2), tail_weight=1)
    assert everywhere.numerator.tolist() == pytest.approx(np.polyfit(x, y, 1)[::-1].tolist())


def test_weights_multiply_errors_as_those_of_polyfit():
    x, y, weight = [0.0, 1.0, 2.0, 3.0], [0.0, 3.0, 1.0, 5.0], [1.0, 2.0, 4.0, 3.0]
    expected = np.polyfit(x, y, 1, w=weight)[::-1].tolist()
    assert fit((x, y), 2, 0, weight=weight).numerator.tolist() == pytest.approx(expected)
    # The order of points means nothing.
    assert fit((x[::-1], y[::-1]), 2, 0, weight=weight[::-1]).numerator.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("method", FIT_METHODS)
def test_a_weight_makes_the_fit_better_where_it_is_large(method):
    plain = fit("relu", 4, 2, method=method)
    weighed = fit("relu", 4, 2, method=method, weight=lambda x: 1 + 20 * (x > 1))
    x = grid(1, 3)
    assert largest_error(weighed, torch.relu, x) < 0.3 * largest_error(plain, torch.relu, x)


def test_tail_weight_draws_the_fit_to_its_function():
    free, drawn = (fit("gelu", method="minimax", tail_weight=weight) for weight in (0, 0.1))
    assert abs(drawn.tails[0].error) < abs(free.tails[0].error)
    assert drawn.largest_error > free.largest_error


@pytest.mark.filterwarnings("error")
def test_huge_values_in_the_tails_do_not_count():
    found = fit(lambda x: torch.exp(3 * x * x), tail_weight=1)
    assert found.largest_error < 1e30
    bounded = fit(lambda x: torch.where(x.abs() > 4, math.inf, torch.exp(x)), tail_weight=1)
    huge = fit(lambda x: torch.where(x.abs() > 4, 1e31, torch.exp(x)), tail_weight=1)
    assert huge.largest_error == bounded.largest_error


def test_a_fit_survives_copies_files_and_pickling(tmp_path):
    found = fit(lambda x: x * torch.sin(x), 5, 2)
    (tmp_path / "f.json").write_text(found.to_json())
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found)), Fit.read(tmp_path / "f.json")):
        for own, its in zip(found, other, strict=True):
            assert torch.equal(own, its)
        assert {**vars(other), "numerator": 0, "denominator": 0} == {**vars(found), "numerator": 0, "denominator": 0}


def test_json_has_no_numbers_that_json_lacks(tmp_path):
    text = fit(torch.exp, 3, 0).to_json()
    assert json.loads(text, parse_constant=pytest.fail)["slopes"] == ["-inf", "inf"]
    text = fit(torch.log, interval=(0.001, 2.0)).to_json()
    (tmp_path / "f.json").write_text(text)
    assert Fit.read(tmp_path / "f.json").tails[0].error is None


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.pop("numerator"),
        lambda fields: fields.update(numerator=[]),
        lambda fields: fields.update(numerator=["1"]),
        lambda fields: fields.update(denominator=[float("nan")]),
        lambda fields: fields.update(denominator=[0.0] * 1001),
        lambda fields: fields.update(interval=[1]),
        lambda fields: fields.update(tails=3),
        lambda fields: fields.update(rms_error=True),
    ],
)
def test_a_file_of_something_else_is_refused(change, tmp_path):
    fields = json.loads(fit("relu", 2, 0).to_json())
    change(fields)
    (tmp_path / "f.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"f\.json is no fit: give a file that"):
        Fit.read(tmp_path / "f.json")


@pytest.mark.parametrize("text", ["", "[]", "1", "[" * 100_000, " " * 200_000, '{"tails": [[], []]}'])
def test_no_file_of_a_fit(text, tmp_path):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(InputError, match="is no fit"):
        Fit.read(tmp_path / "f.json")
    with pytest.raises(InputError, match="cannot read"):
        Fit.read(tmp_path / "nowhere.json")


def test_a_fit_is_shown_in_one_line():
    assert repr(fit(torch.sin, 5, 3)) == "<fit of sin on [-3, 3], m=5, n=3, largest error 0.00096>"
    assert repr(fit(torch.nn.Softsign(), 3, 1, (-1, 2))).startswith("<fit of Softsign on [-1, 2], m=3, n=1, ")


def test_a_default_device_changes_nothing():
    with torch.device("meta"):
        found = fit(lambda x: x * torch.ones(()), 3, 2)
    assert found.numerator.device.type == "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "lawson"}, "'lawson': choose least-squares or minimax"),
        ({"tail_weight": -1}, "tail_weight must be finite and at least 0, not -1"),
        ({"function": "swoosh"}, "'swoosh': choose one of identity"),
        ({"interval": (0, math.inf)}, "low < high"),
        ({"function": ([1, 1], [2, 3])}, "all points have x=1: give points at different x"),
        ({"weight": lambda x: x}, "weights must be finite and at least 0"),
        ({"weight": lambda x: 0 * x}, "one in the interval must be above 0"),
        ({"weight": [1.0, 2.0]}, "not of shape"),
        ({"function": torch.log}, "log is not finite at x=-3: choose an interval"),
        ({"function": lambda x: 1 / x}, "<lambda> is not finite at x=0"),
        ({"function": lambda x: torch.exp(x * x * 40)}, "is too large at x=-3"),
        ({"function": math.sin}, "cannot evaluate sin on a float64 tensor"),
        ({"function": torch.sum}, r"sum must map a tensor of shape \(\d+,\) .* not a tensor of shape \(\)"),
        ({"function": lambda x: None}, "not NoneType"),
        ({"function": lambda x: torch.complex(x, x)}, "complex128"),
        ({"function": ([1, 2], [3])}, "two series of the same length"),
        ({"function": ([[1, 2]], [[3, 4]])}, "two series"),
        ({"function": ([], [])}, "two series"),
        ({"function": (range(10_001), range(10_001))}, "from 1 to 10,000"),
        ({"function": 3}, "cannot read the points"),
        ({"function": (range(10), [*range(9), math.nan])}, r"the point \(9, nan\)"),
        ({"function": ([*range(9), 1e7], range(10))}, r"the point \(1e\+07, 9\) .* too large: leave it out"),
        ({"interval": (0, 1e7)}, r"within 1e\+06 of 0"),
        ({"function": (range(9), range(9))}, r"6 \+ 4 coefficients need at least 10 points"),
        ({"function": ([1] * 20, range(20))}, "all points have x=1"),
        ({"function": ([*range(9)] * 2, range(18))}, "need at least 10 points at different x with a weight"),
        ({"function": (range(20), range(20)), "weight": [1.0] * 9 + [0.0] * 11}, "at different x with a weight: give"),
        ({"function": (range(20), range(20)), "interval": (30, 40)}, "no point has its x in"),
        ({"function": (range(20), range(20)), "weight": ["a"] * 20}, "cannot read the weights"),
    ],
)
def test_what_cannot_be_fitted_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        fit(**{"function": torch.sin, **arguments})


def test_fit_is_public():
    assert flashkat.fit is fit


def test_a_fit_takes_integers_and_other_devices():
    found = fit("gelu")
    assert torch.equal(found(torch.tensor([1, 2, -1])), found(torch.tensor([1.0, 2.0, -1.0])))
    assert found(torch.zeros(3, device="meta")).is_meta
