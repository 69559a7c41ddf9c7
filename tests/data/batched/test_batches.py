"""Batches of drawn images, from workers to the device."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.loader import PrefetchLoader

pytest.importorskip("triton")

from flashkat.data.batched.augment import normalised
from flashkat.data.batched.batches import Collate, Drawing, Prefetcher
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
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [245, 20]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "is_view"), [((3, 3, 24, 20), True), ((2, 4, 33, 64), False), ((1, 1, 7, 5), True)])
def test_images_are_normalised_to_the_bits_of_pytorch(device, dtype, shape, is_view):
    """A view of (B, H, W, C), or (B, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    count, channels, height, width = shape
    made = (count, height, width, channels) if is_view else shape
    images = torch.randint(0, 256, made, generator=generator, dtype=torch.uint8).to(device)
    images = images.permute(0, 3, 1, 2) if is_view else images
    mean, std = (torch.rand(1, channels, 1, 1, generator=generator).mul(255).to(device, dtype) for _ in range(2))
    found = normalised(images, mean, std)
    assert found.is_contiguous()
    expected = images.to(dtype).sub_(mean).div_(std)
    # Triton's interpreter truncates to bfloat16.
    is_rough = dtype == torch.bfloat16 and device.type == "cpu"
    torch.testing.assert_close(found, expected.contiguous(), rtol=0.02 if is_rough else 0, atol=0.02 if is_rough else 0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_ahead_are_those_of_timm(dtype):
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randint(0, 256, (4, 3, 32, 24), generator=generator, dtype=torch.uint8), torch.tensor([number] * 4))
        for number in range(5)
    ]
    expected, found = (
        list(loader(batches, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 3, torch.device("cuda"), dtype))
        for loader in (PrefetchLoader, Prefetcher)
    )
    assert len(found) == 5
    for (images, target), (own_images, own_target) in zip(expected, found, strict=True):
        assert torch.equal(images, own_images)
        assert torch.equal(target, own_target)


@pytest.mark.gpu
def test_pinned_batches_give_the_same(device):
    batch, _ = Collate((0, 0, 0))([(_drawn([(Operation.BRIGHTNESS, (0.5,))], 10), 1)])
    pinned = batch.pin_memory()
    assert pinned.images.is_pinned()
    assert pinned.steps.is_pinned()
    assert torch.equal(pinned.to(device, non_blocking=True), batch.to(device))
