"""Weights for other images: which grid positions are of, and the channels of patches."""

import pytest
import timm
import torch
from foreign import ours

from flashkat.checkpoints.adapt import source_grid, stated_size, with_channels, with_grid
from flashkat.errors import InputError


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_channels_are_adapted_as_timm_does(channels, dtype):
    weight = torch.randn(5, 3, 2, 2).to(dtype)
    assert torch.equal(with_channels(weight, channels), timm.models.adapt_input_conv(channels, weight))


@pytest.mark.parametrize(("given", "wanted"), [(1, 3), (2, 4), (4, 1), (6, 1), (4, 8)])
def test_equal_channels_give_the_same_sum(given, wanted):
    weight = torch.randn(5, given, 2, 2)
    torch.testing.assert_close(with_channels(weight, wanted).sum(dim=1), weight.sum(dim=1))


def test_channels_are_repeated_in_turn():
    weight = torch.randn(5, 4, 2, 2)
    torch.testing.assert_close(with_channels(weight, 3), weight[:, :3] * (4 / 3))
    torch.testing.assert_close(with_channels(weight, 6), weight[:, [0, 1, 2, 3, 0, 1]] * (4 / 6))


@pytest.mark.parametrize(
    ("args", "size"),
    [
        ({"img_size": 32}, (32, 32)),
        ({"img_size": [32, 16]}, (32, 16)),
        ({"img_size": 32, "input_size": [3, 64, 16]}, (64, 16)),
        ({"img_size": 32, "model_kwargs": {"img_size": 48}}, (48, 48)),
        ({"img_size": None, "input_size": None, "model_kwargs": {}}, None),
        ({"img_size": "32", "input_size": [3, 64], "model_kwargs": [1]}, None),
        ({"img_size": True, "input_size": [3, 64.0, -1]}, None),
        ([1], None),
    ],
)
def test_sizes_that_arguments_state(args, size):
    assert stated_size({"args": args}) == size
    assert stated_size({}) is None


def grid_of(model, tokens, size=None, **more):
    state = {**model.state_dict(), "pos_embed": torch.zeros(1, tokens, 48), **more}
    return [source_grid(model, state, size, "a.pth", is_start=is_start) for is_start in (False, True)]


def test_grids():
    model = ours(img_size=(16, 72))  # of 2 x 9 patches of 8 pixels
    assert grid_of(model, 19) == [(2, 9), (2, 9)]
    assert grid_of(model, 19, (24, 48)) == [(3, 6), (3, 6)]
    assert grid_of(model, 19, (24, 24)) == [(2, 9), (2, 9)]  # which the weights contradict
    assert grid_of(model, 17) == [(4, 4), (4, 4)]
    with pytest.raises(InputError, match="has 20 positions, which are no square"):
        grid_of(model, 21)


def test_weights_to_start_from_may_be_those_that_are_published():
    model = ours(img_size=(8 * 7, 8 * 112))  # as many patches as 224 x 224 pixels have
    assert grid_of(model, 785) == [(7, 112), (28, 28)]


@pytest.mark.parametrize("more", [{"reg_token": torch.zeros(1, 2, 48)}, {"pos_embed": torch.zeros(21, 48)}], ids=str)
def test_weights_of_another_kind_have_no_grid(more):
    assert grid_of(ours(), 21, **more) == [None, None]


@pytest.mark.parametrize("kwargs", [{}, {"class_token": False, "global_pool": "avg"}, {"no_embed_class": True}])
def test_positions_alone_are_resampled(kwargs):
    model = ours(img_size=(16, 32), **kwargs)
    first = 0 if kwargs else 1
    embedding = torch.randn(1, first + 8, 48)
    assert with_grid(embedding, (2, 4), model) is embedding
    found = with_grid(embedding, (4, 2), model)
    assert torch.equal(found[:, :first], embedding[:, :first])
    plain = timm.layers.resample_abs_pos_embed(embedding[:, first:], (2, 4), (4, 2), num_prefix_tokens=0)
    assert torch.equal(found[:, first:], plain)
