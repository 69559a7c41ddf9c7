"""Results that grow: a benchmark that takes too long for one sitting runs in parts, which add up to one file.

Parts may run at once, on a GPU each.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .common import Row, environment, finish, read, save

__all__ = ["collect_in_pieces"]


def collect_in_pieces(
    path: Path,
    name: str,
    settings: Mapping[str, Any],
    pieces: Iterable[list[Row]],
    keys: Sequence[str],
    targets: Callable[[list[Row]], list[Row]],
) -> None:
    """Add rows to a benchmark's result as they are measured, so that no more is lost than the piece in work.

    Args:
        path: the result. A new piece takes the place of the rows there that are of its case, so that all rows of a
            case took turns with each other.
        name: the benchmark.
        settings: what the rows have in common.
        pieces: the rows of a case each, measured when they are asked for.
        keys: what tells cases apart.
        targets: the targets of all rows.

    Raises:
        SystemExit: the rows in the file are not of this machine, these versions, this commit and these settings.
    """
    rows = _earlier_rows(path, settings)
    known = _text(path)
    for piece in pieces:
        with _alone(path.parent):
            if _text(path) != known:  # another process has added to it
                rows = _earlier_rows(path, settings)
            new = {_case(row, keys) for row in piece}
            rows = [row for row in rows if _case(row, keys) not in new] + piece
            save(path, name, settings, rows, targets(rows))
            known = _text(path)
    with _alone(path.parent):
        rows = rows if _text(path) == known else _earlier_rows(path, settings)
        finish(path, name, settings, rows, targets(rows))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, of those that write to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _case(row: Row, keys: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[key] for key in keys)


def _earlier_rows(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    if not path.exists():
        return []
    document, now = read(path), environment()
    then = document["environment"]
    differ = [key for key in sorted({*now, *then} - {"date"}) if now.get(key) != then.get(key)]
    differ += ["settings"] if document["settings"] != json.loads(json.dumps(settings)) else []
    if now["commit"] is None:
        raise SystemExit(f"cannot tell whether the rows in {path} are of this commit: set FLASHKAT_COMMIT")
    if differ:
        raise SystemExit(f"the rows in {path} differ from this run in {', '.join(differ)}: move them or give --output")
    return document["rows"]
