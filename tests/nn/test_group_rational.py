"""The modules: what GroupRational and GRKAN compute, hold, refuse and survive."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from flashkat import GRKAN, GroupRational
from flashkat.nn.starts import starting_coefficients


def by_formula(x, numerator, denominator, groups):
    """P(x) / Q(x) in float64, group by group and power by power, channels last."""
    outputs = []
    for index, part in enumerate(x.double().chunk(groups, dim=-1)):
        a = numerator.double()[index % len(numerator)]
        b = denominator.double()[index % len(denominator)]
        top = sum(a[power] * part**power for power in range(len(a)))
        bottom = 1 + sum(b[power].abs() * part.abs() ** (power + 1) for power in range(len(b)))
        outputs.append(top / bottom)
    return torch.cat(outputs, dim=-1)


def perturb(module, seed=0, size=0.3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter)
    return module


def noise(*shape, seed=1, **kwargs):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(**kwargs)


# GroupRational


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


# GRKAN


def test_grkan_is_its_composition_by_hand():
    layer = perturb(GRKAN(16, 32, 24, num_groups=1, den_groups=4).double(), size=0.1).eval()
    x = noise(2, 5, 16, dtype=torch.float64)
    h = by_formula(x, layer.act1.numerator, layer.act1.denominator, 4) @ layer.fc1.weight.T + layer.fc1.bias
    h = by_formula(h, layer.act2.numerator, layer.act2.denominator, 4) @ layer.fc2.weight.T + layer.fc2.bias
    torch.testing.assert_close(layer(x), h, rtol=1e-10, atol=1e-10)


def test_grkan_starts_as_the_mlp_with_its_activation():
    mlp = Mlp(16, 64, act_layer=nn.SiLU)
    layer = GRKAN(16, 64)
    layer.load_state_dict(mlp.state_dict(), strict=False)
    x = noise(2, 5, 16)
    torch.testing.assert_close(layer(x), mlp(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("start", "function"), [("swish", F.silu), ("gelu", F.gelu), ("tanh", torch.tanh)])
def test_grkan_first_rational_starts_as_identity_and_the_second_as_asked(start, function):
    layer = GRKAN(16, 32, start=start)
    x = torch.linspace(-3, 3, 32)
    assert torch.equal(layer.act1(x[:16]), x[:16])
    torch.testing.assert_close(layer.act2(x), function(x), rtol=0, atol=3e-3)


def test_grkan_second_rational_starts_as_swish_by_default():
    assert GRKAN(16).act2.start == "swish"


@pytest.mark.parametrize(
    ("arguments", "hidden", "out"), [({}, 16, 16), ({"hidden_features": 32}, 32, 16), ({"out_features": 8}, 16, 8)]
)
def test_grkan_hidden_and_output_channels_default_to_those_of_the_input(arguments, hidden, out):
    layer = GRKAN(16, **arguments)
    assert layer.fc1.weight.shape == (hidden, 16)
    assert layer.fc2.weight.shape == (out, hidden)
    assert layer.act2.channels == hidden
    assert layer(torch.zeros(3, 16)).shape == (3, out)


@pytest.mark.parametrize("use_conv", [False, True])
@pytest.mark.parametrize("norm_layer", [None, LayerNorm])
def test_grkan_linear_layers_load_from_timms_mlp(use_conv, norm_layer):
    mlp = Mlp(16, 32, 24, norm_layer=norm_layer, use_conv=use_conv)
    layer = GRKAN(16, 32, 24, norm_layer=norm_layer, use_conv=use_conv)
    result = layer.load_state_dict(mlp.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all(key.startswith(("act1.", "act2.")) for key in result.missing_keys)
    for key, value in mlp.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)


def test_grkan_dropout_comes_after_each_rational_in_training_only():
    x = noise(64, 16)
    first = GRKAN(16, 32, drop=(1.0, 0.0))
    torch.testing.assert_close(first(x), first.fc2(first.act2(first.fc1.bias)).expand(64, 16))
    second = GRKAN(16, 32, drop=(0.0, 1.0))
    assert torch.equal(second(x), second.fc2.bias.expand(64, 16))
    for layer in (first, second):
        layer.eval()
        without = GRKAN(16, 32)
        without.load_state_dict(layer.state_dict())
        assert torch.equal(layer(x), without(x))


def test_grkan_one_dropout_probability_is_for_both():
    layer = GRKAN(16, drop=0.25)
    assert (layer.drop1.p, layer.drop2.p) == (0.25, 0.25)


def test_grkan_with_convolutions_is_the_linear_one_permuted():
    linear = perturb(GRKAN(16, 32, 24), size=0.1)
    conv = GRKAN(16, 32, 24, use_conv=True)
    state = linear.state_dict()
    for key in ("fc1.weight", "fc2.weight"):
        state[key] = state[key][:, :, None, None]
    conv.load_state_dict(state)
    x = noise(2, 16, 3, 5)
    expected = linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_conv", [False, True])
@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        (True, (True, True)),
        (False, (False, False)),
        ((True, False), (True, False)),
        ((False, True), (False, True)),
        ([True, False], (True, False)),
    ],
)
def test_grkan_has_the_biases_asked_for(bias, expected, use_conv):
    layer = GRKAN(16, 32, bias=bias, use_conv=use_conv)
    assert (layer.fc1.bias is not None, layer.fc2.bias is not None) == expected


def test_grkan_norm_layer_comes_before_the_second_linear_layer():
    layer = GRKAN(16, 32, norm_layer=LayerNorm).eval()
    assert layer.norm.normalized_shape == (32,)
    x = noise(4, 16)
    hidden = F.silu(F.linear(x, layer.fc1.weight, layer.fc1.bias))
    expected = F.linear(F.layer_norm(hidden, (32,), eps=layer.norm.eps), layer.fc2.weight, layer.fc2.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-3)


def test_grkan_has_no_norm_by_default():
    assert isinstance(GRKAN(16).norm, nn.Identity)


@pytest.mark.parametrize(
    ("num_groups", "den_groups", "rows"),
    [(1, 8, (1, 8)), (8, 1, (8, 1)), (4, 4, (4, 4)), (1, 1, (1, 1))],
)
def test_grkan_groups_of_numerators_and_denominators(num_groups, den_groups, rows):
    layer = GRKAN(16, 32, num_groups=num_groups, den_groups=den_groups)
    for act in (layer.act1, layer.act2):
        assert (act.numerator.shape[0], act.denominator.shape[0]) == rows
        assert act.groups == max(rows)
    assert layer(noise(3, 16)).isfinite().all()


@pytest.mark.parametrize(("num_groups", "den_groups"), [(2, 8), (8, 2), (0, 8), (-1, 1)])
def test_grkan_refuses_groups_that_do_not_fit_and_names_them(num_groups, den_groups):
    with pytest.raises(ValueError, match=rf"{num_groups} and {den_groups}"):
        GRKAN(16, num_groups=num_groups, den_groups=den_groups)


@pytest.mark.parametrize(("arguments", "message"), [((20,), "20 channels"), ((16, 20), "20 channels")])
def test_grkan_refuses_channels_that_do_not_divide_into_its_groups(arguments, message):
    with pytest.raises(ValueError, match=rf"{message} do not divide into 8 groups"):
        GRKAN(*arguments)


def test_grkan_passes_its_degrees_on():
    layer = GRKAN(16, m=4, n=2)
    for act in (layer.act1, layer.act2):
        assert (act.numerator.shape[1], act.denominator.shape[1]) == (4, 2)


def test_grkan_has_the_dtype_and_device_asked_for():
    layer = GRKAN(16, norm_layer=LayerNorm, dtype=torch.float64, device="meta")
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
    assert all(parameter.is_meta for parameter in layer.parameters())


def test_grkan_resets_all_its_parameters():
    layer = GRKAN(64, 128, norm_layer=LayerNorm, start="gelu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(0)
    layer.reset_parameters()
    fresh = GRKAN(64, 128, norm_layer=LayerNorm, start="gelu")
    for part in ("act1", "act2", "norm"):
        for key, value in getattr(fresh, part).state_dict().items():
            assert torch.equal(getattr(layer, part).state_dict()[key], value)
    for linear in (layer.fc1, layer.fc2):
        # torch's own default: uniform within 1 / sqrt(fan_in).
        bound = linear.in_features**-0.5
        assert linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert linear.bias.abs().max() <= bound


def test_grkan_says_what_it_is():
    assert repr(GRKAN(16, 32)).startswith("GRKAN(\n  in_features=16, hidden_features=32")


def test_grkan_ignores_act_layer():
    torch.manual_seed(0)
    plain = GRKAN(16)
    torch.manual_seed(0)
    x = noise(2, 16)
    assert torch.equal(GRKAN(16, act_layer=nn.ReLU)(x), plain(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_grkan_copies_and_pickles(duplicate):
    layer = perturb(GRKAN(16, 32), size=0.1)
    x = noise(2, 16)
    assert torch.equal(duplicate(layer)(x), layer(x))


def test_grkan_works_as_the_mlp_layer_of_a_stock_vision_transformer():
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        num_classes=5,
        scale_mlp_norm=True,
        proj_drop_rate=0.1,
        mlp_layer=GRKAN,
    )
    assert all(isinstance(block.mlp, GRKAN) for block in model.blocks)
    assert model.blocks[0].mlp.drop2.p == 0.1
    assert isinstance(model.blocks[0].mlp.norm, nn.LayerNorm)
    assert model.blocks[0].mlp.fc1.out_features == 192
    logits = model(noise(2, 3, 32, 32))
    assert logits.shape == (2, 5)
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
