"""Find damage: checksums of what a file holds, written with it, and sizes that no honest file claims.

PyTorch's files are zip archives with a CRC-32 for each record. Ours have a comment beside, the SHA-256 of the
directory's names, sizes and CRC-32s. Other programs ignore the comment. It costs no second pass over the tensors, and
tells records that were exchanged for each other. Ours in safetensors have a CRC-32 of names, shapes and numbers in
their metadata.
"""

import hashlib
import io
import os
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .structure import fault_of_structure

__all__ = [
    "check_header",
    "check_name",
    "check_pickles",
    "check_records",
    "check_sizes",
    "check_tensors",
    "digest",
    "seal",
]

_SEAL = b"flashkat sha256:"

# A file may claim this many times its own size, and small ones this many bytes.
_GROWTH, _FREE = 20, 64 * 2**20
# Names and structure may take this share of a file, and of small ones this many bytes. It takes 1 s to read 2**20.
_SHARE, _FREE_NAMES = 1 / 64, 4 * 2**20
_CHUNK = 2**20

# An older file begins with this many pickles: its number, version, system, content and names of storages.
_PICKLES = 5


class _Archive(io.FileIO):
    """An archive's file whose directory, which is read in one piece, may not be absurdly long."""

    def read(self, size: int | None = -1, /) -> Any:
        if size is not None and size > _CHUNK:
            _check_names(size, Path(os.fsdecode(self.name)))
        return super().read(size)


_NAMED = re.compile(r"[-_]([0-9a-f]{64})\.")


def check_name(path: Path) -> None:
    """Raise InputError for a file whose name ends in the SHA-256 of another content, as published weights' names do."""
    named = _NAMED.search(path.name)
    if named is None:
        return
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    if found.hexdigest() != named[1]:
        raise InputError(
            f"{path} is not the file that its name says, its SHA-256 is {found.hexdigest()[:8]}...: "
            "download it again, or rename it if you changed it"
        )


def seal(path: Path) -> None:
    """Add the checksum of its directory to a file that ``torch.save`` has written, as the archive's comment."""
    with zipfile.ZipFile(path) as archive:
        comment = _directory_checksum(archive)
    with path.open("r+b") as file:
        # The last field of the archive is the comment's length, 0 so far.
        file.seek(-2, os.SEEK_END)
        file.write(len(comment).to_bytes(2, "little") + comment)


def _directory_checksum(archive: zipfile.ZipFile) -> bytes:
    lines = [f"{record.filename} {record.file_size} {record.CRC}" for record in archive.infolist()]
    return _SEAL + hashlib.sha256("\n".join(lines).encode()).hexdigest().encode()


def check_sizes(path: Path) -> None:
    """Raise InputError for an archive whose directory claims more than such a small file can hold.

    The directory and the structure of the content may be long only in files that hold much.
    """
    with _Archive(path) as file, zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    _check_claim(sum(record.file_size for record in records), path)
    # PyTorch finds names in any case.
    contents = [record.file_size for record in records if record.filename.lower().endswith("data.pkl")]
    _check_names(max(contents, default=0), path)


def check_pickles(path: Path) -> None:
    """Raise InputError for a file of PyTorch's older format with an absurdly long structure."""
    with path.open("rb") as file:
        for _ in range(_PICKLES):
            try:
                for _ in pickletools.genops(file):
                    _check_names(file.tell(), path)
            except InputError:
                raise
            except Exception:  # it is damaged or no pickle, which reading it tells
                return


def check_header(path: Path) -> None:
    """Raise InputError for a ``.safetensors`` with an absurdly long header."""
    with path.open("rb") as file:
        _check_names(int.from_bytes(file.read(8), "little"), path)


def _check_names(length: int, path: Path) -> None:
    if length > _FREE_NAMES and length > _most_names(path):
        raise InputError(f"{path} has {length:,} bytes of names and structure: no checkpoint of its size does")


def _most_names(path: Path) -> int:
    return _FREE_NAMES + int(path.stat().st_size * _SHARE)


def _check_claim(claimed: int, path: Path) -> None:
    size = path.stat().st_size
    if claimed > _FREE + _GROWTH * size:
        raise InputError(f"{path} has {size:,} bytes and claims to hold {claimed:,}: no checkpoint does")


def check_records(path: Path) -> None:
    """Raise BadZipFile unless every record of an archive has its checksum, and the directory has ours if any."""
    with zipfile.ZipFile(path) as archive:
        if archive.comment.startswith(_SEAL) and archive.comment != _directory_checksum(archive):
            raise zipfile.BadZipFile("records were exchanged")
        records = archive.infolist()
        if not any(record.CRC for record in records):
            return  # torch.serialization.set_crc32_options(False)
        for record in records:
            with archive.open(record) as file:
                while file.read(_CHUNK):
                    pass


def check_tensors(checkpoint: Mapping[Any, Any], path: Path) -> None:
    """Raise InputError for tensors that no memory holds: more numbers than the file has, or none at all.

    The same holds for lists and dictionaries that no one could walk.
    """
    if fault := fault_of_structure(checkpoint, _most_names(path)):
        raise InputError(f"{path} holds {fault}: no checkpoint does")
    claimed = 0
    for name, tensor in _tensors(checkpoint):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
            raise InputError(f"{path} holds a tensor that is no plain array of numbers: {name!s:.200}")
        claimed += tensor.numel() * tensor.element_size()
    _check_claim(claimed, path)


def digest(state: Mapping[str, Tensor]) -> str:
    """Return the checksum of a state_dict: of names, dtypes, shapes and numbers, in the order of the names."""
    total = 0
    for name, tensor in sorted(state.items()):
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode(), total)
        total = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, total)
    return f"crc32:{total:08x}"


def _tensors(checkpoint: Mapping[Any, Any]) -> Iterator[tuple[Any, Tensor]]:
    """Walk nested dictionaries and lists; what occurs twice is seen once."""
    seen: set[int] = set()
    left: list[tuple[Any, Any]] = [("", checkpoint)]
    while left:
        name, value = left.pop()
        if not isinstance(value, (Tensor, Mapping, list, tuple)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield name, value
        else:
            left.extend(value.items() if isinstance(value, Mapping) else ((name, each) for each in value))
