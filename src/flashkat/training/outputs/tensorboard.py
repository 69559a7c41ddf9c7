"""Log a run to TensorBoard."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import require_package
from ..config import Tracking
from .tracker import Tracker

if TYPE_CHECKING:
    import numpy as np

__all__ = ["check_tensorboard", "open_tensorboard"]


def check_tensorboard(settings: Tracking) -> None:
    """Raise InputError if logging is on and tensorboard is not installed."""
    if settings.log_tensorboard:
        require_package("tensorboard", "--log-tensorboard")


def open_tensorboard(settings: Tracking, folder: Path, is_resumed: bool = False) -> Tracker:
    """Return what logs rows to files in a folder, if logging is on.

    Args:
        settings: the section of the configuration.
        folder: made with the first row.
        is_resumed: whether the folder may hold epochs after the resumed checkpoint, which the next row replaces.
    """
    return _TensorBoard(folder, is_resumed) if settings.log_tensorboard else Tracker()


class _TensorBoard(Tracker):
    name, is_on = "TensorBoard", True

    def __init__(self, folder: Path, is_resumed: bool) -> None:
        self._folder, self._is_resumed = folder, is_resumed
        self._writer: Any = None

    def log(self, row: dict[str, Any], picture: "np.ndarray | None" = None) -> None:
        epoch = row["epoch"]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Viewers drop what an earlier process wrote of this epoch and later ones.
            self._writer = SummaryWriter(str(self._folder), purge_step=epoch if self._is_resumed else None)
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, epoch)
        if picture is not None:
            self._writer.add_image("functions", picture, epoch, dataformats="HWC")
        self._writer.flush()

    def close(self, has_failed: bool = False) -> None:
        if self._writer is not None:
            self._writer.close()
