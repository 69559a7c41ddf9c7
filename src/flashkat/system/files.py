"""Check that files can be written, and replace them in one step. Fill new folders in one step."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

__all__ = ["check_writable", "identity", "new_folder", "placeholder", "replaced"]

# Bytes of a file that tell its kind.
_HEAD = 128


def placeholder(head: bytes) -> str:
    """Return what a file is that stands for another one, and what to do, by its first bytes; empty for any other."""
    if head.startswith(b"version https://git-lfs."):
        return "is a pointer of Git LFS, not the file itself: git lfs pull fetches that"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not the file itself: download that"
    return ""


def identity(path: Path) -> tuple[int, int]:
    """Return the device and the number of a file or folder. Links to one file have the same."""
    status = path.stat()
    return status.st_dev, status.st_ino


def check_writable(path: Path, begins: str = "") -> None:
    """Raise InputError unless a file can be written under this name.

    Args:
        path: the file.
        begins: regular expression of how files of the same kind begin. A file of another kind is not overwritten.
    """
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    file_itself = _file_itself(path)
    if file_itself is not None and not file_itself.parent.is_dir():
        raise InputError(f"no folder {file_itself.parent} to write {file_itself.name} to")
    written = path if file_itself is None else file_itself.parent
    if not os.access(written, os.W_OK):
        raise InputError(f"cannot write to {written}: permission denied")
    if begins and path.is_file() and os.access(path, os.R_OK):
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head and not re.match(begins.encode(), head):
            raise InputError(f"{path} is there already and another kind of file: give another name or remove it")


@contextlib.contextmanager
def replaced(path: Path, *, keeps_special: bool = True) -> Iterator[Path]:
    """Yield a temporary name to write to, which replaces ``path`` in one step at the end. After an error it is removed.

    File and folder are flushed to the disk, so that even a power cut leaves the old file or the new one.

    Args:
        path: the file.
        keeps_special: write directly to a path that is no ordinary file, such as a terminal, and replace the file that
            a link leads to. Otherwise the path itself is replaced: no program reads a named pipe in a run's folder, so
            that writing to it would wait for ever.
    """
    if keeps_special:
        file_itself = _file_itself(path)
        if file_itself is None:
            yield path
            return
        path = file_itself
    # Two processes that write one file must not write to one temporary file.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        _flush(partial, os.O_RDWR)  # Windows flushes nothing that is only open to read
        partial.replace(path)
        with contextlib.suppress(OSError):  # some network file systems flush no folders, and Windows opens none
            _flush(path.parent, os.O_RDONLY)
    finally:
        # If both names are links to one file, replace() leaves the first.
        with contextlib.suppress(OSError):  # one that the system has refused to write
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``, whose content moves there at the end. After an error it is removed.

    Raises:
        InputError: the folder is there and not empty, or cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not empty: choose another folder or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        yield staging
        folder.mkdir(exist_ok=True)
        for entry in sorted(staging.iterdir()):
            entry.replace(folder / entry.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _file_itself(path: Path) -> Path | None:
    """Return the ordinary file that a path names or leads to; None for a terminal, a pipe and the like."""
    if not path.exists():
        return path
    found = path.resolve() if path.is_symlink() else path
    # /dev/stdout may lead to a pipe or a deleted file, which have no name.
    return found if found.is_file() else None


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
