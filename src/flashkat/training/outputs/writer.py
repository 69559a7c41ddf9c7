"""Write what a run leaves behind, and let training go on where that fails."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from ...data.bad_images import bad_image_names, check_bad_images, list_bad_images
from ...errors import InputError
from ...nn.learned.rationals import Learned, learned
from ...system import distributed
from ..state import TrainingState
from .background import Background, Snapshot
from .folder import RunFolder

__all__ = ["Writer"]

_CHECKPOINT = "the checkpoint"


class Writer:
    """Writes checkpoints whose weights were checked. All processes of a run call it together.

    Files are written beside training, from a copy of the state. Before the next copy it waits for them.
    A file that cannot be written costs a line, and is tried again with the next checkpoint.

    Args:
        state: what checkpoints hold.
        folder: where they go in the first process; None in the others.
        say: shows a line.
        check_weights: raises an error if numbers of a checkpoint are not finite. It is called before each checkpoint.
        background: writes.
        datasets: those whose bad images are listed.
        log_functions: epochs between pictures of the learned functions; 0 for none.
    """

    def __init__(
        self,
        state: TrainingState,
        folder: RunFolder | None,
        say: Callable[[str], None],
        check_weights: Callable[[], None],
        background: Background,
        datasets: Sequence[Any] = (),
        log_functions: int = 0,
    ) -> None:
        self._state, self._folder, self._say, self._datasets = state, folder, say, datasets
        self._check_weights, self._log_functions = check_weights, log_functions
        self._background, self._snapshot = background, Snapshot()
        # Which files could not be written last, and the reasons.
        self._faults: dict[str, str] = {}
        self._is_picture_lost = False
        self._good = ""

    def write_epoch(self, row: dict[str, Any], is_best: bool) -> None:
        """Write an epoch's checkpoint, its row of the summary, the curves and the list of bad images."""
        checkpoint, folder, names = self._checkpoint(), self._folder, bad_image_names(self._datasets)
        if folder is not None:
            number = row["epoch"] + 1
            is_due = folder.is_tracked and self._log_functions and number % self._log_functions == 0
            functions = learned(self._state.model, checkpoint["state_dict"]) if is_due else None
            updates = self._state.updates
            self._background.start(
                lambda: self._write_epoch(folder, checkpoint, row, is_best, names, functions, updates)
            )
        try:
            check_bad_images(self._datasets)
        except InputError:
            # All processes get here. Each would remove the folder before its first checkpoint is there.
            self._background.wait()
            distributed.gather(None)
            raise

    def _write_epoch(
        self,
        folder: RunFolder,
        checkpoint: dict[str, Any],
        row: dict[str, Any],
        is_best: bool,
        names: list[str],
        functions: dict[str, Learned] | None,
        updates: int,
    ) -> None:
        folder.add(row)
        with self._reported(folder, updates) as faults:
            if self._renew(folder, faults):
                _attempt(_CHECKPOINT, lambda: folder.save(checkpoint, row, is_best), faults)
                _attempt("summary.csv", folder.write_summary, faults)
                _attempt("curves.png", folder.draw, faults)
                _attempt("bad-images.txt", lambda: self._list_bad_images(names, folder), faults)
            elif is_best:
                folder.keep(checkpoint, row)
        for name, fault in folder.log(row, functions).items():
            self._say(f"{name} has not taken epoch {row['epoch'] + 1}: {fault}. Training goes on")

    def _list_bad_images(self, names: list[str], folder: RunFolder) -> None:
        for note in list_bad_images(names, folder.path):
            self._say(note)

    def write_recovery(self, update: int) -> None:
        """Write a checkpoint from within an epoch."""
        checkpoint, folder = self._checkpoint(), self._folder
        if folder is not None:
            epoch, updates = self._state.epoch, self._state.updates
            self._background.start(lambda: self._write_recovery(folder, checkpoint, epoch, update, updates))

    def _write_recovery(
        self, folder: RunFolder, checkpoint: dict[str, Any], epoch: int, update: int, updates: int
    ) -> None:
        with self._reported(folder, updates) as faults:
            if self._renew(folder, faults):
                _attempt(_CHECKPOINT, lambda: folder.save_recovery(checkpoint, epoch, update), faults)

    def save_images(self, images: Tensor, batch: int) -> None:
        """Save a batch as one picture. Of several in a row that cannot be saved, the first one costs a line."""
        faults: dict[str, str] = {}
        folder, epoch = self._folder, self._state.epoch
        if folder is None:
            return
        _attempt("the picture of a batch", lambda: folder.save_images(images, epoch, batch), faults)
        if faults and not self._is_picture_lost:
            self._say(f"{self._describe(faults)}. Training goes on")
        self._is_picture_lost = bool(faults)

    def finish(self) -> None:
        """Wait for the files, and raise InputError in all processes if the first one could not write the last ones."""
        self._background.wait()
        (message, *_) = distributed.gather(self._loss() if self._faults else "")
        if message:
            raise InputError(message)

    def _loss(self) -> str:
        assert self._folder is not None
        line = self._describe(self._faults)
        line = f"{line[0].lower()}{line[1:]}"
        newest = self._folder.newest()
        if newest is None and self._good:
            return f"{line}; no checkpoint is there now, the last one was written after {self._good}"
        if newest is None:
            return f"{line}; no checkpoint is there, so what was trained is lost"
        after = f", after {self._good}" if self._good else ""
        return f"{line}; the last good checkpoint is {newest}{after}: make the folder writable, and go on with --resume"

    def _checkpoint(self) -> dict[str, Any]:
        """Return a checkpoint that training does not change, in the process that writes it."""
        self._background.wait()
        self._check_weights()
        checkpoint = self._state.checkpoint()
        if self._folder is None or not self._background.beside:
            return checkpoint
        copied: dict[str, Any] = self._snapshot.take(checkpoint)
        return copied

    def _renew(self, folder: RunFolder, faults: dict[str, str]) -> bool:
        """Return whether the folder is there, or has been made again."""
        _attempt(_CHECKPOINT, lambda: folder.renew(self._say), faults)
        return not faults

    @contextlib.contextmanager
    def _reported(self, folder: RunFolder, updates: int) -> Iterator[dict[str, str]]:
        """Yield a dictionary for what cannot be written and why, and say so in one line.

        Args:
            folder: the folder.
            updates: those before this checkpoint.
        """
        before, faults = self._faults, dict[str, str]()
        self._faults = faults
        yield faults
        if _CHECKPOINT not in faults:
            self._good = f"{updates} updates"
        if faults:
            self._say(f"{self._describe(faults)}. Training goes on, and tries again at its next checkpoint")
        elif before:
            self._say(f"{folder.path} can be written again")

    def _describe(self, faults: dict[str, str]) -> str:
        assert self._folder is not None
        *names, last = faults
        listed = f"{', '.join(names)} and {last}" if names else last
        return f"Cannot write {listed} to {self._folder.path}: {'; '.join(dict.fromkeys(faults.values()))}"


def _attempt(name: str, write: Callable[[], None], faults: dict[str, str]) -> None:
    """Write a file, and take note of an error of the system, or of another process that has the folder."""
    try:
        write()
    except OSError as error:
        faults[name] = error.strerror or str(error).rstrip(".")
    except InputError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        faults[name] = str(error)
