"""What is measured of a learned function."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flashkat import GroupRational
from flashkat.nn.learned.rationals import Learned, learned
from flashkat.nn.starts import FUNCTIONS, starting_coefficients
from flashkat.tools.inspect.measures import FITTED, KNOWN, interval, measure, table


def one(a, b=(0.0,), start="identity"):
    """The functions of a rational with one group."""
    return {"act": Learned(start, torch.tensor([a]).double(), torch.tensor([b]).double())}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_start_is_nearest_to_its_own_function(name):
    (found,) = measure({"act": learned(nn.Sequential(GroupRational(8, 1, start=name)))["0"]}, {})
    same = {"gelu_old": "gelu", "silu": "swish"}
    assert found.nearest == same.get(name, name)
    assert found.factor == pytest.approx(1, abs=0.02)
    assert found.distance < 0.03
    assert found.moved == pytest.approx(0, abs=1e-6)
    assert found.flags == ()


def test_every_known_function_is_told_from_the_others():
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)
    curves = torch.stack([F.normalize(function(x), dim=0) for function in KNOWN.values()])
    likeness = (curves @ curves.T).fill_diagonal_(0)
    assert likeness.abs().max() < 0.99999


def test_a_factor_does_not_count_as_distance():
    numerator, denominator = starting_coefficients("gelu")
    (found,) = measure({"act": Learned("gelu", -2.5 * numerator[None], denominator[None])}, {})
    assert (found.nearest, found.factor) == ("gelu", pytest.approx(-2.5, rel=0.01))
    assert found.distance < 0.01
    x = torch.linspace(*FITTED, 301, dtype=torch.float64)
    assert found.moved == pytest.approx(float((3.5 * F.gelu(x)).square().mean().sqrt()), rel=0.01)


def test_numbers_of_a_function():
    (found,) = measure(one([0.5, -2.0], [-1.0]), {})
    assert found.slope_at_0 == -2
    assert (found.smallest_q, found.largest_q) == (1, 4)
    # (0.5 - 2x) / (1 + |x|) falls everywhere.
    assert (found.highest, found.lowest) == (pytest.approx(6.5 / 4), pytest.approx(-5.5 / 4))
    assert (found.interval, found.inside) == (FITTED, None)


def test_a_constant_has_no_slope():
    (found,) = measure(one([2.0], (), "sigmoid"), {})
    assert (found.slope_at_0, found.nearest, found.factor) == (0, "constant", pytest.approx(2))
    assert (found.smallest_q, found.largest_q) == (1, 1)


def test_inputs_set_the_interval_and_the_share_inside():
    samples = torch.cat([torch.linspace(-1, 1, 750), torch.linspace(4, 5, 250)])
    (found,) = measure(one([0.0, 1.0]), {"act": samples[None]})
    assert found.interval == (pytest.approx(-1, abs=0.01), pytest.approx(5, abs=0.01))
    assert found.inside == 0.75
    assert (found.lowest, found.highest) == (pytest.approx(-1, abs=0.01), pytest.approx(5, abs=0.01))


def test_each_group_has_its_own_inputs():
    functions = learned(nn.Sequential(GroupRational(8, 2)))
    first, second = measure(functions, {"0": torch.stack([torch.linspace(-1, 1, 100), torch.linspace(4, 5, 100)])})
    assert (first.inside, second.inside) == (1, 0)


@pytest.mark.parametrize(
    ("a", "samples", "flags"),
    [
        ([0.0, 1.0], None, ()),
        ([3.0, 1e-4], None, ("dead",)),
        ([0.0, 0.0], None, ("dead",)),
        # It is constant where its inputs are, or of a single value, which says nothing.
        ([0.0, 1e-3, 0.0, 1.0], torch.linspace(-0.01, 0.01, 100), ()),
        ([0.0, 0.0, 0.0, 1.0], torch.linspace(-0.01, 0.01, 100), ("dead",)),
        ([0.0, 0.0, 0.0, 1.0], torch.zeros(100), ()),
        ([0.0, 150.0], None, ("exploding",)),
        ([0.0, 1.0, 0.0, 1.0], None, ()),
        # One outlier of many inputs is enough.
        ([0.0, 1.0, 0.0, 1.0], torch.cat([torch.linspace(-1, 1, 5000), torch.tensor([50.0])]), ("exploding",)),
        ([0.0, math.nan], None, ("not finite",)),
        ([0.0, math.inf], None, ("not finite",)),
        ([0.0, 1.0], torch.full((10,), math.nan), ()),
    ],
)
def test_flags(a, samples, flags):
    (found,) = measure(one(a), {} if samples is None else {"act": samples[None]})
    assert found.flags == flags


def test_inputs_that_are_not_finite_are_left_out():
    low, high = interval(torch.tensor([math.nan, -1.0, 2.0, math.inf]))
    assert (low, high) == (pytest.approx(-1, abs=0.01), pytest.approx(2, abs=0.01))
    assert interval(torch.tensor([math.nan])) == FITTED
    assert interval(None) == FITTED


def test_the_table_has_a_line_for_each_group():
    functions = {**learned(nn.Sequential(GroupRational(8, 4, start="gelu"))), **one([0.0, 0.0])}
    head, *lines = table(measure(functions, {"act": torch.linspace(-6, 6, 1001)[None]})).splitlines()
    assert head.split("  ")[0] == "layer"
    assert head.index("inside") == lines[4].index("50.0%")
    assert [line.split()[:2] for line in lines] == [["0", "0"], ["0", "1"], ["0", "2"], ["0", "3"], ["act", "0"]]
    assert lines[0].split()[2:4] == ["1", "gelu"]
    (line,) = table(measure(one([0.0, math.nan]), {})).splitlines()[1:]
    assert line.split()[2] == "-"
    assert line.endswith("not finite")
    assert lines[0].split()[-2:] == ["-", "-"]
    assert lines[4].endswith("-5.99 to 5.99  50.0%   dead")
