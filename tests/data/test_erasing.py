"""Erasing a batch at once erases what timm erases image by image."""

import pytest
import torch
from timm.data.random_erasing import RandomErasing

from flashkat.data.erasing import BatchErasing
from flashkat.system.random import isolated, random_state

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
UNTOUCHED = 9.0


def timm_erasing(device, **settings):
    return RandomErasing(0.5, device=torch.device(device), **settings)


def images(device, count=64, dtype=torch.float32):
    return torch.full((count, 3, 32, 24), UNTOUCHED, dtype=dtype, device=device)


def as_timm(erasing, images, seed):
    with isolated(seed):
        return erasing(images)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", [{}, {"max_count": 3}, {"num_splits": 2}], ids=str)
@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erases_where_timm_does(device, settings, mode):
    erasing = timm_erasing(device, mode=mode, **settings)
    for seed in range(3):
        expected = as_timm(erasing, images(device), seed)
        found = BatchErasing(erasing)(images(device), seed)
        assert torch.equal(found == UNTOUCHED, expected == UNTOUCHED)
        if mode == "const":
            assert torch.equal(found, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_normal_for_each_pixel_or_each_channel(device, dtype):
    for mode in ("pixel", "rand"):
        found = BatchErasing(timm_erasing(device, mode=mode))(images(device, 2000, dtype), seed=1)
        assert found.dtype == dtype
        values = found[found != UNTOUCHED].double()
        assert abs(values.mean()) < 0.1
        assert abs(values.std() - 1) < 0.05
        first = found[(found != UNTOUCHED).flatten(1).any(1)][0, 0]
        assert (len(first[first != UNTOUCHED].unique()) == 1) == (mode == "rand")


@pytest.mark.parametrize("device", DEVICES)
def test_follows_from_the_seed_alone(device):
    erasing = BatchErasing(timm_erasing(device, mode="pixel"))
    before = str(random_state())
    first = erasing(images(device), 1)
    assert str(random_state()) == before
    assert not torch.equal(first, erasing(images(device), 2))
    assert torch.equal(first, erasing(images(device), 1))


def test_nothing_to_erase():
    never = RandomErasing(0.0, device=torch.device("cpu"))
    assert torch.equal(BatchErasing(never)(images("cpu"), 1), images("cpu"))
