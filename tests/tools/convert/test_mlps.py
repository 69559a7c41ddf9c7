import copy
from functools import partial

import pytest
import timm
import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

import flashkat
from flashkat.errors import InputError
from flashkat.models import KolmogorovArnoldTransformer
from flashkat.models.block import KATBlock

SIZES = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 2, "num_classes": 5}
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def vit(name="vit_tiny_patch16_224", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SIZES, **kwargs}).eval()


def test_vit_becomes_a_kat_with_its_outputs():
    model = vit()
    before, linear = model(IMAGES), model.blocks[0].mlp.fc1
    report = flashkat.mlp_to_grkan(model, example=IMAGES)
    assert [row.name for row in report.converted] == ["blocks.0.mlp", "blocks.1.mlp"]
    assert float((model(IMAGES) - before).detach().abs().max()) == pytest.approx(report.change, abs=1e-7)
    assert 0 < report.change < 0.05 * report.reach
    assert type(model) is KolmogorovArnoldTransformer
    assert {type(block) for block in model.blocks} == {KATBlock}
    assert model.blocks[0].mlp.fc1 is linear
    assert "the model is a KolmogorovArnoldTransformer now" in str(report)


def test_weights_load_into_the_registered_kat():
    model = vit()
    flashkat.mlp_to_grkan(model, example=IMAGES)
    kat = timm.create_model("kat_tiny_gelu_patch16_224", **SIZES).eval()
    kat.load_state_dict(model.state_dict())
    torch.testing.assert_close(kat(IMAGES), model(IMAGES), rtol=0, atol=0)


def test_training_step():
    model = vit()
    flashkat.mlp_to_grkan(model, example=IMAGES)
    model.train()(IMAGES).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_revert():
    model = vit()
    before = model(IMAGES)
    flashkat.mlp_to_grkan(model.train(), example=IMAGES)
    for each in (copy.deepcopy(model), model):
        flashkat.revert(each.eval())
        assert type(each) is VisionTransformer
        assert {type(block) for block in each.blocks} == {Block}
        torch.testing.assert_close(each(IMAGES), before, rtol=0, atol=0)


def test_arguments_and_dropout():
    model = vit(proj_drop_rate=0.25)
    report = flashkat.mlp_to_grkan(model, example=IMAGES, groups=5, m=5, n=3)
    grkan = model.blocks[0].mlp
    assert (grkan.act1.groups, grkan.act2.groups) == (4, 4)
    assert grkan.act1.numerator.shape == (1, 5)
    assert grkan.act2.denominator.shape == (4, 3)
    assert (grkan.drop1.p, grkan.drop2.p) == (0.25, 0.25)
    assert "2 with fewer than 5 groups" in str(report)
    assert "dropout comes before each linear layer" in str(report)


def test_convolutions_and_other_models():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Mlp(8, 16, act_layer=nn.SiLU, use_conv=True)).eval()
    report = flashkat.mlp_to_grkan(model, example=IMAGES)
    assert [(row.name, row.start, row.channels, row.dim) for row in report.converted] == [("1", "swish", 16, 1)]
    assert model[1].act1.dim == 1
    assert report.change < 1e-4


def test_blocks_of_other_kinds_keep_their_class():
    model = vit("vit_small_patch14_dinov2", init_values=1e-5)
    assert flashkat.mlp_to_grkan(model, example=IMAGES).change < 0.02
    model = nn.Sequential(vit(), nn.Linear(5, 5))
    flashkat.mlp_to_grkan(model, example=IMAGES)
    assert type(model[0]) is VisionTransformer
    assert type(model[0].blocks[0]) is KATBlock


def test_other_mlps_are_left():
    gated = timm.layers.SwiGLU(8, 16)
    model = nn.Sequential(nn.Linear(8, 8), Mlp(8, 16), gated, Mlp(8, 16, act_layer=partial(nn.Softmax, -1)))
    report = flashkat.mlp_to_grkan(model, example=torch.randn(2, 8))
    assert [row.name for row in report.converted] == ["1"]
    assert {row.name: row.reason for row in report.left} == {
        "2": "it is more than two linear layers and an activation",
        "3": "the example does not reach it, or its activation is unknown",
    }
    assert model[2] is gated


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (nn.Sequential(nn.Linear(8, 8)), {}, "nothing to convert in Sequential: it has no timm.layers.Mlp"),
        (
            nn.Sequential(Mlp(8, 8, act_layer=partial(nn.Softmax, -1))),
            {},
            "nothing to convert in Sequential: 0 stays because",
        ),
        (nn.Sequential(Mlp(8, 8)), {"m": 1}, "a GR-KAN begins with the identity, which needs m >= 2, not 1"),
        (nn.Sequential(Mlp(9, 8)), {}, "Sequential does not run on the example"),
    ],
)
def test_what_cannot_be_converted_gets_one_line(model, arguments, message):
    with pytest.raises(InputError) as error:
        flashkat.mlp_to_grkan(model, example=torch.randn(2, 8), **arguments)
    assert message in str(error.value)


def test_a_model_that_does_not_run_with_grkans_stays_as_it_is():
    class NeedsItsMlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = Mlp(8, 16)

        def forward(self, x):
            return self.mlp(x) if isinstance(self.mlp, Mlp) else self.mlp.act(x)

    model = NeedsItsMlp()
    with pytest.raises(InputError, match=r"does not run with GR-KANs in place of its MLPs: .*; use flashkat\.convert"):
        flashkat.mlp_to_grkan(model, example=torch.randn(2, 8))
    assert type(model.mlp) is Mlp
    with pytest.raises(InputError, match="nothing to revert"):
        flashkat.revert(model)
