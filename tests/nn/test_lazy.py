"""An activation that learns its channels: what it becomes, and what it refuses to guess."""

import copy
import pickle
from functools import partial

import pytest
import timm
import torch
from rational_oracle import noise, perturb
from torch import nn

from flashkat import GroupRational, LazyGroupRational


@pytest.mark.parametrize(
    ("dim", "shape"), [(None, (16,)), (None, (3, 16)), (-1, (2, 5, 16)), (1, (2, 16, 3, 3)), (-1, (2, 3, 3, 16))]
)
def test_it_becomes_a_rational_of_the_channels_it_sees(dim, shape):
    layer = perturb(LazyGroupRational(4, dim=dim, start="gelu", share_numerator=False))
    expected = GroupRational(16, 4, dim=-1 if dim is None else dim, start="gelu", share_numerator=False)
    expected.load_state_dict(layer.state_dict())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = noise(*shape)
    assert torch.equal(layer(x), expected(x))
    assert type(layer) is GroupRational
    assert repr(layer) == repr(expected)
    layer(x).square().sum().backward()
    before = layer.denominator.detach().clone()
    optimizer.step()
    assert not torch.equal(layer.denominator, before)


@pytest.mark.parametrize("shape", [(2, 64, 16, 16), (2, 16, 64)])
def test_it_does_not_guess_which_dimension_holds_the_channels(shape):
    """A width of 16 may be taken for channels."""
    layer = LazyGroupRational()
    with pytest.raises(ValueError, match=r"dim=-1 for channels last or dim=1 for NCHW"):
        layer(torch.zeros(shape))
    assert type(layer) is LazyGroupRational


def test_what_it_has_learned_it_keeps():
    layer = LazyGroupRational(dim=1)
    layer(torch.zeros(2, 16, 3, 3))
    with pytest.raises(ValueError, match=r"expected 16 channels in dim 1"):
        layer(torch.zeros(2, 24, 3, 3))


@pytest.mark.parametrize(
    ("dim", "shape", "words"),
    [(-1, (2, 30), "30 channels"), (1, (16,), "dim 1 is out of range"), (-1, (2, 0), "0 channels")],
)
def test_input_that_does_not_fit_teaches_it_nothing(dim, shape, words):
    layer = LazyGroupRational(dim=dim)
    with pytest.raises(ValueError, match=words):
        layer(torch.zeros(shape))
    assert layer(torch.zeros(2, 16)).shape == (2, 16)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_learn_for_themselves(duplicate):
    layer = perturb(LazyGroupRational(dim=-1))
    other = duplicate(layer)
    x = noise(3, 16)
    expected = layer(x)
    assert torch.equal(other(x), expected)
    assert type(duplicate(layer)) is GroupRational
    assert duplicate(LazyGroupRational(dim=-1))(noise(3, 32)).shape == (3, 32)


def test_a_tracer_must_wait_for_the_first_input():
    net = nn.Sequential(nn.Linear(3, 16), LazyGroupRational(dim=-1))
    with pytest.raises(RuntimeError, match="call the model before tracing it"):
        torch.fx.symbolic_trace(net)
    x = noise(2, 3)
    expected = net(x)
    assert torch.equal(torch.fx.symbolic_trace(net)(x), expected)


def test_a_compiler_need_not_wait():
    torch._dynamo.reset()
    net = nn.Sequential(nn.Linear(3, 16), LazyGroupRational(dim=-1))
    x = noise(2, 3)
    found = torch.compile(net, backend="aot_eager")(x)
    torch.testing.assert_close(found, net(x))


@pytest.mark.parametrize(
    ("name", "dim", "kwargs"),
    [
        ("test_resnet", 1, {}),
        ("vit_tiny_patch16_224", -1, {"img_size": 32, "embed_dim": 48, "depth": 1}),
        ("convnext_tiny", -1, {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}),  # its MLPs are NHWC
    ],
)
def test_timms_models_take_it_for_their_activation(name, dim, kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, act_layer=partial(LazyGroupRational, dim=dim), num_classes=3, **kwargs)
    assert model(noise(2, 3, 32, 32)).shape == (2, 3)
    rationals = [module for module in model.modules() if isinstance(module, GroupRational)]
    assert rationals
    assert {type(each) for each in rationals} == {GroupRational}
    assert all(each.dim == dim and each.channels > 8 for each in rationals)


def test_inplace_is_taken_and_changes_nothing():
    x = noise(3, 16)
    before = x.clone()
    LazyGroupRational(start="relu", inplace=True)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_any_function_is_a_start(duplicate):
    layer = duplicate(LazyGroupRational(4, start=lambda x: x * torch.sin(x), dim=-1))
    x = torch.linspace(-3, 3, 32 * 16).reshape(32, 16)
    torch.testing.assert_close(layer(x), x * torch.sin(x), rtol=0, atol=0.02)
