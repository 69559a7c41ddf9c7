"""The errors that the command line reports in one line, without a traceback."""

import contextlib
import difflib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = [
    "DivergedError",
    "InputError",
    "UnreachableError",
    "did_you_mean",
    "explain",
    "is_installed",
    "launched_processes",
    "printable",
    "quiet",
    "require",
    "require_package",
    "show_once",
]

# What modules are called in the package registry, where that is another name.
_PACKAGES = {"sklearn": "scikit-learn"}

# How Python refuses an argument; what follows may suggest another.
_NO_SUCH_ARGUMENT = re.compile(r"^\S+\(\) got an unexpected keyword argument '(\w+)'")

# Whoever cannot reach the other processes in this time reports for itself.
_PATIENCE = timedelta(seconds=10)


class InputError(ValueError):
    """Bad input; the message says what is wrong and what to do about it."""

    def __init__(self, message: str) -> None:
        # A DataLoader worker's exception arrives as this class with the worker's whole traceback for a message.
        if message.startswith("Caught InputError in DataLoader worker"):
            message = message.rstrip().rsplit("InputError: ", 1)[-1]
        super().__init__(message)


class UnreachableError(InputError):
    """Weights that cannot be downloaded, nor could any others now; the message says what to do without."""


class DivergedError(RuntimeError):
    """Training cannot go on, the loss is no longer a number; the message says when, and what usually helps."""


@contextlib.contextmanager
def explain(what: str, hint: str = "") -> Iterator[None]:
    """Turn what timm and torch raise for arguments they cannot use into an InputError: ``what``, the reason, a hint."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = said.strip().split("\n")[0] or "no reason given"
        reason = _NO_SUCH_ARGUMENT.sub(r"there is no argument \1", reason)
        raise InputError(f"{what}: {reason}{hint}") from error


def did_you_mean(name: str, known: Collection[str], otherwise: str, likeness: float = 0.6) -> str:
    """A question with the name that was begun, or else the nearest; or what to say where none is as near as that."""
    longer = [other for other in known if name and other.startswith(name)]
    nearest = sorted(longer, key=len) or difflib.get_close_matches(name, known, n=1, cutoff=likeness)
    return f"did you mean {nearest[0]!r}?" if nearest else otherwise


def is_installed(module: str) -> bool:
    """Whether a module can be imported."""
    return module in sys.modules or importlib.util.find_spec(module) is not None


@contextlib.contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Without warnings of libraries, named as their loggers, about what will be an InputError if it matters."""
    loggers = [logging.getLogger(library) for library in libraries]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def require_package(module: str, flag: str, hint: str = "") -> None:
    """Raise InputError unless the module that a flag needs is installed."""
    if not is_installed(module):
        raise InputError(f"{flag} needs a package that is not installed: pip install {_package(module)}{hint}")


def require(*modules: str) -> None:
    """Raise InputError unless the modules are installed."""
    missing = [_package(module) for module in modules if not is_installed(module)]
    if missing:
        raise InputError(f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}")


def _package(module: str) -> str:
    """The package to install for a module: by its own name, which works for a checkout as for what pip installed."""
    return _PACKAGES.get(module, module.replace("_", "-"))


def printable(name: str) -> str:
    """Return a file's name with escapes in place of what a terminal would act on."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in name)


def launched_processes() -> int:
    """How many processes torchrun says it has started for this run, 1 without torchrun."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdecimal() else 1


def show_once(show: Callable[[], None]) -> None:
    """Call ``show``, which reports an error, in the first process that comes here; the others wait until it is done.

    One mistake makes every process fail, at once or because a neighbour has gone. torchrun ends all of them as soon as
    one has; so who is not the first to speak does not leave before the first has spoken.
    """
    if launched_processes() == 1:
        show()
        return
    try:
        # torchrun keeps this store alive through the ends and restarts of the processes.
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_PATIENCE
        )
        key = f"flashkat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        is_first = store.add(f"{key}/failed", 1) == 1
    except Exception:  # no store, or no more: an interrupt has ended torchrun
        if int(os.environ.get("RANK", 0)) == 0:
            show()
        return
    if is_first:
        show()
        store.set(f"{key}/shown", "")
    else:
        with contextlib.suppress(Exception):
            store.wait([f"{key}/shown"], _PATIENCE)
