"""Evaluate models in one pass over a data set."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..data.bad_images import SKIPPED
from ..data.order import own_images
from .metrics import Meters, Metrics

__all__ = ["evaluate", "prepared"]


class _Views(nn.Module):
    """A model's mean output over views of each image (test-time augmentation).

    The views are the image, its mirror image, then both shifted towards each corner.
    """

    def __init__(self, model: nn.Module, views: int) -> None:
        super().__init__()
        self.model, self.views = model, views

    def forward(self, images: Tensor) -> Tensor:
        return sum(self.model(view) for view in self._of(images)) / self.views

    def _of(self, images: Tensor) -> Iterator[Tensor]:
        # A fourteenth of the side: the farthest that a crop of 87.5% can be from the centre.
        step = max(1, images.shape[-1] // 14)
        moves = [(0, 0), (-step, -step), (-step, step), (step, -step), (step, step)]
        for index in range(self.views):
            moved = _moved(images, *moves[index // 2])
            yield moved.flip(-1) if index % 2 else moved


def _moved(images: Tensor, down: int, right: int) -> Tensor:
    """Return images (B, C, H, W) shifted by pixels down and right. The edges repeat."""
    if not down and not right:
        return images
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right).clamp(0, width - 1)
    return images.index_select(-2, rows).index_select(-1, columns)


class _EvenBatches(nn.Module):
    """A compiled model whose smaller batches are padded to the largest size so far, as each size is compiled anew.

    Padding is cheaper than code for dynamic sizes. It also works with modes that need one size (reduce-overhead).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.size = model, 0

    def forward(self, images: Tensor) -> Tensor:
        count = len(images)
        self.size = max(self.size, count)
        if count < self.size:
            # pad takes the last dimension first, so the batch's end comes last.
            images = nn.functional.pad(images, [0] * (2 * images.ndim - 1) + [self.size - count])
        return self.model(images)[:count]


def prepared(model: nn.Module, is_compiled: bool, views: int) -> nn.Module:
    """Wrap a model for a pass over a data set.

    Args:
        model: gives logits (B, classes).
        is_compiled: pad smaller batches to one size.
        views: views of each image whose outputs are averaged; 0 and 1 are the image alone.
    """
    if is_compiled:
        model = _EvenBatches(model)
    return _Views(model, views) if views > 1 else model


# Not inference mode: FSDP keeps the tensors that it first makes here, and training could not change them in place.
# Sharded weights that are saved meanwhile could not be detached.
@torch.no_grad()
def evaluate(
    models: Mapping[str, nn.Module],
    loader: Any,
    precision: AbstractContextManager,
    on_batch: Callable[[int, Meters], None] = lambda index, meters: None,
    may_skip: bool = False,
) -> dict[str, Metrics]:
    """Evaluate models in one pass over all batches of a loader.

    Several processes evaluate a share each.

    Args:
        models: by name; each gives logits (B, classes).
        loader: yields images (B, C, H, W) and labels (B,), on the models' device.
        precision: the context of the forward passes.
        on_batch: called after each batch with its index and the first model's meters of this process.
        may_skip: whether bad images are skipped. Their replacements are not counted.

    Returns:
        By name, the averages over the images of all processes.
    """
    meters = {name: Meters() for name in models}
    for model in models.values():
        model.eval()
    own, seen = own_images(loader), 0
    for index, (images, target) in enumerate(loader):
        count = len(target) if own is None else min(len(target), own - seen)
        target, seen = target[:count], seen + count
        kept = target != SKIPPED if may_skip else slice(None)
        target = target[kept]
        for name, model in models.items():
            with precision:
                output = model(images)[:count][kept]
            if len(target):
                meters[name].update(output, target, nn.functional.cross_entropy(output.float(), target))
        on_batch(index, next(iter(meters.values())))
    return {name: each.metrics() for name, each in meters.items()}
