"""Batches of drawn images, from workers to the device."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("triton")

from flashkat.data.batched.batches import Collate, Drawing
from flashkat.data.batched.steps import Operation


class Fixed:
    """A recipe that always draws the same steps."""

    def __init__(self, steps):
        self.steps = steps

    def draw(self, size):
        return self.steps


def _drawn(steps, value):
    turn = Drawing(lambda image: image.transpose(Image.Transpose.ROTATE_90), Fixed(steps))
    return turn(Image.fromarray(np.full((4, 6, 3), value, dtype=np.uint8)))


def test_images_are_cropped_first_and_augmented_on_the_device(device):
    batch, labels = Collate((0, 0, 0))([(_drawn([(Operation.INVERT, ())], 10), 1), (_drawn([], 20), 3)])
    assert labels.tolist() == [1, 3]
    assert batch.images.shape == (2, 6, 4, 3)
    images = batch.to(device)
    assert images.shape == (2, 3, 6, 4)
    assert images.is_contiguous()
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [245, 20]


@pytest.mark.gpu
def test_pinned_batches_give_the_same(device):
    batch, _ = Collate((0, 0, 0))([(_drawn([(Operation.BRIGHTNESS, (0.5,))], 10), 1)])
    pinned = batch.pin_memory()
    assert pinned.images.is_pinned()
    assert pinned.steps.is_pinned()
    assert torch.equal(pinned.to(device, non_blocking=True), batch.to(device))
