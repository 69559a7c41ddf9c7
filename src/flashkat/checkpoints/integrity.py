"""Find damage: checksums of what a file holds, written with it, and sizes that no honest file claims.

PyTorch's files are zip archives with a CRC-32 for each record. Ours have a comment beside, the SHA-256 of the
directory's names, sizes and CRC-32s. Other programs ignore the comment. It costs no second pass over the tensors, and
tells records that were exchanged for each other. Ours in safetensors have a CRC-32 of names, shapes and numbers in
their metadata.
"""

import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["check_name", "check_records", "check_sizes", "check_tensors", "digest", "seal"]

_SEAL = b"flashkat sha256:"

# A file may claim this many times its own size, and small ones this many bytes.
_GROWTH, _FREE = 20, 64 * 2**20
_CHUNK = 2**20


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
    """Raise InputError for an archive whose directory claims more than such a small file can hold."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(record.file_size for record in archive.infolist())
    _check_claim(claimed, path)


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
    """Raise InputError for tensors that no memory holds: more numbers than the file has, or none at all."""
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
    """Walk nested dictionaries and lists; what occurs twice, or in itself, is seen once."""
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
