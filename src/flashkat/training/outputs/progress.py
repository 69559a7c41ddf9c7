"""Report the progress of a run: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Protocol

from ...evaluation.metrics import Metrics
from ...system.distributed import is_primary
from ...system.terminal import printable

__all__ = ["Progress", "open_progress", "per_second"]


class Progress(Protocol):
    """Reports the progress of a run. A context manager."""

    def __enter__(self) -> "Progress": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, line: str) -> None:
        """Show a line that stays."""

    def batch(self, epoch: int, index: int, metrics: Metrics | None, rate: float) -> None:
        """Report that a training batch is done.

        Args:
            epoch: the epoch, from 0.
            index: the batch in the epoch, from 0.
            metrics: metrics of the epoch so far; None if they were not computed.
            rate: images per second of all processes.
        """


def open_progress(epochs: int, batches: int, first: int = 0) -> Progress:
    """Return the progress of a run. Only the first of several processes reports.

    Args:
        epochs: epochs of the run.
        batches: batches of an epoch.
        first: batches of the run that were done before.
    """
    if not is_primary():
        return _Silent()
    return _Live(epochs, batches) if sys.stdout.isatty() else _Plain(epochs, batches, first)


def per_second(rate: float) -> str:
    """Return images per second as text, with a decimal where they are few."""
    return f"{rate:.{0 if rate >= 10 else 1}f} images/s"


def _describe(metrics: Metrics, rate: float) -> str:
    return f"loss {metrics.loss:.4f}  top-1 {metrics.top1:.2f}%  {per_second(rate)}"


class _Silent:
    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, kind, error, trace) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def batch(self, epoch: int, index: int, metrics: Metrics | None, rate: float) -> None:
        pass


class _Live:
    def __init__(self, epochs: int, batches: int) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._epochs, self._batches = epochs, batches
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._task = self._bar.add_task("starting", total=epochs * batches, numbers="")

    def __enter__(self) -> "_Live":
        self._bar.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        self._bar.console.print(printable(line), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def batch(self, epoch: int, index: int, metrics: Metrics | None, rate: float) -> None:
        done = epoch * self._batches + index + 1
        self._bar.update(self._task, completed=done, description=f"epoch {epoch + 1}/{self._epochs}")
        if metrics is not None:
            self._bar.update(self._task, numbers=_describe(metrics, rate))


class _Plain:
    def __init__(self, epochs: int, batches: int, first: int = 0) -> None:
        self._epochs, self._batches, self._first = epochs, batches, first
        self._start = time.monotonic()

    def __enter__(self) -> "_Plain":
        return self

    def __exit__(self, kind, error, trace) -> None:
        pass

    def say(self, line: str) -> None:
        try:
            print(printable(line), flush=True)
        except BrokenPipeError:
            raise
        except OSError:  # the log's disk is full, and training goes on
            pass

    def batch(self, epoch: int, index: int, metrics: Metrics | None, rate: float) -> None:
        if metrics is None:
            return
        done = epoch * self._batches + index + 1
        left = (time.monotonic() - self._start) / (done - self._first) * (self._epochs * self._batches - done)
        self.say(
            f"Train: {epoch + 1}/{self._epochs} [{index + 1:>4d}/{self._batches}]  {_describe(metrics, rate)}  "
            f"{_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
