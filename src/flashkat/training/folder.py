"""What a run leaves behind: a folder of its own with arguments, summary, curves and checkpoints."""

import contextlib
import csv
import shutil
from argparse import Namespace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from .. import checkpoints
from ..errors import InputError
from .logging import open_wandb

__all__ = ["RunFolder"]


class RunFolder:
    """The folder of a run: ``args.yaml``, ``summary.csv``, ``curves.png``, ``last.pth.tar``, ``model_best.pth.tar``."""

    def __init__(self, args: Namespace, image_size: int) -> None:
        """Make a new folder, numbered if one of the name is there.

        Raises:
            InputError: the folder cannot be written.
        """
        if Path(args.experiment).is_absolute() or ".." in Path(args.experiment).parts:
            raise InputError(f"--experiment takes the name of a folder in {args.output}, not {args.experiment!r}")
        name = args.experiment or f"{datetime.now():%Y%m%d-%H%M%S}-{args.model}-{image_size}"
        parent = Path(args.output)
        self._made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        self.path = self._make(parent, name)
        self._rows: list[dict[str, Any]] = []
        (self.path / "args.yaml").write_text(yaml.safe_dump(vars(args), sort_keys=False))
        try:
            self._log = open_wandb(args, self.path.name)
        except BaseException:
            self.discard_if_empty()
            raise

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

    def discard_if_empty(self) -> None:
        """Remove the folder of a run that failed before it had anything to keep, and those made for it above."""
        if self._rows:
            return
        shutil.rmtree(self.path)
        for parent in self._made:
            with contextlib.suppress(OSError):  # another run has moved in
                parent.rmdir()

    def record(self, row: dict[str, Any]) -> None:
        """Add an epoch's row to ``summary.csv`` and draw the curves anew."""
        self._rows.append(row)
        # Whole, as epochs without an evaluation have fewer columns than those with one.
        longest = max(self._rows, key=len)
        with (self.path / "summary.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(longest))
            writer.writeheader()
            writer.writerows(self._rows)
        self._log(row)
        draw_curves(self._rows, self.path / "curves.png")

    def save(self, checkpoint: dict[str, Any], best: bool) -> None:
        """Write the last checkpoint, and the best one where this is it."""
        checkpoints.write(self.path / "last.pth.tar", checkpoint)
        if best:
            checkpoints.write(self.best_checkpoint, checkpoint)


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs."""
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
    figure.savefig(path, dpi=120)
