"""Loss and accuracy, summed over batches and processes."""

from dataclasses import dataclass

import torch
from timm.utils import AverageMeter, accuracy

from ..errors import InputError
from ..system import distributed

__all__ = ["Metrics"]


@dataclass(frozen=True)
class Metrics:
    """Averages over all images: cross-entropy, and top-1 and top-5 accuracy in percent."""

    loss: float
    top1: float
    top5: float


class Meters:
    """Running averages of a pass over a data set, kept as tensors so that a GPU need not wait for the host."""

    def __init__(self) -> None:
        self.loss, self.top1, self.top5 = AverageMeter(), AverageMeter(), AverageMeter()

    def update(self, output: torch.Tensor, target: torch.Tensor, loss: torch.Tensor) -> None:
        top1, top5 = accuracy(output.detach(), target, topk=(1, 5))
        for meter, value in ((self.loss, loss.detach()), (self.top1, top1), (self.top5, top5)):
            # In float32 the sum over ImageNet would lose whole images.
            meter.update(value if value.device.type == "mps" else value.double(), len(target))

    def sums(self) -> list[float]:
        """The sums of this process, and over how many images."""
        return [*(float(meter.sum) for meter in (self.loss, self.top1, self.top5)), self.loss.count]

    def add(self, sums: list[float]) -> None:
        """Add the :meth:`sums` of earlier batches."""
        for meter, value in zip((self.loss, self.top1, self.top5), sums[:3], strict=True):
            meter.sum += value
            meter.count += int(sums[3])

    def metrics(self) -> Metrics:
        """The averages over the images of all processes, which call this together.

        Raises:
            InputError: none of them has seen an image.
        """
        *sums, count = distributed.total(self.sums())
        if not count:
            raise InputError(
                "a whole pass over the data gave no images: see what its files hold, and --input-key and --target-key"
            )
        return Metrics(*(value / count for value in sums))
