"""What a GRKAN computes, holds, refuses and survives."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from rational_oracle import by_formula, noise, perturb
from timm.layers import LayerNorm, Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from flashkat import GRKAN


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


@pytest.mark.parametrize(("num_groups", "den_groups"), [(0, 1), (1, 0), (0, 0)])
def test_no_groups_are_one_for_each_channel(num_groups, den_groups):
    layer = GRKAN(6, 10, num_groups=num_groups, den_groups=den_groups)
    for act, channels in ((layer.act1, 6), (layer.act2, 10)):
        rows = act.numerator.shape[0], act.denominator.shape[0]
        assert rows == tuple(groups or channels for groups in (num_groups, den_groups))
    assert layer(noise(3, 6)).isfinite().all()


@pytest.mark.parametrize(("num_groups", "den_groups"), [(2, 8), (8, 2), (0, 8), (-1, 1), (-1, -1)])
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


def test_timms_initialisation_of_a_vision_transformer_keeps_its_linear_layers():
    """A layer that reset its parts would undo what timm has done to them."""
    model = VisionTransformer(img_size=8, patch_size=4, embed_dim=64, depth=1, num_heads=2, mlp_layer=GRKAN)
    with torch.no_grad():
        model.blocks[0].mlp.act2.numerator.fill_(torch.nan)
    model.init_weights()
    mlp = model.blocks[0].mlp
    for linear in (mlp.fc1, mlp.fc2):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not linear.bias.any()
    assert torch.equal(mlp.act2.numerator, GRKAN(64).act2.numerator)


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


def test_grkan_asks_for_hooks_where_something_fuses_only(monkeypatch):
    layer, x = perturb(GRKAN(16, 32), size=0.1), noise(2, 16)
    expected, asked = layer(x), []
    monkeypatch.setattr("flashkat.nn.grkan.is_linear", lambda module: asked.append(module) or True)
    assert torch.equal(layer(x), expected)
    assert not asked
    monkeypatch.setattr("flashkat.nn.grkan.fuses", lambda x: True)
    assert torch.equal(layer(x), expected)
    assert asked == [layer.fc1, layer.fc2]
    layer.recompute, asked[:] = False, []
    assert torch.equal(layer(x), expected)
    assert asked == [layer.fc1]


def test_grkan_second_rational_starts_as_any_function():
    layer = pickle.loads(pickle.dumps(GRKAN(16, 32, start=lambda x: x * torch.sin(x))))
    x = torch.linspace(-3, 3, 32)
    assert layer.act1.start == "identity"
    torch.testing.assert_close(layer.act2(x), x * torch.sin(x), rtol=0, atol=0.02)


def test_grkan_gives_away_its_parameters_where_they_are_all_it_is():
    layer = GRKAN(16, 32)
    weight1, bias1, numerator, denominator, weight2, bias2 = layer.plain_parameters()
    assert (weight1, bias1, weight2, bias2) == (layer.fc1.weight, layer.fc1.bias, layer.fc2.weight, layer.fc2.bias)
    assert (numerator, denominator) == (layer.act2.numerator, layer.act2.denominator)
    for other in (
        GRKAN(16, drop=0.1),
        GRKAN(16, bias=False),
        GRKAN(16, norm_layer=LayerNorm),
        GRKAN(16, use_conv=True),
    ):
        assert other.plain_parameters() is None
    assert GRKAN(16, drop=0.1).eval().plain_parameters() is not None
