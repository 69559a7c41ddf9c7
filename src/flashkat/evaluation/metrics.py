"""Sum loss and accuracy over batches and processes."""

import math
from dataclasses import dataclass, field

import torch
from timm.utils import accuracy

from ..data.checks import NO_IMAGES
from ..errors import InputError
from ..system import distributed
from .nonfinite import count_outputs

__all__ = ["Metrics"]


@dataclass(frozen=True)
class Metrics:
    """Averages over all images: cross-entropy, and top-1 and top-5 accuracy in percent.

    Attributes:
        loss: mean cross-entropy.
        top1: accuracy in percent.
        top5: top-5 accuracy in percent.
        images: how many these are of.
        nonfinite: how many of them gave outputs that are not finite.
    """

    loss: float
    top1: float
    top5: float
    images: int = field(default=0, compare=False)
    nonfinite: int = field(default=0, compare=False)


class Meters:
    """Sums over a data set. They stay in one tensor, so that an update does not synchronise with the GPU."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: torch.Tensor | None = None
        self._last: torch.Tensor | None = None
        self._nonfinite: torch.Tensor | int = 0
        self._earlier = [0.0, 0.0, 0.0, 0.0]

    def update(self, output: torch.Tensor, target: torch.Tensor, loss: torch.Tensor) -> None:
        """Add a batch: logits (B, classes), classes (B,) and the mean loss."""
        self._last = self.measure(output, target, loss)
        self.count += len(target)
        self._nonfinite = self._nonfinite + count_outputs(output)

    def measure(
        self, output: torch.Tensor, target: torch.Tensor, loss: torch.Tensor, *, only_finite: bool = False
    ) -> torch.Tensor:
        """Add a batch to the sums on its device, but not to ``count``. CUDA graphs can capture all calls but the first.

        Args:
            output: logits (B, classes).
            target: classes (B,).
            loss: mean loss of the batch.
            only_finite: leave the batch out of the averages if its loss is not finite.

        Returns:
            Loss, top-1 and top-5 of the batch (3,).
        """
        values = [loss.detach(), *accuracy(output.detach(), target, topk=(1, 5))]
        if self._sums is None:
            # A float32 sum over ImageNet would lose whole images.
            dtype = torch.float32 if loss.device.type == "mps" else torch.float64
            self._sums = torch.tensor(self._earlier, dtype=dtype, device=loss.device)
        batch = torch.stack([value.to(self._sums.dtype) for value in values])
        if only_finite:
            # A batch that is left out adds its size alone.
            is_finite = batch[:1].isfinite()
            self._sums[3:] += ~is_finite * len(target)
            self._sums[:3] += batch.nan_to_num(0.0, 0.0, 0.0) * is_finite * len(target)
        else:
            self._sums[:3] += batch * len(target)
        return batch

    def last(self) -> list[float]:
        """Return loss, top-1 and top-5 of the last batch."""
        return [0.0, 0.0, 0.0] if self._last is None else self._last.tolist()

    def sums(self) -> list[float]:
        """Return this process's sums of loss, top-1 and top-5, then the number of images that these are of."""
        *sums, left_out = self._earlier if self._sums is None else self._sums.tolist()
        return [*sums, self.count - int(left_out)]

    def add(self, sums: list[float]) -> None:
        """Start from the :meth:`sums` of earlier batches."""
        self._earlier, self.count = [*sums[:3], 0.0], int(sums[3])

    def reset(self) -> None:
        """Start a new pass."""
        self._earlier, self.count, self._nonfinite = [0.0, 0.0, 0.0, 0.0], 0, 0
        if self._sums is not None:
            self._sums.zero_()

    def metrics(self) -> Metrics:
        """Return the averages over the images of all processes, which call this together.

        They are NaN if all batches were left out.

        Raises:
            InputError: no process has seen an image.
        """
        loss, top1, top5, count, nonfinite = distributed.total([*self.sums(), int(self._nonfinite)])
        if not count:
            if distributed.total([self.count])[0]:
                return Metrics(math.nan, math.nan, math.nan)
            raise InputError(NO_IMAGES)
        return Metrics(loss / count, top1 / count, top5 / count, int(count), int(nonfinite))
