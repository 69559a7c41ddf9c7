"""timm's random erasing for a whole batch, with a few operations in all, not for each image.

Image by image, the host needs about as long for a quarter of a batch as to launch most of a model.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from random import Random

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ..ops.dispatch import is_triton

__all__ = ["BatchErasing"]

# First and last rows, first and last columns.
_Box = tuple[int, int, int, int]


class BatchErasing:
    """Erase the boxes that timm would erase from the same seed, filled from the same distribution.

    Args:
        erasing: timm's settings.
    """

    def __init__(self, erasing: RandomErasing) -> None:
        self.erasing = erasing
        self._generator = torch.Generator(erasing.device)

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Erase in place: images (N, C, H, W), floating-point, on the device that timm's erasing was made for."""
        count, _, height, width = images.shape
        drawn, splits = Random(seed), self.erasing.num_splits
        first = count // splits if splits > 1 else 0
        boxes = [list(self._boxes(drawn, height, width)) for _ in range(first, count)]
        self._generator.manual_seed(seed)
        # The first box of each image, then the second, and so on: later ones cover earlier ones.
        for layer in zip_longest(*boxes):
            self._erase(images, [(index, *box) for index, box in enumerate(layer, start=first) if box])
        return images

    def _boxes(self, drawn: Random, height: int, width: int) -> Iterator[_Box]:
        """Draw an image's boxes exactly as ``RandomErasing._erase`` does."""
        erasing = self.erasing
        if drawn.random() > erasing.probability:
            return
        least, most = erasing.min_count, erasing.max_count
        count = least if least == most else drawn.randint(least, most)
        for _ in range(count):
            for _ in range(10):
                area = drawn.uniform(erasing.min_area, erasing.max_area) * (height * width) / count
                aspect = math.exp(drawn.uniform(*erasing.log_aspect_ratio))
                rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if columns < width and rows < height:
                    top, left = drawn.randint(0, height - rows), drawn.randint(0, width - columns)
                    yield top, top + rows, left, left + columns
                    break

    def _erase(self, images: Tensor, boxes: Sequence[tuple[int, ...]]) -> None:
        """Erase one box in each image that has one, given as the image's index and the box."""
        filling = self._filling(images, len(boxes))
        if is_triton(images.device) and images.is_contiguous():
            from .batched.erase import fill_boxes  # imports Triton, which only GPUs need

            # A copy from pageable memory would wait until the GPU has caught up.
            table = torch.tensor(boxes, pin_memory=images.is_cuda).to(images.device, non_blocking=True)
            fill_boxes(images, table, filling)
            return
        for value, (index, top, bottom, left, right) in zip(filling, boxes, strict=True):
            inside = (..., slice(top, bottom), slice(left, right))
            images[index][inside] = value[inside] if self.erasing.per_pixel else value

    def _filling(self, images: Tensor, count: int) -> Tensor:
        """Draw noise for each pixel or each channel of ``count`` images, or return zeros."""
        channels, *sides = images.shape[1:]
        shape = (count, channels, *sides) if self.erasing.per_pixel else (count, channels, 1, 1)
        if not (self.erasing.per_pixel or self.erasing.rand_color):
            return images.new_zeros(shape)
        return torch.randn(shape, generator=self._generator, dtype=images.dtype, device=images.device)
