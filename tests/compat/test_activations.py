"""The drop-in classes: parameters, arguments and values of the classes that they stand in for."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from foreign import FLASHKAT, KAT, Rational
from torch import nn

from flashkat import GroupRational
from flashkat.compat.activations import FlashKAT_Group, KAT_Group, KAT_Group2D, KAT_Group_Torch, RationalTriton1DGroup
from flashkat.nn.starts import FUNCTIONS

ALL = [KAT_Group, KAT_Group2D, lambda **kwargs: FlashKAT_Group(32, **kwargs)]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def test_signatures():
    for kind in (KAT_Group, KAT_Group2D):
        arguments = inspect.signature(kind).parameters
        assert {name: argument.default for name, argument in arguments.items()} == {
            "num_groups": 8,
            "mode": "gelu",
            "device": "cuda",
        }
    assert list(inspect.signature(FlashKAT_Group).parameters) == [
        *("in_features", "num_groups", "den_groups", "m", "n", "mode", "device")
    ]


@pytest.mark.parametrize("kind", [KAT_Group, KAT_Group2D])
@pytest.mark.parametrize("groups", [8, 1, 4])
def test_kats_parameters(kind, groups):
    module = kind(groups)
    assert shapes(module) == {"weight_numerator": (1, 6), "weight_denominator": (groups, 4)}
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in module.parameters())
    assert repr(module) == f"{kind.__name__}(num_groups={groups}, order=(5, 4))"


@pytest.mark.parametrize(
    ("arguments", "numerator", "denominator"),
    [
        ((32, 1, 8, 6, 4, "swish"), (1, 6), (8, 4)),
        ((32, 8, 8, 6, 4, "swish"), (8, 6), (8, 4)),
        ((32, 8, 1, 6, 4, "swish"), (8, 6), (1, 4)),
        ((32, 0, -1, 6, 4, "swish"), (32, 6), (32, 4)),
        ((32, 1, 4, 5, 3, "swish", "cpu"), (1, 5), (4, 3)),
        ((32,), (1, 6), (8, 4)),
    ],
)
def test_flashkats_parameters(arguments, numerator, denominator):
    module = FlashKAT_Group(*arguments)
    assert shapes(module) == {"numerator_v": numerator, "denominator_v": denominator}
    assert "in_features=32" in repr(module)
    assert f"order=({numerator[1] - 1}, {denominator[1]})" in repr(module)
    x = noise(2, 5, 32).to(module.numerator_v.device)
    torch.testing.assert_close(module(x), (F.silu if len(arguments) > 1 else F.gelu)(x), rtol=0, atol=0.02)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("mode", FUNCTIONS)
def test_every_start_is_a_fit_for_this_denominator(make, mode):
    module = make(mode=mode, device="cpu")
    x = torch.linspace(-3, 3, 64).reshape(1, 32, 2)
    x = x[..., None] if isinstance(module, KAT_Group2D) else x.mT
    error = (module(x) - FUNCTIONS[mode](x.double())).abs().max()
    assert error <= (0.04 if "relu" in mode else 0.02)


@pytest.mark.parametrize(
    ("names", "module"), [(KAT, KAT_Group(device="cpu")), (FLASHKAT, FlashKAT_Group(32, device="cpu"))]
)
def test_values_are_the_formulas(names, module):
    torch.manual_seed(0)
    theirs = Rational(names)
    module.load_state_dict(theirs.state_dict())
    x = noise(2, 7, 32)
    torch.testing.assert_close(module(x), theirs(x), rtol=1e-5, atol=1e-5)
    theirs.load_state_dict(module.state_dict())


def test_values_of_images():
    torch.manual_seed(0)
    theirs, module = Rational(KAT), KAT_Group2D(device="cpu")
    module.load_state_dict(theirs.state_dict())
    x = noise(2, 32, 3, 5)
    expected = theirs(x.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), expected, rtol=1e-5, atol=1e-5)


def test_two_dimensions_and_strides_are_taken_too():
    module = KAT_Group(device="cpu")
    x = noise(32, 6)
    assert torch.equal(module(x.T), module(x.T.contiguous()))


def test_default_device_is_cuda_where_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    for make in ALL:
        assert {parameter.device.type for parameter in make().parameters()} == {expected}
        assert {parameter.device.type for parameter in make(device="cpu").parameters()} == {"cpu"}
        assert {parameter.device.type for parameter in make(device=torch.device("meta")).parameters()} == {"meta"}


@pytest.mark.parametrize("make", ALL)
def test_it_learns(make):
    module = make(mode="identity", device="cpu")
    x = noise(2, 32, 4, 4) if isinstance(module, KAT_Group2D) else noise(2, 7, 32)
    module(x).square().sum().backward()
    assert all(parameter.grad.count_nonzero() for parameter in module.parameters())


@pytest.mark.parametrize("kind", [KAT_Group, KAT_Group2D])
def test_wrong_channels_are_called_that(kind):
    x = noise(2, 30, 4, 4) if kind is KAT_Group2D else noise(2, 7, 30)
    dim = 1 if kind is KAT_Group2D else -1
    with pytest.raises(ValueError, match=rf"^30 channels \(dim {dim} of x\) do not divide into 8 groups$"):
        kind(device="cpu")(x)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(KAT_Group, (2, 32, 16, 16)), (KAT_Group, ()), (KAT_Group2D, (2, 7, 32)), (KAT_Group2D, (2, 32))],
)
def test_another_rank_may_be_another_layout(kind, shape):
    """KAT_Group would take the width of an image for channels."""
    other = "KAT_Group" if kind is KAT_Group2D else "KAT_Group2D"
    with pytest.raises(ValueError, match=rf"^{kind.__name__} takes .*; {other} takes .*got x of shape") as caught:
        kind(device="cpu")(torch.zeros(shape))
    assert str(caught.value).endswith(str(shape))


@pytest.mark.parametrize("make", ALL)
def test_torch_fx_traces_them(make):
    net = nn.Sequential(make(device="cpu"))
    x = noise(2, 32, 4, 4) if isinstance(net[0], KAT_Group2D) else noise(2, 7, 32)
    assert torch.equal(torch.fx.symbolic_trace(net)(x), net(x))


def test_wrong_channels_of_flashkats():
    with pytest.raises(ValueError, match=r"^expected 32 channels in dim -1, got x of shape \(2, 7, 16\)$"):
        FlashKAT_Group(32, device="cpu")(noise(2, 7, 16))
    with pytest.raises(ValueError, match=r"^30 channels do not divide into 8 groups$"):
        FlashKAT_Group(30)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: KAT_Group(mode="swoosh"), "unknown starting function 'swoosh'"),
        (lambda: KAT_Group2D(0), "groups must be at least 1, not 0"),
        (lambda: FlashKAT_Group(32, 2, 8), "must be equal or 1, not 2 and 8"),
        (lambda: FlashKAT_Group(32, 1, 8, 0, 4, "gelu"), "m >= 1"),
    ],
)
def test_arguments_that_make_no_sense(make, words):
    with pytest.raises(ValueError, match=words):
        make()


class Net(nn.Module):
    """Someone's model, written for KAT_Group."""

    def __init__(self, activation):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(6, 32), activation, nn.Linear(32, 3)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


