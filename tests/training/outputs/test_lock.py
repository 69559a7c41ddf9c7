"""One process writes to a folder."""

import errno
import os
import subprocess
import sys

import pytest

from flashkat.errors import InputError
from flashkat.training.outputs.lock import Lock

fcntl = pytest.importorskip("fcntl")


def test_the_second_writer_is_told_of_the_first(tmp_path):
    first = Lock(tmp_path)
    with pytest.raises(InputError, match=rf"process {os.getpid()} on \S+ writes to .*: wait for its end"):
        Lock(tmp_path)
    first.release()
    assert not list(tmp_path.iterdir())
    Lock(tmp_path).release()


def test_a_process_that_was_killed_holds_nothing(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from flashkat.training.outputs.lock import Lock
lock = Lock(Path({str(tmp_path)!r}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -9
    assert (tmp_path / ".lock").exists()
    Lock(tmp_path).release()


def test_a_lock_file_that_its_holder_removed_meanwhile_counts_for_nothing(tmp_path, monkeypatch):
    first, locks, flock = Lock(tmp_path), [], fcntl.flock

    def late(file, how):
        locks.append(file)
        if len(locks) == 1:
            first.release()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    second = Lock(tmp_path)
    assert len(locks) == 2
    with pytest.raises(InputError, match="wait for its end"):
        Lock(tmp_path)
    second.release()


def test_a_file_system_without_locks_holds_nobody_up(tmp_path, monkeypatch):
    def unsupported(file, how):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for _ in range(2):
        Lock(tmp_path)


def test_windows_has_no_lock_file(tmp_path, monkeypatch):
    """It could not be removed while it is open."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    lock = Lock(tmp_path)
    assert not list(tmp_path.iterdir())
    lock.release()
