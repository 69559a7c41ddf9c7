"""Batches whose augmentation workers draw and the GPU applies, one batch ahead of training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.loader import PrefetchLoader
from torch import Tensor

from ...ops.dispatch import is_triton
from .steps import Recipe, Step, as_table

__all__ = ["Collate", "Drawing", "DrawnBatch", "Prefetcher"]


class Drawing:
    """A data set's transform: crop and flip an image, and draw its further steps.

    Args:
        primary: timm's transform of crop and flips.
        recipe: draws the steps.
    """

    def __init__(self, primary: Callable[[Image.Image], Image.Image], recipe: Recipe) -> None:
        self.primary, self.recipe = primary, recipe

    def __call__(self, image: Image.Image) -> tuple[np.ndarray, list[Step]]:
        image = self.primary(image)
        return np.asarray(image), self.recipe.draw(image.size)


@dataclass
class DrawnBatch:
    """Images and the steps to apply to them. timm's prefetcher takes it for a tensor of images.

    Attributes:
        images: (B, H, W, 3) in uint8.
        steps: their steps, see :func:`flashkat.data.batched.steps.as_table`.
        fill: the colour of places that an affine map leaves empty.
    """

    images: Tensor
    steps: Tensor
    fill: tuple[int, ...]

    def pin_memory(self) -> "DrawnBatch":
        """Return a copy in pinned memory, as PyTorch's loader asks for."""
        return DrawnBatch(self.images.pin_memory(), self.steps.pin_memory(), self.fill)

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        """Return the augmented images on a GPU: (B, 3, H, W) in uint8, a view of (B, H, W, 3).

        The steps run on the current stream.
        """
        from .augment import apply_steps  # imports Triton, which only GPUs need

        images, steps = (each.to(device, non_blocking=non_blocking) for each in (self.images, self.steps))
        return apply_steps(images, steps, self.fill).permute(0, 3, 1, 2)


class Collate:
    """Put the images of :class:`Drawing` and their labels together.

    Args:
        fill: see :class:`DrawnBatch`.
    """

    def __init__(self, fill: tuple[int, ...]) -> None:
        self.fill = fill

    def __call__(self, batch: Sequence[tuple[Any, int]]) -> tuple[DrawnBatch, Tensor]:
        drawn, labels = zip(*batch, strict=True)
        images, steps = zip(*drawn, strict=True)
        return DrawnBatch(torch.from_numpy(np.stack(images)), as_table(steps), self.fill), torch.tensor(labels)


class Prefetcher(PrefetchLoader):
    """timm's PrefetchLoader, which on a GPU normalises a batch in one launch, with the same bits."""

    # One stream for all epochs: the allocator reuses the memory of a stream for that stream alone.
    _stream: torch.cuda.Stream | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not is_triton(self.device):
            yield from super().__iter__()
            return
        stream = self._stream = self._stream or torch.cuda.Stream(self.device)
        ahead = None
        for images, target in self.loader:
            with torch.cuda.stream(stream):
                batch = self._prepared(images, target)
            if ahead is not None:
                yield ahead
            torch.cuda.current_stream(self.device).wait_stream(stream)
            ahead = batch
        if ahead is not None:
            yield ahead

    def _prepared(self, images: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        from .augment import normalised  # imports Triton, which only GPUs need

        images = normalised(images.to(self.device, non_blocking=True), self.mean, self.std)
        if self.random_erasing is not None:
            images = self.random_erasing(images)
        return images, target.to(self.device, non_blocking=True)
