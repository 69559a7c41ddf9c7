"""One process writes to a folder."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import forked

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


def die_with_a_lock(folder):
    lock = Lock(Path(folder))
    assert lock.is_held()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_killed_holds_nothing(tmp_path):
    assert forked(tmp_path, die_with_a_lock, (str(tmp_path),), [{}]).status == [-signal.SIGKILL]
    assert (tmp_path / ".lock").exists()
    Lock(tmp_path).release()


def die_with_a_child(folder):
    lock = Lock(Path(folder))
    child = os.fork()
    if not child:
        signal.pause()
    assert lock.is_held()
    os.write(1, str(child).encode())
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_children_of_a_process_that_was_killed_hold_nothing(tmp_path):
    done = forked(tmp_path, die_with_a_child, (str(tmp_path),), [{}])
    try:
        assert done.status == [-signal.SIGKILL]
        Lock(tmp_path).release()
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)


def test_a_child_that_has_not_run_yet_is_waited_for(tmp_path):
    """It has its parent's lock until then, and its parent may be killed before."""
    code = f"""
import os, signal, time
from pathlib import Path
os.register_at_fork(after_in_child=lambda: time.sleep(1))
from flashkat.training.outputs.lock import Lock
lock = Lock(Path({str(tmp_path)!r}))
if os.fork():
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -9
    Lock(tmp_path).release()


@pytest.mark.parametrize("holder", [{"process": 2**40}, {"process": "x"}, {"host": "elsewhere", "process": 2**22 + 1}])
def test_a_lock_of_a_dead_process_that_stays_is_refused(holder, tmp_path, monkeypatch):
    monkeypatch.setattr("flashkat.training.outputs.lock._PATIENCE_SECONDS", 0.1)
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps({"host": socket.gethostname(), **holder}))
        file.flush()
        with pytest.raises(InputError, match=r"writes to .*: wait for its end"):
            Lock(tmp_path)


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


def test_a_lock_is_held_while_its_file_is_in_place(tmp_path):
    lock = Lock(tmp_path)
    assert lock.is_held()
    (tmp_path / ".lock").unlink()
    assert not lock.is_held()
    second = Lock(tmp_path)
    lock.release()  # which leaves the other one's file
    assert second.is_held()
    second.release()


def test_a_folder_without_locks_is_held_while_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    lock = Lock(tmp_path)
    assert lock.is_held()
    tmp_path.rmdir()
    assert not lock.is_held()


def test_a_lock_on_a_read_only_disk_is_released(tmp_path, monkeypatch):
    lock = Lock(tmp_path)

    def refuse(path, missing_ok=False):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        lock.release()
    Lock(tmp_path).release()


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
