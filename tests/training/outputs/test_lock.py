"""One process writes to a folder."""

import os
import subprocess
import sys

import pytest

from flashkat.errors import InputError
from flashkat.training.outputs.lock import Lock

pytest.importorskip("fcntl")


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
