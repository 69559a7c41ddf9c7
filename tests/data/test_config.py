"""How images are read and normalised, from a configuration and a model."""

import pytest

from flashkat.data.config import Data, data_config
from flashkat.errors import InputError
from flashkat.models import create_model


@pytest.fixture(scope="module")
def model():
    return create_model("kat_tiny_patch16_224", depth=1, embed_dim=16, num_heads=2, img_size=32)


@pytest.mark.parametrize(
    ("given", "channels"), [({}, 3), ({"in_chans": 1}, 1), ({"in_chans": 1, "input_size": (4, 8, 8)}, 4)]
)
def test_channels(given, channels):
    assert Data(**given).channels == channels


def test_the_model_says_what_is_left_open(model):
    config = data_config(model, Data(), "kat")
    assert config["input_size"] == (3, 224, 224)
    assert (config["interpolation"], config["crop_pct"]) == ("bicubic", 0.875)
    given = data_config(model, Data(img_size=16, crop_pct=1.0, interpolation="bilinear", mean=(0.5,)), "kat")
    assert given["input_size"] == (3, 16, 16)
    assert (given["interpolation"], given["crop_pct"], given["mean"]) == ("bilinear", 1.0, (0.5,) * 3)


def test_grey_images_are_normalised_by_the_average_of_the_channels(model):
    grey, coloured = data_config(model, Data(in_chans=1), "kat"), data_config(model, Data(), "kat")
    for name in ("mean", "std"):
        assert grey[name] == pytest.approx((sum(coloured[name]) / 3,))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mean": (0.1, 0.2)}, "--mean takes 1 or 3 numbers, not 2"),
        ({"std": (0.1, 0.2), "in_chans": 1}, "--std takes 1 number, not 2"),
    ],
)
def test_numbers_that_do_not_fit_the_channels(model, given, words):
    with pytest.raises(InputError, match=words):
        data_config(model, Data(**given), "kat")
