"""Format the results of an evaluation: timm's lines and result files."""

import csv
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import AverageMeter
from torch import Tensor, nn

from ..data.bad_images import SKIPPED
from ..system.files import replaced
from .metrics import Meters

__all__ = ["ClassAverages", "Clock", "Result", "progress_line", "result_text", "write_results"]


@dataclass(frozen=True)
class Result:
    """The result of an evaluation.

    Attributes:
        model: name of the model.
        loss: mean cross-entropy.
        top1: accuracy in percent.
        top5: top-5 accuracy in percent.
        parameters: number of the model's parameters.
        img_size: side of the images in pixels.
        crop_pct: side of the crop as a share of the resized image's.
        interpolation: interpolation of the resizing.
        averages: precision, recall and F1 in percent, if they were asked for.
    """

    model: str
    loss: float
    top1: float
    top5: float
    parameters: int
    img_size: int
    crop_pct: float
    interpolation: str
    averages: dict[str, float]

    def row(self) -> dict[str, Any]:
        """Return the result under timm's names, rounded as timm rounds it."""
        return {
            "model": self.model,
            "top1": round(self.top1, 4),
            "top1_err": round(100 - self.top1, 4),
            "top5": round(self.top5, 4),
            "top5_err": round(100 - self.top5, 4),
            **self.averages,
            "param_count": round(self.parameters / 1e6, 2),
            "img_size": self.img_size,
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
        }


class ClassAverages:
    """Precision, recall and F1 in percent, averaged over the classes.

    Args:
        average: ``micro``, ``macro`` or ``weighted``, as in scikit-learn.
        model: gives logits (B, classes); a hook records its predictions.
    """

    def __init__(self, average: str, model: nn.Module) -> None:
        self._average = average
        self._predicted: list[Tensor] = []
        self._targets: list[Tensor] = []
        model.register_forward_hook(lambda module, images, output: self._predicted.append(output.argmax(1).cpu()))

    def seeing(self, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of a loader, and record their targets."""
        for images, target in loader:
            self._targets.append(target.cpu())
            yield images, target

    def result(self) -> dict[str, float]:
        """Return the averages under timm's names."""
        from sklearn.metrics import precision_recall_fscore_support

        targets, predicted = torch.cat(self._targets), torch.cat(self._predicted)
        kept = targets != SKIPPED
        values = precision_recall_fscore_support(targets[kept], predicted[kept], average=self._average, zero_division=0)
        names = ("precision", "recall", "f1_score")
        return {
            f"{self._average}_{name}": round(100 * float(value), 4)
            for name, value in zip(names, values[:3], strict=True)
        }

    def line(self) -> str:
        """Return the end of timm's last line."""
        labels = ("Precision", "Recall", "F1-score")
        values = self.result().values()
        return "".join(f" | {label}({self._average}) {value:.3f}" for label, value in zip(labels, values, strict=True))


def write_results(path: str, results: dict[str, Any] | list[dict[str, Any]], format: str) -> None:
    """Write one row or several to a file, in the format "csv" or "json"."""
    if format == "json":
        with replaced(Path(path)) as partial:
            partial.write_text(json.dumps(results, indent=4) + "\n")
        return
    rows = results if isinstance(results, list) else [results]
    with replaced(Path(path)) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def result_text(result: dict[str, Any] | list[dict[str, Any]]) -> str:
    """Return a result as timm's scripts print it, for programs to parse."""
    return f"--result\n{json.dumps(result, indent=4)}"


class Clock:
    """The seconds that batches take: the last one's and the average."""

    def __init__(self) -> None:
        self.meter = AverageMeter()
        self._last = time.perf_counter()

    def tick(self) -> None:
        now = time.perf_counter()
        self.meter.update(now - self._last)
        self._last = now


def progress_line(index: int, batches: int, clock: Clock, meters: Meters) -> str:
    """Return timm's line about the progress of an evaluation.

    Args:
        index: the batch, from 0.
        batches: number of batches.
        clock: seconds of the batches.
        meters: metrics of the batches so far.
    """
    seconds, (*sums, count) = clock.meter, meters.sums()
    loss, top1, top5 = zip(meters.last(), (each / max(count, 1) for each in sums), strict=True)

    def pair(values: tuple[float, float], width: int, digits: int) -> str:
        return f"{values[0]:>7.{digits}f} ({values[1]:>{width}.{digits}f})"

    return (
        f"Test: [{index:>4d}/{batches}]  "
        f"Time: {seconds.val:.3f}s ({seconds.avg:.3f}s, {count / seconds.sum:>7.2f}/s)  "
        f"Loss: {pair(loss, 6, 4)}  "
        f"Acc@1: {pair(top1, 7, 3)}  Acc@5: {pair(top5, 7, 3)}"
    )
