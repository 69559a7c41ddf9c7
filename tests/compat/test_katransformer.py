"""KAT's model file under its own names."""

import inspect

import pytest
import timm
import torch
from torch import nn

from flashkat import GRKAN
from flashkat.compat import katransformer
from flashkat.compat.katransformer import KAN, KATVisionTransformer


def test_the_layer_has_kats_arguments():
    assert list(inspect.signature(KAN).parameters)[:9] == [
        *("in_features", "hidden_features", "out_features", "act_layer", "norm_layer", "bias", "drop", "use_conv"),
        "act_init",
    ]


def test_the_layer_starts_as_named():
    torch.manual_seed(0)
    ours = GRKAN(16, 32, start="gelu", den_groups=4)
    torch.manual_seed(0)
    theirs = KAN(in_features=16, hidden_features=32, drop=0.0, den_groups=4)
    x = torch.randn(2, 3, 16)
    assert torch.equal(ours(x), theirs(x))
    swish = KAN(16, act_init="swish").act2
    torch.testing.assert_close(swish(x), nn.functional.silu(x), rtol=0, atol=1e-3)


def test_models_are_of_kats_class():
    small = {"depth": 1, "img_size": 32, "num_classes": 3}
    assert isinstance(timm.create_model("kat_tiny_patch16_224", **small), KATVisionTransformer)
    model = katransformer.kat_tiny_swish_patch16_224(**small)
    assert isinstance(model, KATVisionTransformer)
    with pytest.raises(AttributeError, match="kat_none"):
        katransformer.kat_none  # noqa: B018


def test_the_layer_takes_its_place_in_the_model():
    model = KATVisionTransformer(embed_dim=48, depth=1, num_heads=3, img_size=32, num_classes=3, mlp_layer=KAN)
    assert isinstance(model.blocks[0].mlp, KAN)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
