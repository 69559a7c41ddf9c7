"""Processes of a run on CPUs, of which one dies, stops or fails; they beat faster than a run's."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import begun, free_port

from flashkat.errors import Stopped
from flashkat.system.heartbeat import watched

INTERVAL = 0.3


def launch(size, role):
    """Become the processes of a run, and print how each has ended."""
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            try:
                work(size, role, rank)
            except (Exception, Stopped) as error:
                os.write(2, f"{type(error).__name__}\n".encode())
                os._exit(2)
            os._exit(0)
        children.append(child)
    for child in children:
        _, status = os.waitpid(child, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def work(size, role, rank):
    """Print the rank and the process, and play a role."""
    os.environ["RANK"] = str(rank)
    dist.init_process_group("nccl" if role == "replays" else "gloo", timeout=timedelta(seconds=600))
    if role == "replays":
        torch.cuda.set_device(rank)
        summed, graph = torch.ones(1024, device="cuda"), torch.cuda.CUDAGraph()
        dist.all_reduce(summed)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            dist.all_reduce(summed)
    with watched(rank, size, INTERVAL):
        dist.barrier()
        os.write(1, f"{rank} {os.getpid()}\n".encode())
        if role == "fails" and rank == 1:
            raise ValueError("of its own")
        if role == "stops":
            time.sleep(3 * (size - rank) * INTERVAL)
            raise Stopped("", 15)
        for _ in range(3 if role == "ends" else 1_000_000):
            # A process that sleeps does not notice what has happened to another, one in a collective does.
            if role == "sleeps":
                time.sleep(1)
            elif role == "replays":
                graph.replay()
                torch.cuda.synchronize()
            else:
                dist.all_reduce(torch.ones(1))
        if role == "ends" and rank == 0:
            time.sleep(15 * INTERVAL)


class Run:
    """Processes of a run with a store of their own, in the first one."""

    def __init__(self, folder, role, size=3):
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": size}
        (self.launcher,), ((self._out, self._err),) = begun(folder, launch, (size, role), [meeting])
        self.processes, deadline = {}, time.monotonic() + 60
        while len(self.processes) < size:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            self.processes = dict(map(int, line.split()) for line in self._lines() if line.count(" ") == 1)

    def _lines(self):
        return self._out.read_text().splitlines() if self._out.exists() else []

    def signal(self, rank, sent):
        os.kill(self.processes[rank], sent)

    def wait(self, *ranks):
        deadline = time.monotonic() + 60
        while any(is_alive(self.processes[rank]) for rank in ranks):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def end(self):
        """Exit statuses by rank, and our lines on standard error: PyTorch tells of connections that end there too."""
        for process in self.processes.values():
            if is_alive(process):
                os.kill(process, signal.SIGKILL)
        self.launcher.join(60)
        assert not self.launcher.is_alive()
        return [int(line) for line in self._lines() if " " not in line], [
            line for line in self._err.read_text().splitlines() if line.startswith(("flashkat", "ValueError"))
        ]


@pytest.fixture
def start(tmp_path):
    runs = []

    def run(role, size=3):
        runs.append(Run(tmp_path, role, size))
        return runs[-1]

    yield run
    for each in runs:
        if each.launcher.is_alive():
            each.end()


@pytest.mark.parametrize("role", ["sleeps", "reduces"])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_dies_or_stops_ends_all_others(start, role, sent):
    run = start(role)
    run.signal(1, sent)
    run.wait(0, 2)
    statuses, lines = run.end()
    assert statuses == [1, -signal.SIGKILL, 1]
    assert lines == ["flashkat: error: process 1 has given no sign of life for 2 s: all others end"]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_in_a_graph(start, sent):
    run = start("replays", 2)
    time.sleep(1)
    run.signal(1, sent)
    run.wait(0)
    statuses, lines = run.end()
    assert statuses == [1, -signal.SIGKILL]
    assert lines == ["flashkat: error: process 1 has given no sign of life for 2 s: all others end"]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_the_one_with_the_store(start, sent):
    run = start("sleeps")
    run.signal(0, sent)
    run.wait(1, 2)
    statuses, (line,) = run.end()
    assert statuses == [-signal.SIGKILL, 1, 1]
    assert line.startswith("flashkat: error: process 0")


def test_one_that_fails_ends_all_others_and_speaks_for_itself(start):
    run = start("fails")
    run.wait(0, 1, 2)
    assert run.end() == ([1, 2, 1], ["ValueError"])


def test_one_that_stops_at_a_signal_lets_the_others_stop_too(start):
    run = start("stops")
    run.wait(0, 1, 2)
    assert run.end() == ([2, 2, 2], [])  # the launcher's status for an error


def test_those_that_end_first_are_not_missed(start):
    run = start("ends")
    run.wait(0, 1, 2)
    assert run.end() == ([0, 0, 0], [])


def test_none_outlives_the_one_that_started_it(start):
    run = start("sleeps")
    run.launcher.kill()
    run.launcher.join()
    run.wait(0, 1, 2)


def is_alive(process):
    """Whether it runs or is stopped; one that has ended may be waiting for its parent to notice."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
