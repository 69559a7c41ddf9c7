import pytest
import torch
import torch.nn.functional as F
from timm.layers import activations as timm_activations
from torch import nn
from transformers.activations import ACT2CLS, ACT2FN

from flashkat.errors import InputError
from flashkat.tools.convert.known import Wishes, activation_modules, is_known_function, name_of


@pytest.mark.parametrize(
    ("forms", "name"),
    [
        ((nn.GELU, F.gelu, "gelu", timm_activations.GELU, ACT2FN["gelu"]), "gelu"),
        ((nn.ReLU(), F.relu, torch.relu, torch.relu_, torch.Tensor.relu, "relu"), "relu"),
        ((nn.SiLU, F.silu, "swish", timm_activations.Swish, ACT2FN["silu"]), "silu"),
        ((nn.Hardswish, F.hardswish, timm_activations.HardSwish, "hard_swish"), "hardswish"),
        ((nn.LeakyReLU, F.leaky_relu), "leakyrelu"),
    ],
)
def test_forms_of_an_activation_have_one_name(forms, name):
    assert {name_of(form) for form in forms} == {name}


def test_known_functions():
    assert all(map(is_known_function, (F.gelu, torch.tanh, torch.Tensor.sigmoid_, "relu")))
    assert not any(map(is_known_function, (F.softmax, F.glu, torch.exp, F.linear)))


@pytest.mark.parametrize("name", sorted(ACT2CLS.keys() - {"linear"}))
def test_activations_of_transformers_are_found(name):
    model = nn.Sequential(ACT2FN[name])
    assert list(activation_modules(model, Wishes(None)).values()) == ["0"]
    assert not Wishes({name: "gelu"}).choose(name_of(model[0])).reason


def test_other_modules_are_no_activations():
    model = nn.Sequential(nn.Softmax(-1), nn.GLU(), nn.RReLU(), nn.Linear(2, 2), nn.Identity(), nn.LayerNorm(2))
    model.append(ACT2FN["linear"])
    assert activation_modules(model, Wishes(None)) == {}


def test_classes_of_users_are_found_when_they_are_named():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ReLU()

        def forward(self, x):
            return self.inner(x) ** 2

    model = nn.Sequential(Square())
    assert list(activation_modules(model, Wishes(None)).values()) == ["0.inner"]
    assert list(activation_modules(model, Wishes({Square: None})).values()) == ["0"]


def test_wishes():
    everything, some = Wishes(None), Wishes({nn.GELU: "relu", "sigmoid": None})
    assert everything.choose("gelu") == (None, "")
    assert everything.choose("sigmoid").reason.startswith("it is a gate")
    assert some.choose("gelu") == ("relu", "")
    assert some.choose("sigmoid") == (None, "")
    assert some.choose("silu").reason == "it is not among the activations asked for"


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ("gelu", "maps activations to starts, such as {nn.GELU: 'gelu'}, not 'gelu'"),
        ({"gelo": "gelu"}, "no activation is called 'gelo': did you mean 'gelu'?"),
        ({nn.GELU: "gelo"}, "no start is called 'gelo': did you mean 'gelu'?"),
        ({int: "gelu"}, "int is no class of modules"),
        ({torch.exp: "gelu"}, "cannot be found: give the class of a module"),
    ],
)
def test_wrong_wishes_get_one_line(starts, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        Wishes(starts)
