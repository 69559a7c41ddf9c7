"""create_model: timm's, with None for the default and one line for each mistake."""

import logging

import pytest
import timm
import torch
from huggingface_hub.utils import LocalEntryNotFoundError

from flashkat.errors import InputError, UnreachableError
from flashkat.models import KolmogorovArnoldTransformer, create_model

QUICK = {"img_size": 32, "depth": 1, "weight_init": "skip"}


def message(name, **kwargs):
    with pytest.raises(InputError) as caught:
        create_model(name, **{**QUICK, **kwargs})
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def test_creates_the_model_timm_does():
    arguments = {"img_size": 32, "depth": 1, "num_classes": 5}
    torch.manual_seed(0)
    model = create_model("flash_kat_tiny_gelu_patch16_224", **arguments)
    torch.manual_seed(0)
    expected = timm.create_model("flash_kat_tiny_gelu_patch16_224", **arguments)
    assert type(model) is KolmogorovArnoldTransformer
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())


def test_creates_timms_own_models_too():
    assert create_model("test_vit", num_classes=3).num_classes == 3


def test_none_means_the_models_own_default():
    model = create_model(
        "kat_tiny_patch16_224",
        num_classes=None,
        img_size=None,
        in_chans=None,
        drop_path_rate=None,
        drop_rate=None,
        den_groups=None,
        act_init=None,
        weight_init=None,
        depth=1,
    )
    assert model.num_classes == 1000
    assert model.patch_embed.img_size == (224, 224)
    assert model.blocks[0].mlp.act2.groups == 8
    assert model.blocks[0].mlp.act2.start == "swish"
    assert model.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.03)


def test_false_and_zero_are_not_none():
    model = create_model("kat_tiny_patch16_224", num_classes=0, qkv_bias=False, n=0, **QUICK)
    assert model.num_classes == 0
    assert model.blocks[0].attn.qkv.bias is None
    assert model.blocks[0].mlp.act1.denominator.shape == (8, 0)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("kat_tiny_patch16_225", "kat_tiny_patch16_224"),
        ("kat_tiny_patch16", "kat_tiny_patch16_224"),
        ("flashkat_small_patch16_224", "flash_kat_small_patch16_224"),
        ("kat_base_gelu_patch16_244", "kat_base_gelu_patch16_224"),
        # timm's coat_tiny and catavgmax are nearer, by letters.
        ("kat_tinny", "kat_tiny_patch16_224"),
        ("KAT_Small", "kat_small_patch16_224"),
        ("flash-kat-base", "flash_kat_base_patch16_224"),
        ("resnet5O", "resnet50"),
    ],
)
def test_an_unknown_name_gets_the_nearest_as_a_suggestion(name, nearest):
    text = message(name)
    assert repr(name) in text
    assert f"did you mean {nearest!r}" in text


@pytest.mark.parametrize("name", ["", "zzzzzzzz"])
def test_an_unknown_name_that_is_near_to_nothing_is_told_where_to_look(name):
    text = message(name)
    assert repr(name) in text
    assert "timm.list_models()" in text


def test_groups_that_do_not_divide_the_channels_are_named_with_them():
    text = message("kat_tiny_patch16_224", den_groups=7)
    assert "192 channels do not divide into 7 groups" in text
    assert "den_groups=7" in text
    assert "kat_tiny_patch16_224" in text


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"num_groups": 2, "den_groups": 8}, ("2 and 8",)),
        ({"m": 1}, ("m=1", "m >= 2")),
        ({"n": -1}, ("n=-1",)),
        ({"act_init": "swoosh"}, ("'swoosh'", "swish", "gelu")),
        ({"bogus": 3}, ("--model-kwargs bogus=3", "kat_tiny_patch16_224 takes no bogus")),
        ({"den_group": 3}, ("takes no den_group", "are den_groups, num_groups")),
        ({"depth": "two"}, ("--model-kwargs depth=two", "a whole number, as in depth=12")),
        ({"depth": 2.5}, ("--model-kwargs depth=2.5", "a whole number")),
        ({"m": "six"}, ("--model-kwargs m=six", "a whole number, as in m=6")),
        ({"proj_drop_rate": "much"}, ("--model-kwargs proj_drop_rate=much", "a number, as in proj_drop_rate=0.0")),
        ({"img_size": 33, "patch_size": 8}, ("--img-size 33", "patches of 8 pixels", "give 32 or 40,")),
        ({"img_size": (64, 30)}, ("--input-size with a side of 30 ", "patches of 16 pixels", "give 16 or 32,")),
        ({"img_size": 3}, ("--img-size 3 ", "give 16,", "dynamic_img_pad=True")),
        ({"num_heads": 5}, ("num_heads=5", "divisible")),
        ({"class_token": False}, ("class_token=False",)),  # not every timm says why
        ({"global_pool": "most"}, ("global_pool=most",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_in_the_arguments_is_explained_in_one_line(arguments, parts):
    text = message("kat_tiny_patch16_224", **arguments)
    for part in parts:
        assert part in text


def test_weights_that_nobody_published_are_explained():
    assert "No pretrained weights" in message("kat_tiny_gelu_patch16_224", pretrained=True)


@pytest.mark.parametrize(
    "arguments", [{"weight_init": "kan"}, {"checkpoint_path": "no/such/file.pth"}, {"patch_size": 0}, {"embed_dim": 0}]
)
def test_a_mistake_that_timm_does_not_explain_is_explained(arguments):
    reason = message("kat_tiny_patch16_224", **arguments).rsplit(": ", 1)[1]
    assert reason
    assert "Error" not in reason


def test_an_unknown_tag_of_pretrained_weights_is_explained():
    assert "tag (nonsense)" in message("kat_tiny_patch16_224.nonsense")


def test_the_original_error_stays_attached():
    with pytest.raises(InputError) as caught:
        create_model("kat_tiny_patch16_224", den_groups=7, **QUICK)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("error", [ValueError("first line\nsecond line"), RuntimeError("  \n"), KeyError("")])
def test_an_error_of_any_shape_becomes_one_line(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    text = message("kat_tiny_patch16_224")
    assert text.split(": ", 1)[1]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_what_is_not_the_users_mistake_is_left_alone(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(type(error)):
        create_model("kat_tiny_patch16_224")


def test_an_unknown_argument_of_timms_own_models():
    assert "--model-kwargs widht=3: test_resnet takes no widht" in message(
        "test_resnet", img_size=None, depth=None, weight_init=None, widht=3
    )


def test_an_image_size_that_is_padded():
    model = create_model(
        "kat_tiny_patch16_224", **QUICK | {"img_size": 33}, dynamic_img_size=True, dynamic_img_pad=True
    )
    assert model(torch.zeros(1, 3, 33, 33)).shape == (1, 1000)


@pytest.mark.parametrize(("offline", "words"), [(False, "cannot be reached"), (True, "was not downloaded before")])
def test_a_hub_that_cannot_be_reached(offline, words, monkeypatch):
    logger = logging.getLogger("huggingface_hub.utils")
    told = logger.isEnabledFor(logging.WARNING)

    def fail(*args, **kwargs):
        assert not logger.isEnabledFor(logging.WARNING)  # of each retry
        raise LocalEntryNotFoundError("look at your cable")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(InputError, match=words) as caught:
        create_model("kat_tiny_patch16_224", pretrained=True)
    assert isinstance(caught.value, UnreachableError) != offline
    assert logger.isEnabledFor(logging.WARNING) is told
