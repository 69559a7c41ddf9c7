"""Lock a run's folder, so that only one process writes to it."""

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from ...errors import InputError

__all__ = ["Lock"]

_NAME = ".lock"


class Lock:
    """A lock on a folder, held until :meth:`release` or until this process ends.

    Raises:
        InputError: another process holds the lock. The message names it and its host.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._file = self._path.open("a+")
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = self._holder()
            self._file.close()
            raise InputError(
                f"process {holder.get('process', '?')} on {holder.get('host', 'another host')} writes to {folder}: "
                "wait for its end, or give another --experiment"
            ) from error
        self._file.truncate(0)
        self._file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
        self._file.flush()

    def _holder(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            self._file.seek(0)
            found = json.loads(self._file.read())
            return found if isinstance(found, dict) else {}
        return {}

    def release(self) -> None:
        """Let other processes write to the folder."""
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()
