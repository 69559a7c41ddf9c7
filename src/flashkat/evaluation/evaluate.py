"""One pass of models over a data set."""

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
    """A model's mean output for views of each image: itself, its mirror image, then both moved towards the corners."""

    def __init__(self, model: nn.Module, views: int) -> None:
        super().__init__()
        self.model, self.views = model, views

    def forward(self, images: Tensor) -> Tensor:
        return sum(self.model(view) for view in self._of(images)) / self.views

    def _of(self, images: Tensor) -> Iterator[Tensor]:
        # Every fourteenth of the side, as far as a crop of 87.5% may be from the centre.
        step = max(1, images.shape[-1] // 14)
        moves = [(0, 0), (-step, -step), (-step, step), (step, -step), (step, step)]
        for index in range(self.views):
            moved = _moved(images, *moves[index // 2])
            yield moved.flip(-1) if index % 2 else moved


def _moved(images: Tensor, down: int, right: int) -> Tensor:
    """Images moved by some pixels; what comes in at the edges repeats them."""
    if not down and not right:
        return images
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right).clamp(0, width - 1)
    return images.index_select(-2, rows).index_select(-1, columns)


class _EvenBatches(nn.Module):
    """A compiled model's outputs, for which batches smaller than one before are filled up: a new size is compiled anew.

    That is cheaper than code for any size, and leaves modes that need one size, such as reduce-overhead, to be chosen.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.size = model, 0

    def forward(self, images: Tensor) -> Tensor:
        count = len(images)
        self.size = max(self.size, count)
        if count < self.size:
            # At the end of the first dimension, which is the last that it names.
            images = nn.functional.pad(images, [0] * (2 * images.ndim - 1) + [self.size - count])
        return self.model(images)[:count]


def prepared(model: nn.Module, is_compiled: bool, views: int) -> nn.Module:
    """Wrap a model for a pass over a data set: even batches if it is compiled, several views of each image if asked."""
    if is_compiled:
        model = _EvenBatches(model)
    return _Views(model, views) if views > 1 else model


@torch.inference_mode()
def evaluate(
    models: Mapping[str, nn.Module],
    loader: Any,
    precision: AbstractContextManager,
    on_batch: Callable[[int, Meters], None] = lambda index, meters: None,
    may_skip: bool = False,
) -> dict[str, Metrics]:
    """Evaluate models, by name, in one pass over all batches of a loader.

    Several processes evaluate a share each, and get the averages over all. ``on_batch`` sees those of the share so far,
    of the first model. Where images ``may_skip``, those that another one stands for are not counted.
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
