"""What a run has left beside a checkpoint: its other checkpoints, and the curves of its summary."""

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import checkpoints
from ...errors import InputError
from ...nn.learned.rationals import Learned, learned
from ...system.files import identity
from .subject import Subject

__all__ = ["Snapshot", "curves", "snapshots"]

_PATTERNS = ("checkpoint-*.pth.tar", "recovery-*.pth.tar", "last.pth.tar", "model_best.pth.tar")
# A summary of a million epochs is larger. Files of strangers may be anything.
_LONGEST = 10**7


@dataclass(frozen=True)
class Snapshot:
    """The functions of one checkpoint.

    Attributes:
        label: when it was written, in words.
        functions: the functions by module name.
        is_given: whether it is the checkpoint that was asked for.
    """

    label: str
    functions: dict[str, Learned]
    is_given: bool = False


def snapshots(path: Path, subject: Subject, use_ema: bool, say: Callable[[str], None]) -> list[Snapshot]:
    """Read the functions of a run's checkpoints, from the first to the last.

    Args:
        path: one checkpoint. Those of its run lie beside it.
        subject: its model.
        use_ema: take the averaged weights.
        say: called with a line for each file that is left out.

    Returns:
        One snapshot for each number of updates. The given checkpoint is among them.
    """
    checkpoint = subject.checkpoint
    own = Snapshot(_label(checkpoint) or path.name, subject.functions, is_given=True)
    when = _when(checkpoint)
    if when is None:
        return [own]
    found = {when: own}
    # Files of a run are links to each other, which need not be read twice.
    seen = {identity(path)}
    for other in sorted(each for pattern in _PATTERNS for each in path.parent.glob(pattern)):
        if not other.is_file() or identity(other) in seen:
            continue
        seen.add(identity(other))
        try:
            entries = checkpoints.read(other)
            moment = _when(entries)
            if moment is None or moment in found:
                continue
            if entries.get("arch") != checkpoint.get("arch"):
                raise ValueError("it is of another model")
            functions = learned(subject.model, checkpoints.weights(entries, use_ema))
        except (InputError, ValueError) as error:
            say(f"{other.name} is left out: {error}")
            continue
        found[moment] = Snapshot(_label(entries), functions)
    return [found[moment] for moment in sorted(found)]


def curves(folder: Path, say: Callable[[str], None]) -> dict[str, list[float | None]]:
    """Return the columns of a run's summary, by name. An empty cell is None.

    Args:
        folder: the run's folder.
        say: called with a line if there is a summary that cannot be read.

    Returns:
        Columns of the same length, ``epoch`` among them; empty without a summary.
    """
    path = folder / "summary.csv"
    if not path.is_file():
        return {}
    try:
        with path.open(newline="") as file:
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise ValueError("it is too long")
        rows = list(csv.DictReader(text.splitlines()))
        names = [name for name in (rows[0] if rows else {}) if name]
        found = {name: [_number(row[name]) for row in rows] for name in names}
        if names and "epoch" not in found:
            raise ValueError("it has no column epoch")
    except (OSError, ValueError, csv.Error) as error:
        say(f"{path} is left out: {error}")
        return {}
    return found


def _number(cell: str | None) -> float | None:
    if not cell:
        return None
    value = float(cell)
    return value if math.isfinite(value) else None


def _when(checkpoint: dict[str, Any]) -> tuple[int, int] | None:
    """Return the epoch and the updates of a checkpoint, or None if it is none of a run."""
    epoch, updates = checkpoint.get("epoch"), _run(checkpoint).get("updates", 0)
    if type(epoch) is not int or type(updates) is not int:
        return None
    return epoch, updates


def _label(checkpoint: dict[str, Any]) -> str:
    when = _when(checkpoint)
    if when is None:
        return ""
    is_within = bool(_run(checkpoint).get("batch"))
    return f"epoch {when[0] + 1}, update {when[1]}" if is_within else f"after epoch {when[0] + 1}"


def _run(checkpoint: dict[str, Any]) -> dict[str, Any]:
    run = checkpoint.get("run")
    return run if isinstance(run, dict) else {}
