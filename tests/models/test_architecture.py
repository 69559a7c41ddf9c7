"""A file's arguments of a model are numbers within bounds. tests/project/test_strangers.py has the attacks."""

import pytest

from flashkat.errors import InputError
from flashkat.models.architecture import check_arguments, check_fits_file, check_images, check_name


def test_an_architecture_is_taken_as_it_is():
    arguments = {
        "depth": 2,
        "embed_dim": 64,
        "num_heads": 4,
        "patch_size": 4,
        "m": 6,
        "n": 4,
        "act_init": "leaky_relu_0.1",
    }
    arguments["num_groups"] = 0
    assert check_arguments(arguments, "a.pth") == arguments


@pytest.mark.parametrize("key", ["pretrained", "cache_dir", "pretrained_cfg_overlay", "checkpoint_path", "unheard_of"])
def test_anything_else_is_named(key):
    with pytest.raises(InputError, match=rf"a\.pth.*{key}"):
        check_arguments({key: "x"}, "a.pth")


@pytest.mark.parametrize(
    "arguments", [{"depth": 10**7}, {"depth": -1}, {"depth": "2"}, {"depth": True}, {"act_init": "a.b"}, ["depth"]]
)
def test_values_out_of_bounds(arguments):
    with pytest.raises(InputError, match=r"a\.pth"):
        check_arguments(arguments, "a.pth")


def test_names_are_those_of_the_registry():
    check_name("kat_tiny_patch16_224", "a.pth")
    for name in ("hf-hub:someone/x", "local-dir:/etc", "no_such_model"):
        with pytest.raises(InputError, match=r"a\.pth"):
            check_name(name, "a.pth")


def test_images_have_a_size():
    check_images({"img_size": 32, "in_chans": 3}, "a.pth")
    with pytest.raises(InputError, match="img_size"):
        check_images({"img_size": 10**9}, "a.pth")


def test_images_are_resized_in_a_way_that_timm_knows():
    for name in (None, "", "lanczos"):
        check_images({"interpolation": name}, "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: interpolation has to be one of bilinear, .*, not 'zz'"):
        check_images({"interpolation": "zz"}, "a.pth")


def test_a_file_holds_about_as_many_weights_as_its_model():
    tiny = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 4, "img_size": 8}
    check_fits_file("kat_tiny_patch16_224", tiny, 10**6, "a.pth")
    with pytest.raises(InputError, match=r"a\.pth"):
        check_fits_file("kat_tiny_patch16_224", {"depth": 100, "embed_dim": 4096, "num_heads": 8}, 10, "a.pth")
