"""The folder of a run, new or resumed: arguments, summary, curves and checkpoints."""

import contextlib
import csv
import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from timm.models import safe_model_name
from torch import Tensor
from torchvision.utils import save_image

from ... import checkpoints
from ...defaults import DEFAULT_OUTPUT
from ...errors import InputError
from ...nn.learned.drawing import draw_functions, pixels
from ...nn.learned.rationals import Learned
from ...system.files import identity, replaced
from ..config import Output, Tracking, Wandb
from .background import Snapshot
from .lock import Lock
from .summary import best_of, score
from .tensorboard import open_tensorboard
from .tracker import Tracker
from .wandb import open_wandb

__all__ = ["Made", "RunFolder", "discard_if_empty", "folder_of"]


@dataclass(frozen=True)
class Made:
    """What was made for a new run.

    Attributes:
        path: its folder.
        identity: device and number of that, which another folder of the same name does not have.
        above: folders made around it, from the innermost one.
    """

    path: Path
    identity: tuple[int, int]
    above: tuple[Path, ...]


class RunFolder:
    """The folder of a run.

    It holds ``args.yaml``, ``summary.csv``, ``curves.png`` and checkpoints. Epochs and updates are counted from 0.

    - ``last.pth.tar`` is the newest epoch's checkpoint, and ``model_best.pth.tar`` the best one's.
    - ``checkpoint-EPOCH.pth.tar`` are those of the best epochs, as many as ``--checkpoint-hist``.
    - ``recovery-EPOCH-UPDATE.pth.tar`` are the last two from within an epoch.

    Attributes:
        path: the folder.
        made: what was made for a new run, for :func:`discard_if_empty`; None in the folder of another one.
    """

    def __init__(
        self,
        settings: Output,
        model: str,
        image_size: int,
        flags: Mapping[str, Any],
        *,
        resume: str = "",
        is_automatic: bool = False,
        history: Sequence[dict[str, Any]] = (),
        best: Mapping[str, Any] = MappingProxyType({}),
        tracking: Tracking | None = None,
        wandb: Wandb | None = None,
    ) -> None:
        """Make a new folder, with a number if its name is taken, or continue in the resumed checkpoint's folder.

        Args:
            settings: ``output`` and ``experiment`` name the folder.
            model: the model's name, for a folder without ``experiment``.
            image_size: side of the images in pixels, for a folder without ``experiment``.
            flags: the contents of ``args.yaml``.
            resume: a checkpoint. Its run continues in its folder, unless ``settings`` name another.
            is_automatic: take the named folder even if it exists.
            history: the rows of a resumed run's summary.
            best: the best metric of a resumed run, and the ``epoch`` that had it.
            tracking: the section of the configuration; None logs nothing to TensorBoard.
            wandb: likewise of Weights & Biases.

        Raises:
            InputError: the folder cannot be written, or another process writes to it.
        """
        if Path(settings.experiment).is_absolute() or ".." in Path(settings.experiment).parts:
            raise InputError(
                f"--experiment takes the name of a folder in {settings.output}, not {settings.experiment!r}"
            )
        parent = Path(settings.output)
        self._rows, self._history, self._metric = (
            [dict(row) for row in history],
            settings.checkpoint_hist,
            settings.eval_metric,
        )
        continued = folder_of(settings, model) if is_automatic else _continued(settings, resume)
        above = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        name = settings.experiment or f"{datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(model)}-{image_size}"
        if continued is not None and not continued.exists():
            parent, name, continued = continued.parent, continued.name, None
        self.path = self._make(parent, name) if continued is None else continued
        self._device, number = identity(self.path)
        self.made = Made(self.path, (self._device, number), tuple(above)) if continued is None else None
        self._unsaved: tuple[dict[str, Any], dict[str, Any]] | None = None
        # Another run that reads these flags needs a folder of its own, and starts anew or after its checkpoint.
        self._flags = {**flags, "experiment": "", "resume": "", "start_epoch": None}
        self._lock: Lock | None = None
        self._trackers: list[Tracker] = []
        try:
            self._lock = Lock(self.path)
            if continued is not None:
                self._remove_partial()
            self._write_flags()
            if self._rows:
                self.write_summary()
            if continued is None and resume:
                self._take_best(Path(resume).parent)
            if continued is not None and resume:
                self._finish(Path(resume), best.get("epoch"))
        except BaseException as error:
            self._give_up()
            if isinstance(error, OSError):
                raise InputError(f"cannot write to {self.path}: {error.strerror}") from error
            raise
        self._ranked: list[tuple[Path, float]] = []
        for row in self._rows:
            if (path := self._numbered(int(row["epoch"]))).is_file():
                self._rank(path, row)
        self._recoveries: list[Path] = sorted(
            self.path.glob("recovery-*.pth.tar"), key=lambda path: path.stat().st_mtime
        )
        if continued is not None:
            self._remove_worse()
            self._remove_old_recoveries()
        try:
            self._trackers = [
                open_tensorboard(tracking or Tracking(), self.path / "tensorboard", bool(self._rows)),
                open_wandb(wandb or Wandb(), self.path.name, dict(flags)),
            ]
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        self.close()
        discard_if_empty(self.made)

    def close(self, has_failed: bool = False) -> None:
        """Let other processes write to the folder, and end the logs as those of a run that has failed or not."""
        for tracker in self._trackers:
            with contextlib.suppress(Exception):  # of the disk or a service that has ended, which log() has said
                tracker.close(has_failed)
        if self._lock is not None:
            self._lock.release()

    def _finish(self, resumed: Path, best_epoch: int | None) -> None:
        """Complete the files of an epoch at whose end the run was killed.

        The checkpoint is written first. The best and the numbered checkpoint follow from it.
        """
        if resumed.name == "last.pth.tar" and best_of(self._rows[-1:], self._metric):
            numbered = self._numbered(int(self._rows[-1]["epoch"]))
            if not numbered.exists():
                _link(resumed, numbered)
        if best_epoch is not None and self._numbered(best_epoch).exists():
            _link(self._numbered(best_epoch), self.best_checkpoint)

    def _remove_partial(self) -> None:
        """Remove the files that a killed run has not finished. Only the holder of the lock may."""
        for partial in self.path.glob("*.partial*"):
            partial.unlink(missing_ok=True)

    @staticmethod
    def _make(parent: Path, name: str) -> Path:
        path, number = parent / name, 0
        while True:
            try:
                path.mkdir(parents=True)
            except FileExistsError as error:
                if not parent.is_dir():
                    raise InputError(f"cannot write to {parent}: it is not a folder") from error
                number += 1
                path = parent / f"{name}-{number}"
            except OSError as error:
                raise InputError(f"cannot write to {parent}: {error.strerror}") from error
            else:
                return path

    @property
    def best_checkpoint(self) -> Path:
        return self.path / "model_best.pth.tar"

    def _numbered(self, epoch: int) -> Path:
        return self.path / f"checkpoint-{epoch}.pth.tar"

    def _take_best(self, source: Path) -> None:
        """Copy the best checkpoint so far from the resumed run's folder."""
        best = source / self.best_checkpoint.name
        if (source / "args.yaml").is_file() and best.is_file():
            shutil.copy2(best, self.best_checkpoint)

    def renew(self, say: Callable[[str], None]) -> None:
        """Make the folder and ``args.yaml`` again if they have been removed or renamed, and lock the folder again.

        Nothing is made where the disk that had the folder is gone.

        Args:
            say: is called with a line if the folder is made again.

        Raises:
            OSError: it cannot be made.
            InputError: another process writes to a folder of that name.
        """
        if self._lock is None or not self._lock.is_held():
            if not self.path.exists():
                above = next((folder for folder in self.path.absolute().parents if folder.exists()), None)
                if above is None or identity(above)[0] != self._device:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
                self.path.mkdir(parents=True)
                say(f"{self.path} was removed or renamed. It is made again, without the files of before")
            lock = Lock(self.path)
            if self._lock is not None:
                self._lock.release()
            self._lock = lock
            self._ranked = [(path, rank) for path, rank in self._ranked if path.exists()]
            self._recoveries = [path for path in self._recoveries if path.exists()]
        if not (self.path / "args.yaml").exists():
            self._write_flags()

    def _write_flags(self) -> None:
        with replaced(self.path / "args.yaml", keeps_special=False) as partial:
            partial.write_text(yaml.safe_dump(self._flags, sort_keys=False))

    def add(self, row: dict[str, Any]) -> None:
        """Add an epoch's row to those that :meth:`write_summary` and :meth:`draw` show."""
        self._rows.append(row)

    @property
    def is_tracked(self) -> bool:
        """Whether rows and pictures are logged to a service."""
        return any(tracker.is_on for tracker in self._trackers)

    def log(self, row: dict[str, Any], functions: Mapping[str, Learned] | None = None) -> dict[str, str]:
        """Log a row to TensorBoard and Weights & Biases, as far as they are on.

        Args:
            row: the epoch's row.
            functions: the learned functions, to draw; None draws nothing.

        Returns:
            The reasons of those that do not take it, by their names.
        """
        faults, picture = {}, None
        if functions and self.is_tracked:
            picture = pixels(draw_functions(functions, title=f"after epoch {row['epoch'] + 1}"))
        for tracker in self._trackers:
            try:
                tracker.log(row, picture)
            except Exception as error:  # of the network, the disk or a service that has ended
                faults[tracker.name] = str(error).strip().split("\n")[0] or type(error).__name__
        return faults

    def draw(self) -> None:
        """Draw the curves if the last epoch was evaluated. Drawing can take longer than an epoch of small images."""
        if any(name.startswith("eval") for row in self._rows[-1:] for name in row):
            draw_curves(self._rows, self.path / "curves.png")

    def write_summary(self) -> None:
        """Write the rows to ``summary.csv``."""
        # The whole file: a resumed run may have other columns, and drops the rows after its checkpoint.
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        with replaced(self.path / "summary.csv", keeps_special=False) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=columns)
            writer.writeheader()
            writer.writerows(self._rows)

    def save(self, checkpoint: dict[str, Any], row: dict[str, Any], best: bool) -> None:
        """Write an epoch's checkpoint as ``last``, as ``model_best`` if it is, and among the best epochs if it is.

        Args:
            checkpoint: the checkpoint, with its ``epoch``.
            row: the epoch's row of the summary, which gives its rank; an epoch without evaluation has none.
            best: whether it is better than all before.

        Raises:
            OSError: it cannot be written. The best one stays in memory until the next one is written.
        """
        last = self.path / "last.pth.tar"
        try:
            checkpoints.write(last, checkpoint)
            if best:
                _link(last, self.best_checkpoint)
        except OSError:
            if best:
                self.keep(checkpoint, row)
            raise
        self._keep_ranked(last, checkpoint["epoch"], row)
        if self._unsaved is not None:
            unsaved, row_of_unsaved = self._unsaved
            if not best:
                checkpoints.write(self.best_checkpoint, unsaved)
                self._keep_ranked(self.best_checkpoint, unsaved["epoch"], row_of_unsaved)
            self._unsaved = None

    def keep(self, checkpoint: dict[str, Any], row: dict[str, Any]) -> None:
        """Keep the best checkpoint, which cannot be written now, in memory until the next one is written."""
        self._unsaved = Snapshot().take(checkpoint), row

    def _keep_ranked(self, source: Path, epoch: int, row: dict[str, Any]) -> None:
        """Give an epoch's checkpoint its number if it is among the best ones, and remove what no longer is."""
        numbered = self._numbered(epoch)
        self._rank(numbered, row)
        if any(path == numbered for path, _ in self._ranked[: self._history]):
            _link(source, numbered)
        self._remove_worse()

    def _remove_worse(self) -> None:
        for path, _ in self._ranked[self._history :]:
            path.unlink(missing_ok=True)
        del self._ranked[self._history :]

    def _rank(self, path: Path, row: dict[str, Any]) -> None:
        """Rank an epoch's checkpoint among the others, from best to worst. Ties keep their order."""
        best = best_of([row], self._metric)
        self._ranked = [item for item in self._ranked if item[0] != path]
        if best:
            self._ranked.append((path, score(self._metric, best["metric"])))
            self._ranked.sort(key=lambda item: -item[1])

    def save_recovery(self, checkpoint: dict[str, Any], epoch: int, update: int) -> None:
        """Write a checkpoint from within an epoch, and keep the last two of them.

        Args:
            checkpoint: the checkpoint.
            epoch: its epoch, from 0.
            update: its update in the epoch, from 0.
        """
        path = self.path / f"recovery-{epoch}-{update}.pth.tar"
        checkpoints.write(path, checkpoint)
        self._recoveries = [*(other for other in self._recoveries if other != path), path]
        self._remove_old_recoveries()

    def _remove_old_recoveries(self) -> None:
        for old in self._recoveries[:-2]:
            old.unlink(missing_ok=True)
        del self._recoveries[:-2]

    def save_images(self, images: Tensor, epoch: int, batch: int) -> None:
        """Save a batch (B, C, H, W) as one picture, its values scaled to the range of colours."""
        save_image(images.float(), self.path / f"train-batch-{epoch}-{batch}.jpg", padding=0, normalize=True)

    def how_to_go_on(self) -> str:
        """Return the end of the message that training was stopped: how to resume it."""
        newest = self.newest()
        return (
            " before there was a checkpoint" if newest is None else f": go on with the same flags and --resume {newest}"
        )

    def newest(self) -> Path | None:
        """Return the checkpoint that was written last, or None if there is none."""
        try:
            found = [path for name in ("last.pth.tar", "recovery-*.pth.tar") for path in self.path.glob(name)]
            return max(filter(Path.is_file, found), key=lambda path: path.stat().st_mtime_ns, default=None)
        except OSError:  # the folder is gone, or its disk
            return None


