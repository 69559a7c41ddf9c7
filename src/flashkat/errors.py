"""The errors that the command line reports in one line, without a traceback."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["DivergedError", "InputError", "check_writable", "explain", "is_installed", "require", "require_package"]


class InputError(ValueError):
    """Bad input; the message says what is wrong and what to do about it."""

    def __init__(self, message: str) -> None:
        # A DataLoader worker's exception arrives as this class with the worker's whole traceback for a message.
        if message.startswith("Caught InputError in DataLoader worker"):
            message = message.rstrip().rsplit("InputError: ", 1)[-1]
        super().__init__(message)


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
        reason = str(error).strip().split("\n")[0] or "no reason given"
        raise InputError(f"{what}: {reason}{hint}") from error


def check_writable(path: Path) -> None:
    """Raise InputError unless a file can be written under this name."""
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} to")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write to {path.parent}: permission denied")


def is_installed(module: str) -> bool:
    """Whether a module can be imported."""
    return module in sys.modules or importlib.util.find_spec(module) is not None


def require_package(module: str, flag: str) -> None:
    """Raise InputError unless the module that a flag needs is installed."""
    if not is_installed(module):
        raise InputError(f"{flag} needs a package that is not installed: pip install {module.replace('_', '-')}")


def require(*modules: str, extra: str) -> None:
    """Raise InputError unless the modules of an optional dependency group are installed."""
    missing = [module for module in modules if not is_installed(module)]
    if missing:
        raise InputError(f"{' and '.join(missing)} not installed: pip install 'flashkat[{extra}]'")
