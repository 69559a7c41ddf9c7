"""Errors that the command line reports in one line, without a traceback."""

import contextlib
import difflib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta

__all__ = [
    "DivergedError",
    "InputError",
    "Stopped",
    "UnreachableError",
    "did_you_mean",
    "explain",
    "is_installed",
    "is_out_of_memory",
    "launched_processes",
    "quiet",
    "require",
    "require_package",
    "show_once",
    "start_prefix",
]

# Modules whose package has another name on PyPI.
_PACKAGES = {"sklearn": "scikit-learn"}

# Python's message for an unknown argument. The text after it may suggest another name.
_NO_SUCH_ARGUMENT = re.compile(r"^\S+\(\) got an unexpected keyword argument '(\w+)'")

# A process that cannot reach the others within this time reports its own error.
_PATIENCE = timedelta(seconds=10)


class InputError(ValueError):
    """Bad input. The message says what is wrong, then what to do."""

    def __init__(self, message: str) -> None:
        # torch re-raises a DataLoader worker's exception with the whole traceback as its message.
        if message.startswith("Caught InputError in DataLoader worker"):
            message = message.rstrip().rsplit("InputError: ", 1)[-1]
        super().__init__(message)


class UnreachableError(InputError):
    """The hub that weights are downloaded from cannot be reached. The message says what to do without it."""


class DivergedError(RuntimeError):
    """Loss, gradients or weights are no longer finite. The message says when, then what usually helps."""


class Stopped(BaseException):
    """A signal has ended a command. The message says how to resume a run. "except Exception" lets it pass."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception is PyTorch's for a device without memory."""
    # PyTorch may not be imported yet. Then the error is not its own.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


@contextlib.contextmanager
def explain(what: str, hint: str = "") -> Iterator[None]:
    """Turn an exception of timm or torch into an InputError.

    Args:
        what: the beginning of the message: what cannot be done.
        hint: the end of the message, after the exception's first line.

    Raises:
        InputError: the block raised any exception but running out of memory.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = said.strip().split("\n")[0] or "no reason given"
        reason = _NO_SUCH_ARGUMENT.sub(r"there is no argument \1", reason)
        raise InputError(f"{what}: {reason}{hint}") from error


def did_you_mean(name: str, known: Collection[str], otherwise: str, likeness: float = 0.6) -> str:
    """Suggest a known name for an unknown one.

    Args:
        name: the unknown name.
        known: all names.
        otherwise: returned when no name is similar.
        likeness: least similarity in [0, 1], as for :func:`difflib.get_close_matches`.

    Returns:
        A question with the shortest name that begins with ``name``, or else with the most similar one.
    """
    longer = [other for other in known if name and other.startswith(name)]
    nearest = sorted(longer, key=len) or difflib.get_close_matches(name, known, n=1, cutoff=likeness)
    return f"did you mean {nearest[0]!r}?" if nearest else otherwise


def is_installed(module: str) -> bool:
    """Return whether a module can be imported. A mere folder of its name, such as wandb makes, is no module."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        return getattr(loaded, "__file__", None) is not None or not hasattr(loaded, "__path__")
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


@contextlib.contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Suppress the warnings of libraries, given by the names of their loggers."""
    loggers = [logging.getLogger(library) for library in libraries]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def require_package(module: str, flag: str) -> None:
    """Raise InputError unless the module that a flag needs is installed."""
    if not is_installed(module):
        raise InputError(f"{flag} needs a package that is not installed: pip install {_package(module)}")


def require(*modules: str) -> None:
    """Raise InputError unless the modules are installed."""
    missing = [_package(module) for module in modules if not is_installed(module)]
    if missing:
        raise InputError(f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}")


def _package(module: str) -> str:
    """Return the name of the package to install for a module."""
    return _PACKAGES.get(module, module.replace("_", "-"))


def launched_processes() -> int:
    """Return how many processes torchrun has started for this run. Without torchrun it is 1."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdecimal() else 1


def start_prefix() -> str:
    """Return the prefix of this start's keys in the store of the run, which torchrun may keep through restarts.

    Nodes may count restarts differently, so the count is left out where each start has a store of its own.
    """
    is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return f"flashkat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0) if is_kept else 0}"


def show_once(show: Callable[[], None]) -> None:
    """Report an error once, although several processes fail from it.

    The first process that comes here calls ``show``. The others wait until it is done. As soon as one process leaves,
    torchrun ends all, which would cut the report short.

    Args:
        show: prints the error.
    """
    if launched_processes() == 1:
        show()
        return
    try:
        import torch.distributed as dist

        # By default torchrun keeps this store alive through the ends and restarts of the processes.
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_PATIENCE
        )
        key = start_prefix()
        is_first = store.add(f"{key}/failed", 1) == 1
    except Exception:  # there is no store, or an interrupt has ended torchrun
        if int(os.environ.get("RANK", 0)) == 0:
            show()
        return
    if is_first:
        show()
        store.set(f"{key}/shown", "")
    else:
        with contextlib.suppress(Exception):
            store.wait([f"{key}/shown"], _PATIENCE)
