"""Heartbeats of the processes of a run: if one dies or hangs, all others end and report it in one line.

Otherwise they would wait forever in a collective of a CUDA graph, or in one of gloo whose peer is stopped.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from ..errors import launched_processes, start_prefix

__all__ = ["watched"]

_INTERVAL_SECONDS = 4.0
# A process counts as dead after so many intervals without a heartbeat.
_PATIENCE = 8
_LEFT = "left"


@contextlib.contextmanager
def watched(rank: int, size: int, interval: float = _INTERVAL_SECONDS) -> Iterator[None]:
    """Watch over the processes of a run, which all enter this context together. A single process watches nothing.

    Each process sends heartbeats through the run's store (MASTER_ADDR, MASTER_PORT), and watches the next process. All
    end with status 1 when a process has missed eight heartbeats. A process also ends when its parent has ended.

    Args:
        rank: this process's rank.
        size: number of processes.
        interval: seconds between two heartbeats.
    """
    if size == 1 or launched_processes() == 1:
        yield
        return
    heartbeat = _Heartbeat(rank, size, interval)
    try:
        yield
    except Exception as error:
        if _is_about_another(error):
            # The heartbeats soon show which process has ended, and report it.
            heartbeat.wait()
        heartbeat.stop(failed=True)
        raise
    except BaseException:  # all processes stop at a signal, and none may end another, which still has to say so
        heartbeat.stop()
        raise
    heartbeat.stop()


class _Heartbeat:
    def __init__(self, rank: int, size: int, interval: float) -> None:
        self._rank, self._size, self._interval = rank, size, interval
        self._parent, self._rounds, self._stopped = os.getppid(), 0, threading.Event()
        self._prefix = start_prefix()
        self._dead = f"{self._prefix}/dead"
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of its own, as calls on the group's would wait for each other.
        self._store = dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=_PATIENCE * interval))
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._beat, self._guard)]
        for thread in self._threads:
            thread.start()

    def stop(self, failed: bool = False) -> None:
        """Stop the heartbeats. After an error, make the other processes end."""
        self._stopped.set()
        self._threads[0].join(self._interval)
        if self._threads[0].is_alive():
            return  # the store does not answer
        with contextlib.suppress(Exception):
            if failed:
                self._store.add(self._dead, 1)
            self._store.set(self._key(self._rank), _LEFT)

    def wait(self) -> None:
        """Wait until the threads have found which process has ended. They end this process, too."""
        self._threads[1].join((_PATIENCE + 3) * self._interval)

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/beats/{rank}"

    def _beat(self) -> None:
        """Send heartbeats, and watch the next process.

        Time is counted in this process's own heartbeats, so that a suspended computer does not count as dead.
        """
        watched, last, missed = (self._rank + 1) % self._size, "", 0
        with contextlib.suppress(Exception):  # the store has ended, which the guard notices
            while not self._stopped.wait(self._interval if self._rounds else 0):
                self._store.set(self._key(self._rank), str(self._rounds))
                self._rounds += 1
                if self._store.check([self._dead]):
                    self._end(None)
                beat = self._store.get(self._key(watched)).decode() if self._store.check([self._key(watched)]) else ""
                missed = 0 if beat != last or beat == _LEFT else missed + 1
                last = beat
                if missed >= _PATIENCE:
                    is_first = self._store.add(self._dead, 1) == 1
                    self._end(f"process {watched} has given no sign of life" if is_first else None)

    def _guard(self) -> None:
        """Watch the parent process, and the store, whose calls may never return."""
        rounds, missed = -1, 0
        while not self._stopped.wait(self._interval):
            if os.getppid() != self._parent:
                self._end(None)
            missed = 0 if self._rounds != rounds else missed + 1
            rounds = self._rounds
            if missed >= _PATIENCE:
                # Without a store the processes cannot agree on which one reports.
                self._end("process 0, or what started it, has given no sign of life" if self._rank == 1 else None)

    def _end(self, reason: str | None) -> None:
        """End this process at once, even if other threads wait."""
        if self._stopped.is_set():
            return
        if reason is not None:
            with contextlib.suppress(OSError, ValueError):
                seconds = round(_PATIENCE * self._interval)
                print(f"flashkat: error: {reason} for {seconds} s: all others end", file=sys.stderr, flush=True)
        if self._rank == 0:
            # The store may be in this process. The others would report lost connections at length.
            time.sleep(2 * self._interval)
        os._exit(1)


def _is_about_another(error: Exception) -> bool:
    """Return whether an error comes from a collective or a connection, and so from another process."""
    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