def discard_if_empty(made: Made | None) -> None:
    """Remove the folder of a run that failed before its first checkpoint, and the empty parents made for it.

    All processes of the run may call this, as torchrun may end the writing process once another has failed.

    Args:
        made: the run's :attr:`RunFolder.made`.
    """
    if made is None:
        return
    try:
        if identity(made.path) != made.identity:
            return  # the folder of another run
        # Partial files count too: another process may be writing one now.
        if any(any(made.path.glob(pattern)) for pattern in ("last.pth.tar*", "recovery-*")):
            return
    except OSError:  # it is gone, or its disk
        return
    shutil.rmtree(made.path, ignore_errors=True)
    for folder in made.above:
        with contextlib.suppress(OSError):  # another run uses the folder
            folder.rmdir()


def folder_of(settings: Output, model: str) -> Path:
    """Return the folder for ``--resume auto``. Its name has no date and no number, so a restarted run finds it."""
    return Path(settings.output) / (settings.experiment or safe_model_name(model))


def _continued(settings: Output, resume: str) -> Path | None:
    """Return the folder in which a resumed run continues, or None if it gets a new one."""
    folder = Path(resume).parent
    if not resume or not (folder / "args.yaml").is_file():
        return None
    named = Path(settings.output) / settings.experiment if settings.experiment else None
    if named is not None and named.resolve() != folder.resolve():
        return None
    elsewhere = Path(settings.output).resolve() not in folder.resolve().parents
    return None if elsewhere and settings.output != DEFAULT_OUTPUT else folder


def _link(source: Path, target: Path) -> None:
    """Replace ``target`` by a hard link to ``source`` in one step, or by a copy if links are not supported."""
    with replaced(target, keeps_special=False) as partial:
        try:
            partial.hardlink_to(source)
        except OSError:
            shutil.copy2(source, partial)


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs.

    Args:
        rows: the rows of the summary.
        path: the file to write; its suffix is the format.
    """
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    losses, accuracies, rates = figure.subplots(1, 3)
    for axes, title, names in (
        (losses, "loss", [name for name in max(rows, key=len) if name.endswith("loss")]),
        (accuracies, "accuracy in %", [name for name in max(rows, key=len) if "top" in name]),
        (rates, "learning rate", ["lr"]),
    ):
        for name in names:
            known = [(epoch, row[name]) for epoch, row in zip(epochs, rows, strict=True) if name in row]
            axes.plot(*zip(*known, strict=True), marker="." if len(rows) < 30 else "", label=name)
        axes.set(xlabel="epoch", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    with replaced(path, keeps_special=False) as partial:
        figure.savefig(partial, dpi=120, format=path.suffix[1:])
