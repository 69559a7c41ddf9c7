"""Reads that may stall, as from a network file system: which sample each process is at, and a limit of time."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch.utils.data import get_worker_info

from ..errors import InputError

__all__ = ["Reads", "explain_workers"]

_NOTHING = -1

_HINT = "try fewer --workers, or a longer --loader-timeout for slow storage"


@contextlib.contextmanager
def explain_workers(being_read: Callable[[], str] = str, hint: str = _HINT) -> Iterator[None]:
    """Turn PyTorch's error about a process that loads images into an InputError.

    PyTorch raises it in whatever runs when such a process dies.

    Args:
        being_read: returns what the processes read.
        hint: the end of the message.

    Raises:
        InputError: a process was killed, or gave nothing for too long.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):
            raise
        read = being_read()
        reason = str(error).splitlines()[0].rstrip(" .")
        raise InputError(f"loading images stopped: {reason}{read and f', {read}'}; {hint}") from error


class Reads:
    """The reads of a loader's processes, by the numbers of their samples.

    PyTorch limits the time that workers take, but does not say what they read. Without workers it limits nothing.

    Args:
        workers: how many processes read; 0 if the calling one does.
        limit: seconds that a read in the calling process may take; 0 sets no limit.
    """

    def __init__(self, workers: int, limit: float) -> None:
        self._limit = limit
        self._at = torch.full((max(1, workers),), _NOTHING).share_memory_()
        self._helper: _Helper | None = None

    def read(self, read: Callable[[int], Any], number: int) -> Any:
        """Return ``read(number)``, and take note of the number until :meth:`done`.

        Raises:
            TimeoutError: there is no worker, and the read has reached the limit. It may go on in a thread.
        """
        worker = get_worker_info()
        self._note(worker, number)
        if worker is not None or not self._limit:
            return read(number)
        # The system may not let go of a thread that waits for a file, so this one must not be it.
        helper, self._helper = self._helper or _Helper(), None
        result = helper.call(read, number, self._limit)
        self._helper = helper
        return result

    def done(self) -> None:
        """Take note that this process has done its sample."""
        self._note(get_worker_info(), _NOTHING)

    def _note(self, worker: Any, number: int) -> None:
        # Writing through the tensor itself would take as long as reading a small image.
        self._at.numpy()[0 if worker is None else worker.id] = number

    def at(self) -> dict[int, int]:
        """Return the samples that are not done, by the workers' numbers."""
        return {worker: number for worker, number in enumerate(self._at.tolist()) if number != _NOTHING}


class _Helper:
    """A thread that reads for another one."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[int], Any], int]] = SimpleQueue()
        self._results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        # The interpreter does not wait for daemons at its end.
        threading.Thread(target=self._work, daemon=True, name="reads").start()

    def call(self, read: Callable[[int], Any], number: int, limit: float) -> Any:
        self._calls.put((read, number))
        try:
            result, error = self._results.get(timeout=limit)
        except Empty:
            raise TimeoutError(f"no answer for {limit:g} s") from None
        if error is not None:
            raise error
        return result

    def _work(self) -> None:
        while True:
            read, number = self._calls.get()
            try:
                self._results.put((read(number), None))
            except BaseException as error:
                self._results.put((None, error))
