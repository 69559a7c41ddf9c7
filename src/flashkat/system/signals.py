"""Stop a run at a signal: it finishes its step, and all its processes stop after the same one."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch.distributed as dist

from . import distributed

__all__ = ["StopRequest", "Stopped"]

# Terminals, schedulers and torchrun send these.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]

# Seconds between two looks at the store that processes share.
_INTERVAL = 0.5


class Stopped(Exception):  # noqa: N818 - it is no error
    """A signal has ended a run. The message says how to resume it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


class StopRequest:
    """A context that notices a signal to stop. A second signal ends the process at once.

    Several processes agree on the step after which they stop. If one stopped earlier, the others would wait for it.
    """

    def __init__(self) -> None:
        self._received = 0
        self._steps = 0
        self._stop_after: int | None = None
        self._done = threading.Event()
        self._before: dict[int, Any] = {}
        self._store: Any = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        if distributed.size() > 1:
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            # A connection of its own, as calls on the group's would wait for each other.
            store = dist.TCPStore(*address, is_master=False)
            self._store = dist.PrefixStore(f"flashkat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/stop", store)
            threading.Thread(target=self._agree, daemon=True, name="stop request").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def number(self) -> int:
        """The number of the received signal."""
        return self._received or signal.SIGTERM

    def after_step(self) -> bool:
        """Count a step, and return whether the run stops after it."""
        self._steps += 1
        if self._store is None:
            return bool(self._received)
        return self._stop_after is not None and self._steps >= self._stop_after

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + number)
        self._received = number

    def _agree(self) -> None:
        """Tell the first process of a signal, and learn from it the step after which all stop."""
        told, last, looked = False, 0, time.monotonic()
        # The store is gone once the processes leave each other.
        with contextlib.suppress(Exception):
            while not self._done.wait(_INTERVAL):
                now = time.monotonic()
                done, seconds, last, looked = self._steps - last, now - looked, self._steps, now
                if self._received and not told:
                    self._store.set("asked", str(self._received))
                    told = True
                if distributed.rank() == 0 and not self._store.check(["step"]) and self._store.check(["asked"]):
                    # At the present rate of steps, every process has looked by then.
                    ahead = max(2, round(4 * _INTERVAL * done / seconds))
                    self._store.set("step", str(self._steps + ahead))
                if self._store.check(["step"]):
                    self._received = self._received or int(self._store.get("asked"))
                    self._stop_after = int(self._store.get("step"))
                    return
