"""Lock a run's folder, so that only one process writes to it."""

import contextlib
import json
import os
import socket
import time
import weakref
from pathlib import Path
from typing import IO, Any

from ...errors import InputError

__all__ = ["Lock"]

_NAME = ".lock"

# A process that was just forked holds its parent's lock until it runs. On a busy machine that can take a second.
_PATIENCE_SECONDS, _INTERVAL_SECONDS = 10.0, 0.02

# Open locks of this process.
_HELD: "weakref.WeakSet[Lock]" = weakref.WeakSet()


class Lock:
    """A lock on a folder, held until :meth:`release` or until this process ends.

    Processes that load images outlive a killed process by seconds, and hold nothing.
    Windows and file systems without locks have none.

    Raises:
        InputError: another process holds the lock. The message names it and its host.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._file: IO[str] | None = None
        try:
            import fcntl
        except ImportError:  # Windows
            return
        ends_at = time.monotonic() + _PATIENCE_SECONDS
        while self._file is None:
            file = self._path.open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = _holder(file)
                file.close()
                if _is_dead(holder) and time.monotonic() < ends_at:
                    time.sleep(_INTERVAL_SECONDS)
                    continue
                raise InputError(
                    f"process {holder.get('process', '?')} on {holder.get('host', 'another host')} writes to {folder}: "
                    "wait for its end, or give another --experiment"
                ) from error
            except OSError:
                file.close()
                return
            if _is_at(self._path, file):
                self._file = file
            else:  # its holder removed it before this process locked it
                file.close()
        _HELD.add(self)
        self._file.truncate(0)
        self._file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
        self._file.flush()

    def is_held(self) -> bool:
        """Return whether the folder is still the locked one. Without locks, return whether there is one.

        Raises:
            OSError: the folder's disk does not answer.
        """
        return self._path.parent.is_dir() if self._file is None else _is_at(self._path, self._file)

    def release(self) -> None:
        """Let other processes write to the folder."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # the folder is gone, or read-only
                if _is_at(self._path, self._file):
                    self._path.unlink()
            self._file.close()
            self._file = None


def _close_in_child() -> None:
    """Close the locks that a forked process has inherited. Each would hold the lock for as long as it lives."""
    for lock in list(_HELD):
        if lock._file is not None:
            lock._file.close()
            lock._file = None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_in_child)


def _holder(file: IO[str]) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        file.seek(0)
        found = json.loads(file.read())
        return found if isinstance(found, dict) else {}
    return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Return whether the process that a lock names has ended, as far as its own host can tell."""
    process = holder.get("process")
    if holder.get("host") != socket.gethostname() or type(process) is not int or process <= 0:
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # it is another user's
        return False
    return False


def _is_at(path: Path, file: IO[str]) -> bool:
    """Return whether a path still names an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except (FileNotFoundError, NotADirectoryError):
        return False
