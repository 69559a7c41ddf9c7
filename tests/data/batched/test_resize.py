"""Parts of images, resized and flipped by kernels, against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from flashkat.data.batched.encoded import Cut

pytest.importorskip("triton")
from flashkat.data.batched.resize import resized

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


@pytest.mark.parametrize(
    ("sides", "size", "window"),
    [
        ((9, 20), (33, 7), (0, 0, 33, 7)),
        ((1, 1), (5, 3), (0, 0, 5, 3)),
        ((20, 128), (6, 160), (1, 90, 5, 60)),  # several programs along a line, a window, and columns first
        ((40, 40), (20, 24), (0, 0, 20, 24)),  # rows or columns first
        pytest.param((128, 128), (224, 224), (0, 0, 224, 224), marks=pytest.mark.gpu),
    ],
)
def test_bits_are_pillows(device, sides, size, window):
    drawn = np.random.default_rng(sum(sides))
    images = drawn.integers(0, 256, (3, *sides, 3)).astype(np.uint8)
    cuts, places = [], [2, 0, 1, 2]
    for number in range(len(places)):
        height, width = (int(drawn.integers(1, side + 1)) for side in sides)
        top, left = (int(drawn.integers(0, side - part + 1)) for side, part in zip(sides, (height, width), strict=True))
        way = (BILINEAR, BICUBIC)[number % 2]
        cuts.append(Cut((top, left, height, width), size, window[:2], way, number > 1, number in (1, 2)))
    numbers = [
        [place, *cut.box, cut.resampling == BICUBIC, cut.flip_x, cut.flip_y]
        for place, cut in zip(places, cuts, strict=True)
    ]
    found = resized(torch.from_numpy(images).to(device), torch.tensor(numbers).to(device), size, window).cpu()
    for place, cut, one in zip(places, cuts, found, strict=True):
        assert np.array_equal(one, cut.apply(Image.fromarray(images[place]), window[2:]))