def test_state_dicts_go_between_the_classes():
    torch.manual_seed(0)
    theirs = Net(Rational(KAT))
    x = noise(2, 5, 6)
    activations = [KAT_Group(device="cpu"), FlashKAT_Group(32, device="cpu"), GroupRational(32)]
    for activation in activations:
        net = Net(activation)
        net.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(net(x), theirs(x), rtol=1e-4, atol=1e-4)
        back = Net(KAT_Group(device="cpu"))
        back.load_state_dict(net.state_dict())
        for key, value in theirs.state_dict().items():
            assert torch.equal(back.state_dict()[key], value)
    with pytest.raises(RuntimeError, match=r"act\.weight_numerator"):
        Net(KAT_Group()).load_state_dict({k: v for k, v in theirs.state_dict().items() if "numerator" not in k})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_and_pickles(duplicate):
    module = KAT_Group(mode="tanh", device="cpu")
    x = noise(2, 5, 16)
    assert torch.equal(duplicate(module)(x), module(x))


@pytest.mark.parametrize("make", [lambda: KAT_Group(device="cpu"), lambda: FlashKAT_Group(32, device="cpu")])
def test_the_starts_can_be_asked_for(make):
    module = make()
    info = module.init_info()
    assert info.keys() == FUNCTIONS.keys()
    module.initialize("gelu_old")
    numerator, denominator = module.parameters()
    torch.testing.assert_close(numerator[0].tolist(), info["gelu_old"]["init_w_numerator"], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(denominator[0].tolist(), info["gelu_old"]["init_w_denominator"], rtol=1e-6, atol=1e-8)
    assert (info["gelu"]["lb"], info["gelu"]["ub"]) == (-3, 3)


def test_kats_class_in_plain_pytorch_computes_the_same():
    x = noise(2, 3, 32)
    assert torch.equal(KAT_Group_Torch(4, "tanh", "cpu")(x), KAT_Group(4, "tanh", "cpu")(x))


@pytest.mark.parametrize("rows", [(4, 4), (1, 4), (4, 1), (1, 1)])
def test_kats_autograd_function(rows):
    x, a, b = noise(2, 3, 32), noise(rows[0], 6, seed=1), noise(rows[1], 4, seed=2)
    found = RationalTriton1DGroup.apply(x, a, b, 4)
    whole = RationalTriton1DGroup.apply(x, a.expand(4, -1), b.expand(4, -1), 4)
    torch.testing.assert_close(found, whole)
    with pytest.raises(ValueError, match="rows"):
        RationalTriton1DGroup.apply(x, noise(2, 6), b, 4)
