"""What a GroupRational computes, holds, refuses and survives."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from rational_oracle import by_formula, noise, perturb

from flashkat import GroupRational, fit, rational
from flashkat.nn.formats import FORMATS
from flashkat.nn.starts import starting_coefficients


@pytest.mark.parametrize(("share_numerator", "rows"), [(True, 1), (False, 4)])
@pytest.mark.parametrize(("share_denominator", "lower_rows"), [(True, 1), (False, 4)])
def test_rational_has_a_row_of_coefficients_per_group_or_one(share_numerator, rows, share_denominator, lower_rows):
    layer = GroupRational(
        16, 4, share_numerator=share_numerator, share_denominator=share_denominator, m=5, n=3, start="gelu"
    )
    assert layer.numerator.shape == (rows, 5)
    assert layer.denominator.shape == (lower_rows, 3)


def test_rational_has_the_published_shape_by_default():
    layer = GroupRational(16)
    assert layer.groups == 8
    assert layer.numerator.shape == (1, 6)
    assert layer.denominator.shape == (8, 4)
    assert layer.numerator.dtype == torch.float32


def test_rational_starts_as_the_identity_exactly_by_default():
    x = noise(3, 5, 16, seed=2) * 10
    assert torch.equal(GroupRational(16)(x), x)


@pytest.mark.parametrize(("start", "m", "n"), [("swish", 6, 4), ("gelu", 6, 4), ("gelu", 3, 2), ("tanh", 4, 0)])
def test_rational_starts_with_the_named_coefficients_in_every_row(start, m, n):
    layer = GroupRational(16, 4, share_numerator=False, m=m, n=n, start=start, dtype=torch.float64)
    numerator, denominator = starting_coefficients(start, m, n)
    for row in range(4):
        assert torch.equal(layer.numerator[row], numerator)
        assert torch.equal(layer.denominator[row], denominator)


def test_rational_starts_as_the_named_function_of_its_input():
    x = torch.linspace(-3, 3, 32 * 16).reshape(32, 16)
    torch.testing.assert_close(GroupRational(16, start="swish")(x), F.silu(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("share_numerator", [True, False])
@pytest.mark.parametrize("share_denominator", [True, False])
def test_rational_is_its_formula_group_by_group(groups, share_numerator, share_denominator):
    layer = perturb(
        GroupRational(
            16,
            groups,
            share_numerator=share_numerator,
            share_denominator=share_denominator,
            m=4,
            n=3,
            start="swish",
            dtype=torch.float64,
        )
    )
    x = noise(3, 5, 16, dtype=torch.float64)
    expected = by_formula(x, layer.numerator, layer.denominator, groups)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_rational_groups_are_contiguous_channels():
    layer = GroupRational(6, 3, share_numerator=False, m=2, n=0)
    with torch.no_grad():
        layer.numerator[:, 1] = torch.tensor([1.0, 10.0, 100.0])
    assert layer(torch.ones(6)).tolist() == [1, 1, 10, 10, 100, 100]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_rational_on_nchw_is_the_rational_on_channels_last_permuted(memory_format):
    last = perturb(GroupRational(16, 4, start="gelu"))
    first = GroupRational(16, 4, start="gelu", dim=1)
    first.load_state_dict(last.state_dict())
    x = noise(2, 16, 3, 5).contiguous(memory_format=memory_format)
    expected = last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(first(x), expected, rtol=0, atol=0)


def test_rational_on_bfloat16_keeps_float32_coefficients_and_precision():
    layer = perturb(GroupRational(16, 4, start="swish"))
    x = noise(64, 16, dtype=torch.bfloat16)
    result = layer(x)
    assert result.dtype == torch.bfloat16
    assert layer.numerator.dtype == torch.float32
    expected = by_formula(x, layer.numerator, layer.denominator, 4)
    # Rounded once, at the end: half a unit in the last of bfloat16's 8 bits, and a little for float32 arithmetic.
    torch.testing.assert_close(result.double(), expected, rtol=1.01 * 2**-8, atol=1e-5)


def test_rational_trains_every_coefficient_from_the_identity():
    layer = GroupRational(16, 4)
    layer(noise(64, 16)).square().sum().backward()
    assert (layer.numerator.grad != 0).all()
    assert (layer.denominator.grad != 0).all()


def test_rational_says_what_it_is():
    text = repr(GroupRational(16, 4, m=5, n=3, start="gelu", dim=1))
    for part in ("16", "groups=4", "numerator=(1, 5)", "denominator=(4, 3)", "start='gelu'", "dim=1"):
        assert part in text


def test_rational_resets_to_its_start():
    layer = GroupRational(16, 4, share_numerator=False, start="gelu")
    before = copy.deepcopy(layer.state_dict())
    perturb(layer)
    assert not torch.equal(layer.numerator, before["numerator"])
    layer.reset_parameters()
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("function", [torch.sin, lambda x: x * torch.sin(x), torch.nn.Softsign()])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_rational_starts_as_any_function(function, duplicate):
    layer = duplicate(GroupRational(16, 4, m=7, n=5, start=function))
    x = torch.linspace(-3, 3, 32 * 16).reshape(32, 16)
    torch.testing.assert_close(layer(x), function(x), rtol=0, atol=0.02)
    before = copy.deepcopy(layer.state_dict())
    perturb(layer).reset_parameters()
    assert torch.equal(layer.numerator, before["numerator"])
    assert torch.equal(layer.denominator, before["denominator"])


def test_rational_starts_as_a_fit_and_says_so():
    found = fit("gelu", 5, 3, (-6, 6), method="minimax")
    layer = GroupRational(16, 4, m=5, n=3, start=found)
    assert torch.equal(layer.numerator[0], found.numerator.float())
    assert torch.equal(layer.denominator[3], found.denominator.float())
    assert f"start={found!r}" in repr(layer)
    assert "start=<fit of sin on [-3, 3], m=6, n=4, " in repr(GroupRational(16, start=torch.sin))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": torch.log}, "log is not finite at x=-3"),
        ({"start": fit("relu", 2, 1)}, "m=2 and n=1, not m=6 and n=4"),
    ],
)
def test_rational_refuses_starts_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        GroupRational(16, **arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rational_has_the_dtype_asked_for(dtype):
    layer = GroupRational(16, dtype=dtype)
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}


def test_rational_can_be_built_on_meta_and_filled_later():
    layer = GroupRational(16, start="gelu", device="meta")
    assert layer.numerator.is_meta
    assert layer.denominator.is_meta
    layer.to_empty(device="cpu")
    perturb(layer)
    layer.reset_parameters()
    expected = GroupRational(16, start="gelu")
    assert torch.equal(layer.numerator, expected.numerator)
    assert torch.equal(layer.denominator, expected.denominator)


def test_rational_state_dict_round_trip_gives_equal_output():
    layer = perturb(GroupRational(16, 4, share_numerator=False, start="gelu"))
    other = GroupRational(16, 4, share_numerator=False)
    assert set(layer.state_dict()) == {"numerator", "denominator"}
    other.load_state_dict(layer.state_dict())
    x = noise(3, 16)
    assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_rational_copies_and_pickles(duplicate):
    layer = perturb(GroupRational(16, 4, start="gelu", dim=1))
    other = duplicate(layer)
    x = noise(2, 16, 3)
    assert torch.equal(layer(x), other(x))
    perturb(other, seed=3)
    assert not torch.equal(layer(x), other(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 7}, "16 channels do not divide into 7 groups"),
        ({"groups": 32}, "16 channels do not divide into 32 groups"),
        ({"groups": 0}, "at least 1, not 0"),
        ({"m": 0}, "m=0"),
        ({"n": -1}, "n=-1"),
        ({"m": 1}, r"m >= 2.*not 1"),
        ({"start": "swoosh"}, "'swoosh'.*swish"),
    ],
)
def test_rational_refuses_numbers_that_do_not_fit_and_names_them(arguments, message):
    with pytest.raises(ValueError, match=message):
        GroupRational(16, **arguments)


@pytest.mark.parametrize(("dim", "shape"), [(-1, (2, 24)), (1, (2, 24, 3, 3))])
def test_rational_refuses_input_with_other_channels(dim, shape):
    # 24 channels divide into 8 groups as well as 16 do: the operator alone would not notice.
    with pytest.raises(ValueError, match=r"expected 16 channels.*24"):
        GroupRational(16, dim=dim)(torch.zeros(shape))


def test_rational_refuses_input_without_its_channel_dimension():
    with pytest.raises(ValueError, match="dim 1"):
        GroupRational(16, dim=1)(torch.zeros(16))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda graph: pickle.loads(pickle.dumps(graph))])
def test_rational_is_a_leaf_of_torch_fx(duplicate):
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), perturb(GroupRational(16)))
    traced = duplicate(torch.fx.symbolic_trace(net))
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [rational]
    x = noise(5, 3)
    assert torch.equal(traced(x), net(x))
    traced(x).sum().backward()
    assert set(dict(traced.named_parameters())) == set(dict(net.named_parameters()))
    assert all(parameter.grad is not None for parameter in traced.parameters())


def test_rational_refuses_other_channels_in_a_graph_too():
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(GroupRational(16)))
    with pytest.raises(ValueError, match=r"expected 16 channels.*24"):
        traced(torch.zeros(2, 24))


@pytest.mark.parametrize("names", FORMATS.values())
def test_rational_loads_coefficients_of_any_format(names):
    layer, other = perturb(GroupRational(16)), torch.nn.Sequential(GroupRational(16), GroupRational(16))
    state = {f"{i}.{name}": value for i in range(2) for name, value in zip(names, layer.parameters(), strict=True)}
    for target in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        target.load_state_dict(state)
        assert torch.equal(target[1].denominator, layer.denominator)
        assert set(state) == {f"{i}.{name}" for i in range(2) for name in names}
