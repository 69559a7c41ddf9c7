"""timm's random erasing of a batch on the device, in some operations in all, not some for each image.

One by one, erasing a quarter of a batch's images takes the training process as long as launching much of its model.
"""

from collections.abc import Sequence
from copy import copy
from itertools import groupby
from typing import Any

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ..system.random import isolated

__all__ = ["BatchErasing"]


class BatchErasing:
    """Erases what timm would in the images of a batch, with random numbers that follow from a seed.

    Args:
        erasing: says what is erased how: its boxes are those that timm would draw from the same seed. What fills them
            is of the same distribution.
    """

    def __init__(self, erasing: RandomErasing) -> None:
        self.erasing = erasing
        self._generator = torch.Generator(erasing.device)
        # What this one fills boxes with is thrown away.
        self._drawing = copy(erasing)
        self._drawing.per_pixel = self._drawing.rand_color = False
        self._drawing.device = torch.device("cpu")

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Erase in place: images (N, C, H, W), floating-point, on the device that timm's erasing was made for."""
        drawn = _Boxes(images)
        with isolated(seed):
            self._drawing(drawn)
        self._generator.manual_seed(seed)
        for boxes in drawn.layers():
            self._erase(images, boxes)
        return images

    def _erase(self, images: Tensor, boxes: Sequence[Sequence[int]]) -> None:
        """Erase a box of each image that has one, given as its index, first and last rows, first and last columns."""
        # From other memory than pinned the copy would wait for all that the GPU has still to do.
        corners = torch.tensor(boxes, pin_memory=images.is_cuda).to(images.device, non_blocking=True)
        index, (top, bottom, left, right) = corners[:, 0], corners[:, 1:, None].unbind(1)
        height, width = images.shape[-2:]
        rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
        is_row, is_column = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
        inside = (is_row[:, :, None] & is_column[:, None, :]).unsqueeze(1)
        chosen = images.index_select(0, index)
        images.index_copy_(0, index, torch.where(inside, self._filling(chosen), chosen))

    def _filling(self, images: Tensor) -> Tensor:
        """Noise for each pixel or each channel of an image, or zeros."""
        shape = images.shape if self.erasing.per_pixel else (*images.shape[:2], 1, 1)
        if not (self.erasing.per_pixel or self.erasing.rand_color):
            return images.new_zeros(shape)
        return torch.randn(shape, generator=self._generator, dtype=images.dtype, device=images.device)


class _Boxes:
    """Takes a batch's place, and notes which parts of its images are written to."""

    def __init__(self, images: Tensor) -> None:
        self.dtype = images.dtype
        self._size, self._image = images.size(), 0
        self._boxes: list[tuple[int, ...]] = []

    def size(self) -> torch.Size:
        return self._size

    def __getitem__(self, index: int) -> "_Boxes":
        self._image = index
        return self

    def __setitem__(self, part: tuple[slice, slice, slice], pixels: Any) -> None:
        _, rows, columns = part
        self._boxes.append((self._image, rows.start, rows.stop, columns.start, columns.stop))

    def layers(self) -> list[list[tuple[int, ...]]]:
        """The first box of each image, then the second of those that have one, and so on: later ones cover earlier."""
        boxes = [list(found) for _, found in groupby(self._boxes, key=lambda box: box[0])]
        return [
            [found[layer] for found in boxes if layer < len(found)] for layer in range(max(map(len, boxes), default=0))
        ]
