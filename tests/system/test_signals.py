"""A signal to stop is noticed between two steps; the second one ends the process."""

import os
import signal
import subprocess
import sys

import pytest

from flashkat.system.signals import Stopped, StopRequest


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_stops_after_the_step(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.after_step()
        os.kill(os.getpid(), number)
        assert stop.after_step()
        assert stop.number == number
        assert Stopped("", stop.number).status == 128 + number
    assert signal.getsignal(number) == before


def test_the_second_signal_ends_the_process_at_once():
    code = """
import os, signal, time
from flashkat.system.signals import StopRequest
with StopRequest():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=50, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == b""
