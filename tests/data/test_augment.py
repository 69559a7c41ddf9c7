"""timm's policies with every Pillow."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp

from flashkat.data.augment import mend_posterize


@pytest.mark.parametrize("name", ["Posterize", "PosterizeIncreasing", "PosterizeOriginal"])
def test_no_bits_give_a_black_image(name):
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    level = {"Posterize": 0, "PosterizeIncreasing": 10, "PosterizeOriginal": 0}[name]
    operation = AugmentOp(name, prob=1.0, magnitude=level)
    expected = operation(image) if name == "PosterizeOriginal" else Image.new("RGB", (4, 4))
    mend_posterize(operation)
    assert np.array_equal(np.asarray(operation(image)), np.asarray(expected))


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m1", "rand-m15-mstd0.5", "v0", "3a", "augmix-m3-w3"])
@pytest.mark.parametrize("separate", [False, True])
def test_policies(policy, separate):
    transforms = create_transform(16, is_training=True, auto_augment=policy, separate=separate)
    mend_posterize(transforms)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for seed in range(150):
        for draw in (random.seed, np.random.seed, torch.manual_seed):
            draw(seed)
        result = image
        for each in transforms if separate else (transforms,):
            result = each(result)


def test_what_is_drawn_stays_the_same():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    plain, mended = (create_transform(16, is_training=True, auto_augment="rand-m9-inc1") for _ in range(2))
    mend_posterize(mended)
    compared = 0
    for seed in range(60):
        results = []
        for transform in (plain, mended):
            for draw in (random.seed, np.random.seed, torch.manual_seed):
                draw(seed)
            try:
                results.append(transform(image))
            except ValueError:
                break
        else:
            assert torch.equal(*results)
            compared += 1
    assert compared > 30
