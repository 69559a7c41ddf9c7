"""The functions of a model's rationals as plain numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import sympy
import torch
from torch import nn

from flashkat import GRKAN, GroupRational, LazyGroupRational
from flashkat.compat import FlashKAT_Group, KAT_Group, KAT_Group2D
from flashkat.nn.learned.rationals import Rational, learned, rationals, start_name


def stirred(module):
    generator = torch.Generator().manual_seed(0)
    for table in module.tables:
        table.data += 0.3 * torch.randn(table.shape, generator=generator)
    return module


def each_kind():
    return [
        GroupRational(8, 4, start="gelu"),
        GroupRational(8, 4, share_numerator=False, share_denominator=True, m=4, n=3),
        GroupRational(8, 1, n=0),
        LazyGroupRational(4),
        KAT_Group(4, "gelu", "cpu"),
        KAT_Group2D(2, "swish", "cpu"),
        FlashKAT_Group(16, 1, 4, device="cpu"),
    ]


@pytest.mark.parametrize("module", each_kind(), ids=lambda module: type(module).__name__)
def test_formulas_of_a_module_are_its_functions(module):
    stirred(module)
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)
    expected = learned(nn.Sequential(module))["0"](x)
    functions, expressions = module.to_numpy(), module.to_sympy()
    assert len(functions) == len(expressions) == len(expected) == max(map(len, module.tables))
    for y, function, expression in zip(expected, functions, expressions, strict=True):
        np.testing.assert_allclose(function(x.numpy()), y.detach(), rtol=1e-9, atol=1e-12)
        assert expression.free_symbols <= {sympy.Symbol("x", real=True)}
        values = [float(expression.subs({sympy.Symbol("x", real=True): float(each)})) for each in x]
        np.testing.assert_allclose(values, y.detach(), rtol=1e-9, atol=1e-12)


def test_a_group_is_what_the_module_applies_to_its_channels():
    module = stirred(GroupRational(8, 4, start="gelu"))
    x = torch.linspace(-3, 3, 31)
    with torch.no_grad():
        applied = module(x[:, None].expand(-1, 8))
    for group, function in enumerate(module.to_numpy()):
        np.testing.assert_allclose(function(x.numpy()), applied[:, 2 * group + 1], rtol=1e-4, atol=1e-5)


def test_later_training_does_not_change_a_function():
    module = GroupRational(8, 2, start="gelu")
    function = module.to_numpy()[0]
    before = function([1.0, 2.0])
    module.numerator.data.zero_()
    assert np.array_equal(function([1.0, 2.0]), before)


def test_rationals_are_found_by_name():
    model = nn.Sequential(nn.Linear(8, 8), GRKAN(8, 16), KAT_Group(4, "gelu", "cpu"))
    assert list(rationals(model)) == ["1.act1", "1.act2", "2"]
    assert all(isinstance(module, Rational) for module in rationals(model).values())
    assert rationals(nn.Sequential(nn.GELU())) == {}


def test_functions_of_a_state_in_any_format():
    model = nn.Sequential(GroupRational(8, 4), GroupRational(8, 2))
    other = nn.Sequential(stirred(GroupRational(8, 4)), stirred(GroupRational(8, 2)))
    state = other.state_dict()
    renamed = {
        name.replace("numerator", "weight_numerator").replace("denominator", "weight_denominator"): value
        for name, value in state.items()
    }
    for given in (state, renamed):
        found = learned(model, given)
        for name, function in found.items():
            assert torch.equal(function.numerator, state[f"{name}.numerator"].double())
            assert torch.equal(function.denominator, state[f"{name}.denominator"].double())
    assert learned(model)["0"].groups == 4
    assert learned(model)["0"].rows[3] == (model[0].numerator[0].tolist(), model[0].denominator[3].tolist())


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_a_state_of_another_model_is_refused(fault):
    model = nn.Sequential(GroupRational(8, 4))
    state = {} if fault == "missing" else nn.Sequential(GroupRational(8, 2)).state_dict()
    with pytest.raises(ValueError, match="coefficients of 0 are missing or have another shape"):
        learned(model, state)


def test_names_of_starts():
    assert start_name("gelu") == "gelu"
    assert start_name(torch.sin) == "sin"
    assert start_name(SimpleNamespace(name="wave")) == "wave"
    assert start_name(nn.GELU()) == "GELU"
