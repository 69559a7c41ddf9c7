"""A signal to stop is noticed between two steps; the second one ends the process."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch.distributed as dist
from processes import forked, free_port

from flashkat.errors import Stopped
from flashkat.system.signals import StopRequest


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


def test_a_hangup_that_is_ignored_stays_so():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.after_step()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def two_signals(launcher, later):
    os.environ.pop("TORCHELASTIC_RUN_ID", None)
    if launcher == "torchrun":
        os.environ["TORCHELASTIC_RUN_ID"] = "none"
    clock = iter((0, later))
    time.monotonic = lambda: next(clock)
    with StopRequest() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.after_step()


@pytest.mark.parametrize(
    ("launcher", "later", "status"),
    [("torchrun", 2, 128 + signal.SIGTERM), ("torchrun", 1.9, 0), (None, 0, 128 + signal.SIGTERM)],
)
def test_the_second_signal_ends_the_process_at_once_unless_both_are_one_request(tmp_path, launcher, later, status):
    done = forked(tmp_path, two_signals, (launcher, later), [{}])
    assert (done.status, done.stderr) == ([status], "")


# A process loads images for this one. A third one sends it signals, and then it still answers.
LOADER = """
import os, signal
from multiprocessing import Pipe, get_context
from flashkat.system.signals import leave_signals_to_parent

def load(pipe):
    leave_signals_to_parent()
    while True:
        pipe.send(pipe.recv())

def send(pid):
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGTERM"):
        os.kill(pid, getattr(signal, name))

fork = get_context("fork")
here, there = Pipe()
loader = fork.Process(target=load, args=(there,))
loader.start()
for number in range(2):
    here.send(number)
    assert here.recv() == number
    sender = fork.Process(target=send, args=(loader.pid,))
    sender.start()
    sender.join()
here.send(2)
assert here.recv() == 2
loader.terminate()
loader.join()
assert loader.exitcode == 0
"""


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="a process cannot tell who sends a signal")
def test_a_loading_process_ends_at_the_word_of_its_parent_alone():
    done = subprocess.run([sys.executable, "-c", LOADER], timeout=50, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr


def take_steps():
    """Steps of three processes, slow at first and then fast.

    The second one receives a signal in a slow step, and the third one later. Each process prints its number of steps.
    """
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    with StopRequest() as stop:
        for step in range(1_000_000):
            dist.barrier()
            if step < 2:
                time.sleep(0.9)
            if (rank, step) == (1, 1):
                os.kill(os.getpid(), signal.SIGTERM)
            if stop.after_step():
                break
        if rank == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # its first one
        dist.barrier()
        os.write(1, f"{step} {stop.number}\n".encode())
        dist.barrier()
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")
def test_several_processes_stop_after_the_same_step_however_fast_it_comes(tmp_path):
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": 3}
    # Nodes may count their starts differently.
    ranks = [{**meeting, "RANK": rank, "TORCHELASTIC_RESTART_COUNT": rank} for rank in range(3)]
    done = forked(tmp_path, take_steps, (), ranks)
    assert done.status == [0, 0, 0], done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert len(set(lines)) == 1
    assert lines[0].endswith(f" {signal.SIGTERM.value}")
