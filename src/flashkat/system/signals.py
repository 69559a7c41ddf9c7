"""Stop a run at a signal: it finishes its step, and all its processes stop after the same one."""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch.distributed as dist

from ..errors import start_prefix
from . import distributed
from .interrupts import end_children

__all__ = ["StopRequest", "ignores_hangup", "leave_signals_to_parent", "start_method"]

# Terminals, schedulers and torchrun send these.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]

# Signals that come within so many seconds are one request under torchrun: a scheduler or a terminal may signal both
# torchrun, which forwards it, and the processes.
_TOGETHER = 2.0

# Seconds between two looks at the store that processes share.
_INTERVAL = 0.5


class StopRequest:
    """A context that notices a signal to stop. A second one ends the process at once, see ``_TOGETHER``.

    Several processes agree on the step after which they stop. If one stopped earlier, the others would wait for it.
    Each tells the first one its number of steps, and begins only one more until the first one has named the last step.
    """

    def __init__(self) -> None:
        self._received = self._heard_of = 0
        self._received_at, self._together = 0.0, _TOGETHER if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
        self._steps = 0
        self._told: int | None = None
        self._stop_after: int | None = None
        self._counting, self._agreed, self._done = threading.Lock(), threading.Event(), threading.Event()
        self._before: dict[int, Any] = {}
        self._store: Any = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            skipped = [signal.SIGHUP] if ignores_hangup() else []
            self._before = {
                number: signal.signal(number, self._receive) for number in _SIGNALS if number not in skipped
            }
        if distributed.size() > 1:
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            # A connection of its own, as calls on the group's would wait for each other.
            store = dist.TCPStore(*address, is_master=False)
            self._store = dist.PrefixStore(f"{start_prefix()}/stop", store)
            threading.Thread(target=self._agree, daemon=True, name="stop request").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for number, handler in self._before.items():
            # Python gives None for a handler that it has not set, and cannot set that again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def number(self) -> int:
        """The number of the signal that this process, or else another one, has received."""
        return self._received or self._heard_of or signal.SIGTERM

    def after_step(self) -> bool:
        """Count a step, and return whether the run stops after it."""
        with self._counting:
            self._steps += 1
            has_told = self._told is not None
        if self._store is None:
            return bool(self._received)
        if has_told:
            self._agreed.wait()
        return self._stop_after is not None and self._steps >= self._stop_after

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._received:
            self._received, self._received_at = number, time.monotonic()
        elif time.monotonic() - self._received_at >= self._together:
            end_children()
            os._exit(128 + number)

    def _agree(self) -> None:
        """Tell the first process of a signal and of this one's steps, and learn from it after which step all stop."""
        ranks = range(distributed.size())
        try:
            while not self._done.wait(_INTERVAL):
                if self._received and self._told is None:
                    self._store.set("asked", str(self._received))
                if self._told is None and self._store.check(["asked"]):
                    # Not as received here: this process's own signal may come later, and is its first one.
                    self._heard_of = int(self._store.get("asked"))
                    with self._counting:
                        self._told = self._steps
                    self._store.set(f"steps/{distributed.rank()}", str(self._told))
                if distributed.rank() == 0 and self._store.check([f"steps/{rank}" for rank in ranks]):
                    # Every process has ended this step, or is in it and waits at its end.
                    last = 1 + max(int(self._store.get(f"steps/{rank}")) for rank in ranks)
                    self._store.set("last", str(last))
                if self._store.check(["last"]):
                    self._stop_after = int(self._store.get("last"))
                    return
        except Exception:
            return  # the store is gone once the processes leave each other
        finally:
            self._agreed.set()


def ignores_hangup() -> bool:
    """Return whether this process was started to live on after its terminal has closed, as by nohup."""
    return hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def start_method() -> str | None:
    """Return how processes that load images start. On Linux they must be children of the process that they serve.

    They end with it and at its word. Python 3.14 would fork them from a server. None takes Python's default.
    """
    return "fork" if sys.platform == "linux" else None


def leave_signals_to_parent() -> None:
    """Let this process, which loads images for its parent, live on until its parent ends it.

    torchrun sends a signal to the processes of the run and to all their children.
    """
    for number in _SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with_parent, daemon=True, name="end with parent").start()


def _end_with_parent() -> None:
    """End this process at a SIGTERM from its parent."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
