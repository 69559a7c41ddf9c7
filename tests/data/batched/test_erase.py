"""Boxes that one launch fills."""

import pytest
import torch

pytest.importorskip("triton")
from flashkat.data.batched import augment, erase, resize
from flashkat.data.batched.erase import fill_boxes

BOXES = [(1, 0, 3, 2, 7), (4, 39, 40, 0, 30), (2, 5, 5, 1, 9), (0, 0, 40, 0, 30)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_pixel", [True, False])
@pytest.mark.parametrize("channels", [3, 1])
def test_boxes_are_filled_and_nothing_else(device, dtype, per_pixel, channels):
    torch.manual_seed(0)
    images = torch.randn(6, channels, 40, 30).to(device, dtype)
    filling = torch.randn(len(BOXES), channels, *((40, 30) if per_pixel else (1, 1))).to(device, dtype)
    expected = images.clone()
    for value, (index, top, bottom, left, right) in zip(filling, BOXES, strict=True):
        expected[index, :, top:bottom, left:right] = value[:, top:bottom, left:right] if per_pixel else value
    fill_boxes(images, torch.tensor(BOXES).to(device), filling)
    assert torch.equal(images, expected)


def test_a_launch_is_kept_for_one_dtype_and_device():
    """Once compiled, it takes pointers alone. So it would write numbers of another size."""
    shape, devices = torch.Size((3, 40, 30)), [torch.device("cuda", index) for index in range(2)]
    dtypes = [torch.float32, torch.bfloat16]
    assert len({erase._launch(device, dtype, 4, shape, True) for device in devices for dtype in dtypes}) == 4
    assert len({augment._launches(device, 4, 40, 30, (0, 0, 0)) for device in devices}) == 2
    assert len({resize._launches(device, 4, 40, 30, (8, 8), (0, 0, 8, 8), True) for device in devices}) == 2
