"""The named functions: each is what its name says."""

import math

import pytest
import torch
import torch.nn.functional as F

from flashkat.nn.functions import FUNCTIONS, named_function

MEANINGS = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "elu": lambda x: torch.where(x > 0, x, torch.expm1(x)),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_old": F.gelu,
    "leaky_relu_0.1": lambda x: torch.where(x < 0, 0.1 * x, x),
    "erfc_Softplus_2": lambda x: torch.erfc(torch.log1p(torch.exp(x))) ** 2,
    "swish": lambda x: x / (1 + torch.exp(-x)),
    "silu": F.silu,
    "mish": lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
    "softplus": lambda x: torch.log1p(torch.exp(x)),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "geglu": lambda x: x * F.gelu(x),
    "swishglu": lambda x: x * F.silu(x),
}


def test_every_name_has_its_meaning_here():
    assert set(FUNCTIONS) == set(MEANINGS)


@pytest.mark.parametrize("name", MEANINGS)
def test_name_means_the_function_it_says(name):
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    torch.testing.assert_close(named_function(name)(x), MEANINGS[name](x), rtol=1e-12, atol=1e-12)


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match="'swoosh'") as caught:
        named_function("swoosh")
    assert all(name in str(caught.value) for name in FUNCTIONS)
