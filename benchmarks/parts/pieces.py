"""Collect a benchmark's result in parts, which add up to one file.

Parts may run at once, each on its own GPU.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
    apart: Collection[str] = (),
) -> None:
    """Add rows to a benchmark's result as they are measured, so that an interrupt loses one piece at most.

    Args:
        path: file of the result. A new piece replaces all rows of its case, which were measured in turn.
        name: name of the benchmark.
        settings: the settings that all rows share.
        pieces: the rows of one case each, measured when they are drawn.
        keys: the entries of a row that identify its case.
        targets: returns the targets of all rows.
        apart: entries of the environment that do not matter here. The file has those of the latest part.

    Raises:
        SystemExit: the rows in the file are of another machine, version, commit or setting.
    """
    rows = _earlier_rows(path, settings, apart)
    known = _text(path)
    for piece in pieces:
        with _alone(path.parent):
            if _text(path) != known:  # another process has written
                rows = _earlier_rows(path, settings, apart)
            new = {_case(row, keys) for row in piece}
            rows = [row for row in rows if _case(row, keys) not in new] + piece
            save(path, name, settings, rows, targets(rows))
            known = _text(path)
    with _alone(path.parent):
        rows = rows if _text(path) == known else _earlier_rows(path, settings, apart)
        finish(path, name, settings, rows, targets(rows))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock a folder, so that one process writes to it at a time."""
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


def _earlier_rows(path: Path, settings: Mapping[str, Any], apart: Collection[str]) -> list[Row]:
    if not path.exists():
        return []
    document, now = read(path), environment()
    then = document["environment"]
    differ = [key for key in sorted({*now, *then} - {"date", *apart}) if now.get(key) != then.get(key)]
    differ += ["settings"] if document["settings"] != json.loads(json.dumps(settings)) else []
    if now["commit"] is None and "commit" not in apart:
        raise SystemExit(f"cannot tell whether the rows in {path} are of this commit: set FLASHKAT_COMMIT")
    if differ:
        raise SystemExit(f"the rows in {path} differ from this run in {', '.join(differ)}: move them or give --output")
    return document["rows"]
