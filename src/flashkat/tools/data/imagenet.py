"""Unpack ImageNet-1k's archives into the layout of training: ``flashkat data imagenet``.

The layout is ``train/WNID/*.JPEG`` and ``val/WNID/*.JPEG``. The devkit says which class a validation image has.
Nothing of an archive decides where a file goes but names of the form that ImageNet's have.
"""

import hashlib
import io
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from ...errors import InputError, explain, require
from ...system.terminal import printable_name

__all__ = ["unpack_imagenet"]


class _Published(NamedTuple):
    """What a published archive is: its MD5, and its number of images."""

    md5: str
    images: int = 0


# From https://image-net.org/challenges/LSVRC/2012/2012-downloads.php, as torchvision has them.
_PUBLISHED = {
    "train": _Published("1d675b47d978889d74fa0da5fadfb00e", 1_281_167),
    "val": _Published("29b22e2961454d5413ddabcf34fc5622", 50_000),
    "devkit": _Published("fa75699e90414af021442c21a62c3abf"),
}

_CLASS = re.compile(r"(?:.*/)?(n\d{8})\.tar")
_TRAINING = re.compile(r"(?:.*/)?((n\d{8})_\d+\.JPEG)")
_VALIDATION = re.compile(r"(?:.*/)?(ILSVRC2012_val_(\d{8})\.JPEG)")

# The devkit's own files are smaller by far.
_MOST_BYTES = 64 * 2**20


class _Summed(io.RawIOBase):
    """A file that is read once, from start to end, and its MD5."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.md5 = file, hashlib.md5(usedforsecurity=False)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self.md5.update(chunk)
        return chunk


def unpack_imagenet(folder: str, train: str = "", val: str = "", devkit: str = "") -> dict[str, int]:
    """Unpack ImageNet's archives. Files that are there already, with the right size, are left as they are.

    Args:
        folder: the folder to make or to complete.
        train: ILSVRC2012_img_train.tar; empty leaves out the training images.
        val: ILSVRC2012_img_val.tar; empty leaves out the validation images.
        devkit: ILSVRC2012_devkit_t12.tar.gz, for ``val``.

    Returns:
        The number of images in each split.

    Raises:
        InputError: an archive cannot be read, is not the published one, or no archive is given.
    """
    require("rich")
    if not (train or val):
        raise InputError("nothing to unpack: give --train, or --val and --devkit")
    if val and not devkit:
        raise InputError("the validation images have no classes without the devkit: give --devkit")
    for path in filter(None, (train, val, devkit)):
        if not Path(path).is_file():
            raise InputError(f"no archive at {path}")
    classes = _validation_classes(devkit) if val else []
    counts = {}
    if train:
        counts["train"] = _unpack(train, "train", Path(folder, "train"), _training_images)
    if val:
        counts["val"] = _unpack(val, "val", Path(folder, "val"), lambda archive: _validation_images(archive, classes))
    return counts


def _training_images(archive: tarfile.TarFile) -> Iterator[tuple[str, str, int, IO[bytes]]]:
    """Yield class, name, size and content of each training image. Every class is an archive in the archive."""
    for member, content in _files(archive):
        found = _CLASS.fullmatch(member.name)
        if found is None:
            raise InputError(f"{archive.name!s} holds {member.name!r:.80}, which is no class of ImageNet's")
        with tarfile.open(fileobj=content, mode="r|") as images:
            for image, pixels in _files(images):
                named = _TRAINING.fullmatch(image.name)
                if named is None or named[2] != found[1]:
                    raise InputError(f"{archive.name!s} holds {image.name!r:.80}, which is no image of {found[1]}")
                yield found[1], named[1], image.size, pixels


def _validation_images(archive: tarfile.TarFile, classes: list[str]) -> Iterator[tuple[str, str, int, IO[bytes]]]:
    """Yield class, name, size and content of each validation image."""
    for member, content in _files(archive):
        named = _VALIDATION.fullmatch(member.name)
        if named is None or not 1 <= int(named[2]) <= len(classes):
            raise InputError(f"{archive.name!s} holds {member.name!r:.80}, which is no validation image of ImageNet's")
        yield classes[int(named[2]) - 1], named[1], member.size, content


def _files(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Yield the ordinary files of an archive. Links and devices are none."""
    for member in archive:
        if member.isreg() and (content := archive.extractfile(member)) is not None:
            yield member, content


def _unpack(path: str, kind: str, folder: Path, images: Any) -> int:
    """Write the images of an archive, and return how many it holds."""
    count = 0
    with _opened(path, kind) as archive:
        for name, file, size, content in images(archive):
            count += 1
            target = folder / name / file
            if not target.is_symlink() and target.is_file() and target.stat().st_size == size:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            # Complete or not there: a killed command goes on with the next one.
            partial = target.with_name(f".{file}.partial")
            try:
                with partial.open("wb") as output:
                    shutil.copyfileobj(content, output)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
    wanted = _PUBLISHED[kind].images
    if count != wanted:
        raise InputError(f"{path} holds {count:,} images, not {wanted:,}: download it again")
    return count


@contextmanager
def _opened(path: str, kind: str) -> Iterator[tarfile.TarFile]:
    """Open an archive to read it once, show the progress, and check its MD5 at the end.

    Raises:
        InputError: it is damaged, or not the published one.
    """
    from rich.console import Console
    from rich.progress import open as shown

    def reading() -> AbstractContextManager[BinaryIO]:
        if not sys.stderr.isatty():
            return Path(path).open("rb")
        return shown(path, "rb", description=printable_name(Path(path).name), console=Console(stderr=True))

    with reading() as file:
        summed = _Summed(file)
        try:
            with tarfile.open(name=path, fileobj=summed, mode="r|gz" if kind == "devkit" else "r|") as archive:
                yield archive
        except (tarfile.TarError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise InputError(f"{path} is no archive of ImageNet's, or damaged: download it again") from error
        while summed.read(2**20):
            pass
    if summed.md5.hexdigest() != _PUBLISHED[kind].md5:
        raise InputError(f"{path} is not the published archive, its MD5 is {summed.md5.hexdigest()}: download it again")


def _validation_classes(devkit: str) -> list[str]:
    """Return the WordNet id of each validation image, by its number."""
    from scipy.io import loadmat

    found = {}
    with _opened(devkit, "devkit") as archive:
        for member, content in _files(archive):
            name = member.name.rpartition("/")[2]
            if name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt") and member.size <= _MOST_BYTES:
                found[name] = content.read()
    with explain(f"{devkit} is no devkit of ImageNet's"):
        meta: Any = io.BytesIO(found["meta.mat"])
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        # The leaves of WordNet's tree alone are classes.
        ids = {int(each[0]): str(each[1]) for each in synsets if int(each[4]) == 0}
        classes = [ids[int(line)] for line in found["ILSVRC2012_validation_ground_truth.txt"].split()]
    if not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        raise InputError(f"{devkit} is no devkit of ImageNet's: it has other names of classes")
    return classes
