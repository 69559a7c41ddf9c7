"""Let Ctrl-C, a signal to end, or the end of torchrun, end a command, also while it still imports PyTorch.

Python's own handler raises KeyboardInterrupt, which an import shows as a traceback or takes for another error. So this
module imports at first only what takes no time.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

__all__ = ["end_children", "guard_command", "interruptible", "leave", "stoppable"]

# The scripts of a checkout, which is three folders above this one.
_SCRIPTS = ("train.py", "validate.py")
_IMPORTING = "<frozen importlib._bootstrap>"
_LINE = b"flashkat: error: interrupted\n"
_STOPPED = b"flashkat: error: stopped\n"

# Between two looks at the parent.
_LOOK_SECONDS = 1.0

_STATUS = 128 + signal.SIGINT


class _Handler:
    """Ends this process at SIGINT with one line, or raises KeyboardInterrupt once where that is allowed."""

    def __init__(self) -> None:
        self.raises, self._process = False, os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader's process, which ends with this one
        if self.raises and not _is_importing(frame):
            self.raises = False
            raise KeyboardInterrupt
        if os.environ.get("RANK", "0") == "0":
            with contextlib.suppress(OSError):
                os.write(2, _LINE)
        os._exit(_STATUS)


def guard_command() -> bool:
    """Handle SIGINT from here on if this process runs one of our commands. Programs that import us keep theirs.

    A command that torchrun has started also ends with torchrun.

    Returns:
        Whether this process runs one of our commands.
    """
    if not _is_command():
        return False
    # A shell's background job ignores SIGINT, and goes on to.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _Handler())
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True, name="end with torchrun").start()
    return True


def _end_with(parent: int) -> None:
    """End this process when torchrun, its parent, has ended. Without it, joining the others may take many minutes."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt within the block, outside of imports. It does so anyway without a guard."""
    handler = signal.getsignal(signal.SIGINT)
    if not isinstance(handler, _Handler):
        yield
        return
    handler.raises = True
    try:
        yield
    finally:
        handler.raises = False


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise Stopped within the block, so that it cleans up. A second one ends the process.

    Handlers that are set already stay. One of several processes ends at once, as it may wait for another.
    """
    from ..errors import Stopped, launched_processes

    own = os.getpid()
    is_alone = launched_processes() == 1 and threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if is_alone and hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() == own and not _is_importing(frame):
            raise Stopped("", number)
        if os.getpid() == own:
            with contextlib.suppress(OSError):
                os.write(2, _STOPPED)
        os.kill(os.getpid(), number)

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def end_children() -> None:
    """End the processes that load images, also those that are stopped. Waiting for these would take many seconds."""
    import multiprocessing

    # PyTorch's handler would raise an error for each of them.
    handles = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if handles else None
    children = [child for child in multiprocessing.active_children() if child.daemon]
    for child in children:
        child.kill()
    for child in children:
        child.join()
    if handles:
        signal.signal(signal.SIGCHLD, before)


def leave(status: int) -> NoReturn:
    """End this process with an exit status. One of several processes ends without finalising the interpreter.

    gloo's threads may still release tensors, and abort the process if there is no interpreter. After FSDP or an error
    these threads outlive the process group.
    """
    from ..errors import launched_processes

    if launched_processes() == 1:
        sys.exit(status)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the pipe's reader has ended
            stream.flush()
    os._exit(status)


def _is_command() -> bool:
    """Return whether this process was started as ``flashkat``, ``python -m flashkat`` or a checkout's script."""
    program, words = sys.argv[0] if sys.argv else "", sys.orig_argv
    if program == "-m":  # Python looks for the module, and imports the packages above it
        module = words[words.index("-m") + 1] if "-m" in words else ""
        return module.partition(".")[0] == "flashkat"
    # A process that multiprocessing has started has our argv, but not as its own.
    if program not in words:
        return False
    from pathlib import Path

    path = Path(program)
    checkout = Path(__file__).parents[3]
    return path.name == "flashkat" or (path.name in _SCRIPTS and path.resolve().parent == checkout)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False
