"""The folder of a run, new or resumed: arguments, summary, curves and checkpoints."""

import contextlib
import csv
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from timm.models import safe_model_name
from torch import Tensor
from torchvision.utils import save_image

from ... import checkpoints
from ...errors import InputError
from ...system.files import replaced
from ..config import DEFAULT_OUTPUT, Output, Wandb
from .lock import Lock
from .summary import best_of, score
from .wandb import open_wandb

__all__ = ["RunFolder", "discard_if_empty", "folder_of"]


class RunFolder:
    """The folder of a run.

    It holds ``args.yaml``, ``summary.csv``, ``curves.png`` and checkpoints. Epochs and updates are counted from 0.

    - ``last.pth.tar`` is the newest epoch's checkpoint, and ``model_best.pth.tar`` the best one's.
    - ``checkpoint-EPOCH.pth.tar`` are those of the best epochs, as many as ``--checkpoint-hist``.
    - ``recovery-EPOCH-UPDATE.pth.tar`` are the last two from within an epoch.

    Attributes:
        path: the folder.
        made: folders made for a new run, for :func:`discard_if_empty`: this one, then its parents.
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
            wandb: the section of the configuration; None logs nothing.

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
        self.made: list[Path] = [self.path, *above] if continued is None else []
        self._lock = Lock(self.path)
        try:
            # Another run that reads these flags needs a folder of its own, and starts anew.
            own = {**flags, "experiment": "", "resume": ""}
            (self.path / "args.yaml").write_text(yaml.safe_dump(own, sort_keys=False))
            if self._rows:
                self._write_summary()
            if continued is None and resume:
                self._take_best(Path(resume).parent)
            if continued is not None and resume:
                self._finish(Path(resume), best.get("epoch"))
        except OSError as error:
            self._give_up()
            raise InputError(f"cannot write to {self.path}: {error.strerror}") from error
        self._ranked: list[tuple[Path, float]] = []
        for row in self._rows:
            if (path := self._numbered(int(row["epoch"]))).is_file():
                self._rank(path, row)
        self._recoveries: list[Path] = sorted(
            self.path.glob("recovery-*.pth.tar"), key=lambda path: path.stat().st_mtime
        )
        try:
            self._log = open_wandb(wandb or Wandb(), self.path.name, dict(flags))
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        self.close()
        discard_if_empty(self.made)

    def close(self) -> None:
        """Let other processes write to the folder."""
        self._lock.release()

    def _finish(self, resumed: Path, best_epoch: int | None) -> None:
        """Complete the files of an epoch at whose end the run was killed.

        The checkpoint is written first. The best and the numbered checkpoint follow from it.
        """
        for partial in self.path.glob("*.partial*"):
            partial.unlink(missing_ok=True)
        if resumed.name == "last.pth.tar" and best_of(self._rows[-1:], self._metric):
            numbered = self._numbered(int(self._rows[-1]["epoch"]))
            if not numbered.exists():
                _link(resumed, numbered)
        if best_epoch is not None and self._numbered(best_epoch).exists():
            _link(self._numbered(best_epoch), self.best_checkpoint)

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

    def record(self, row: dict[str, Any]) -> None:
        """Add an epoch's row to ``summary.csv``, and redraw the curves if the epoch was evaluated."""
        self._rows.append(row)
        self._write_summary()
        self._log(row)
        # Drawing can take longer than an epoch of small images.
        if any(name.startswith("eval") for name in row):
            draw_curves(self._rows, self.path / "curves.png")

    def _write_summary(self) -> None:
        # The whole file: a resumed run may have other columns, and drops the rows after its checkpoint.
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        with replaced(self.path / "summary.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=columns)
            writer.writeheader()
            writer.writerows(self._rows)

    def save(self, checkpoint: dict[str, Any], row: dict[str, Any], best: bool) -> None:
        """Write an epoch's checkpoint as ``last``, as ``model_best`` if it is, and among the best epochs if it is.

        Args:
            checkpoint: the checkpoint, with its ``epoch``.
            row: the epoch's row of the summary, which gives its rank; an epoch without evaluation has none.
            best: whether it is better than all before.
        """
        last, numbered = self.path / "last.pth.tar", self._numbered(checkpoint["epoch"])
        checkpoints.write(last, checkpoint)
        if best:
            _link(last, self.best_checkpoint)
        self._rank(numbered, row)
        if any(path == numbered for path, _ in self._ranked[: self._history]):
            _link(last, numbered)
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
        for old in self._recoveries[:-2]:
            old.unlink(missing_ok=True)
        del self._recoveries[:-2]

    def save_images(self, images: Tensor, epoch: int, batch: int) -> None:
        """Save a batch (B, C, H, W) as one picture, its values scaled to the range of colours."""
        save_image(images.float(), self.path / f"train-batch-{epoch}-{batch}.jpg", padding=0, normalize=True)

    def how_to_go_on(self) -> str:
        """Return the end of the message that training was stopped: how to resume it."""
        newest = self.newest()
        return " before there was a checkpoint" if newest is None else f": go on with --resume {newest}"

    def newest(self) -> Path | None:
        """Return the checkpoint that was written last, or None if there is none."""
        found = [path for name in ("last.pth.tar", "recovery-*.pth.tar") for path in self.path.glob(name)]
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def discard_if_empty(made: Sequence[Path]) -> None:
    """Remove the folder of a run that failed before its first checkpoint, and the empty parents made for it.

    All processes of the run may call this, as torchrun may end the writing process once another has failed.

    Args:
        made: the run's :attr:`RunFolder.made`.
    """
    if not made:
        return
    path, *above = made
    # Partial files count too: another process may be writing one now.
    if any(any(path.glob(pattern)) for pattern in ("last.pth.tar*", "recovery-*")):
        return
    shutil.rmtree(path, ignore_errors=True)
    for folder in above:
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
    with replaced(target) as partial:
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
    with replaced(path) as partial:
        figure.savefig(partial, dpi=120, format=path.suffix[1:])
