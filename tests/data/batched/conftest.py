"""Images and the augmentations that timm makes of a policy's name."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from flashkat.data.augment import mend_posterize

HEIGHT, WIDTH = 24, 20


@pytest.fixture(scope="session")
def device():
    """Where Triton kernels run: on a GPU, or interpreted."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def pictures():
    """Images of noise, of ramps, of one colour, and of a narrow range."""
    generator = np.random.default_rng(0)

    def pixels(index):
        kind, shape = index % 4, (HEIGHT, WIDTH, 3)
        if kind == 0:
            return generator.integers(0, 256, shape)
        if kind == 1:
            return np.linspace(generator.integers(0, 60), generator.integers(150, 256), HEIGHT * WIDTH * 3).reshape(
                shape
            )
        if kind == 2:
            return np.full(shape, generator.integers(0, 250)) + np.arange(3)
        return generator.normal(128, 20, shape)

    return [Image.fromarray(pixels(index).clip(0, 255).astype(np.uint8)) for index in range(16)]


@pytest.fixture
def secondary():
    """Return timm's transforms after the crop."""

    def make(policy, **options):
        options = {"color_jitter": 0.4, "interpolation": "random", **options}
        made = create_transform(
            (3, HEIGHT, WIDTH), is_training=True, auto_augment=policy or None, separate=True, **options
        )
        mend_posterize(made)
        return made[1].transforms

    return make


@pytest.fixture
def seeded():
    """Seed all random states that timm draws from."""

    def seed(number):
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)

    return seed


@pytest.fixture
def as_batch(device):
    """Put images together as the kernels take them."""
    return lambda images: torch.from_numpy(np.stack([np.asarray(each) for each in images])).to(device)
