"""Find the images of a folder or an archive, and their classes: the first folders below it."""

import copy
import errno
import hashlib
import io
import os
import re
import stat
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import IO

from timm.data.readers.reader import Reader

from ..errors import InputError, explain
from ..system.terminal import printable_name
from .images import image_suffixes

__all__ = ["Images", "image_paths", "numbered", "read_class_map", "scan"]


@dataclass(frozen=True)
class _Found:
    """An image.

    Attributes:
        path: below the folder or in the archive.
        parts: the folders to it, and its name.
        key: what it is sorted by.
        offset: where its bytes begin in an archive.
        size: how many these are.
    """

    path: str
    parts: tuple[str, ...]
    key: str
    offset: int = 0
    size: int = 0

    def name(self, depth: int) -> str:
        """Return the path without its first ``depth`` folders."""
        name = "/".join(self.parts[depth:])
        return self.path if name == self.path else name  # share one string, as there may be millions


@dataclass
class _Left:
    """The files that a scan leaves out, by reason, and all folders that it sees."""

    paths: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    folders: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, reason: str, *paths: str) -> None:
        """Add files that are left out for a reason."""
        if paths:
            self.paths[reason] += paths

    def notes(self, root: Path) -> list[str]:
        """Return a line with the counts, or none."""
        counts = []
        for reason, paths in self.paths.items():
            (one, several), first = reason.split("|"), printable_name(min(paths))
            counts.append(f"{len(paths)} {several} ({first}, ...)" if len(paths) > 1 else f"1 {one} ({first})")
        return [f"{root}: left out {', '.join(counts)}"] if counts else []


_BESIDE = "image beside the class folders|images beside the class folders"
_EMPTY = "class folder without images|class folders without images"
_UNLISTED = "image whose class the class map lacks|images whose class the class map lacks"
_HIDDEN = "hidden file or folder|hidden files or folders"
_OTHER = "file that is no image|files that are no images"
_FOLDER = "folder named like an image|folders named like images"
_LINK = "link to nothing or to a folder around it|links to nothing or to a folder around them"
_SPECIAL = "named pipe, socket or device|named pipes, sockets or devices"
_REPLACED = "member that a later one of its name replaces|members that later ones of their names replace"
_NO_FILE = "special file or link|special files or links"


class Images(Reader):
    """The images of a folder or an archive with their classes, as timm's readers have them.

    Attributes:
        class_to_idx: index by the name of the class.
        targets: index of each image's class.
        notes: a line that counts what was left out, or none.
        held_out: digest of the names of the held-out images; empty for images that are not divided.
    """

    held_out = ""

    def __init__(
        self,
        root: Path,
        found: list[_Found],
        targets: list[int],
        class_to_idx: dict[str, int],
        notes: list[str],
        depth: int,
    ) -> None:
        super().__init__()
        self.root, self.class_to_idx, self.notes = root, class_to_idx, notes
        self._is_archive = root.is_file()
        self._images = [(each.path, each.offset, each.size) for each in found]
        self.targets = targets
        # Names from the class folder on, which a folder and archives of it share.
        self._names = [each.name(depth) for each in found]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        path, offset, size = self._images[index]
        if not self._is_archive:
            return _open(self.root / path), self.targets[index]
        with _open(self.root) as archive:
            archive.seek(offset)
            return io.BytesIO(archive.read(size)), self.targets[index]

    def part(self, share: float, is_held_out: bool) -> "Images":
        """Return the images that are held out of each class, or the others.

        The paths from the class folder on decide. So every run holds out the same, from a folder or an archive of it.
        A class of several images has at least one in each part.

        Args:
            share: the share of each class that is held out.
            is_held_out: whether to return these.
        """
        members: dict[int, list[int]] = defaultdict(list)
        for index, target in enumerate(self.targets):
            members[target].append(index)
        held_out: set[int] = set()
        for indices in members.values():
            count = min(max(1, round(share * len(indices))), len(indices) - 1)
            held_out.update(sorted(indices, key=self._digest)[:count])
        part = copy.copy(self)
        part.held_out = hashlib.sha256(b"".join(sorted(map(self._digest, held_out)))).hexdigest()
        chosen = [index for index in range(len(self)) if (index in held_out) == is_held_out]
        for name in ("_images", "targets", "_names"):
            setattr(part, name, [getattr(self, name)[index] for index in chosen])
        single = sum(len(indices) == 1 for indices in members.values())
        alone = f", but for {single} {'class' if single == 1 else 'classes'} of one image" if single else ""
        part.notes = [*self.notes, f"{self.root}: {len(held_out)} of {len(self)} images are held out{alone}"]
        return part

    def _digest(self, index: int) -> bytes:
        return hashlib.sha256(os.fsencode(self._names[index])).digest()

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self._images[index][0]
        if basename:
            return path.rpartition("/")[2]
        return str(self.root / path) if absolute else path


def _open(path: Path) -> IO[bytes]:
    """Open a file. A named pipe that has taken its place since the scan is an error, as its reader waits for ever."""
    return open(path, "rb", opener=_ordinary)


def _ordinary(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # which ordinary files ignore
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{printable_name(path)} is no ordinary file")
    return descriptor


def read_class_map(path: str, folder: Path | None = None) -> dict[str, int]:
    """Read the indices of classes by name, from a text with a name a line.

    Empty lines at the end do not count, nor does the mark with which Windows begins a text.

    Args:
        path: the file.
        folder: where it is looked for too.

    Raises:
        InputError: there is no such text, or a name is empty or occurs twice.
    """
    if not path.endswith(".txt"):  # timm would unpickle another kind
        raise InputError(f"--class-map {path} is no .txt: write the class names into one, a line each")
    places = [Path(path), *([folder / path] if folder is not None else [])]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(f"no class map at {path}")
    with explain(f"cannot read --class-map {path}"):
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    indices: dict[str, int] = {}
    for index, name in enumerate(names):
        if not name or name in indices:
            found = f"the name {printable_name(name)} again" if name else "no name"
            raise InputError(f"--class-map {path} has {found} in line {index + 1}: write each class once, a line each")
        indices[name] = index
    return indices


def scan(root: Path, class_to_idx: dict[str, int] | None = None) -> Images:
    """Find the images of a folder or a .tar archive.

    The class is the first folder, or the archive within the archive. A single folder around all class folders does not
    count. Classes and files are in timm's natural order of names.

    Args:
        root: the folder of the class folders, or an archive of it.
        class_to_idx: index by the name of the class; None numbers the classes that are found.

    Raises:
        InputError: there are no images in class folders, or the archive is damaged.
    """
    left = _Left()
    found = sorted(_members(root, left) if root.is_file() else _files(root, left), key=lambda each: natural(each.key))
    classed = [each for each in found if len(each.parts) > 1]
    left.add(_BESIDE, *(each.path for each in found if len(each.parts) == 1))
    depth = _wrappers(classed)
    filled = {each.parts[: depth + 1] for each in classed}
    left.add(_EMPTY, *("/".join(each) for each in left.folders if len(each) == depth + 1 and each not in filled))
    labels = [each.parts[depth] for each in classed]
    if class_to_idx is None:
        class_to_idx = numbered(labels)
    pairs = list(zip(classed, labels, strict=True))
    left.add(_UNLISTED, *(each.path for each, label in pairs if label not in class_to_idx))
    pairs = [(each, label) for each, label in pairs if label in class_to_idx]
    notes = left.notes(root)
    if not pairs:
        raise InputError("; ".join([f"{root} has no images in its class folders", *notes]))
    found, targets = [each for each, _ in pairs], [class_to_idx[label] for _, label in pairs]
    return Images(root, found, targets, class_to_idx, notes, depth)


def image_paths(root: Path) -> list[Path]:
    """Return all images below a folder, in the order of their paths. Links are followed, hidden names left out."""
    return sorted(root / each.path for each in _files(root, _Left()))


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Return the index of each name in timm's natural order. Ties, such as a and A, are in the order of their codes."""
    ordered = sorted(set(names), key=lambda name: (natural(name), name))
    return {name: index for index, name in enumerate(ordered)}


def natural(name: str) -> list[str | int]:
    """Return timm's key to sort by, in which numbers count as such."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d+)", name.lower()))]


def _wrappers(found: list[_Found]) -> int:
    """Count the single folders around all class folders, as of an archive of a folder."""
    shortest = min((len(each.parts) for each in found), default=0)
    depth = 0
    while shortest > depth + 2 and len({each.parts[depth] for each in found}) == 1:
        depth += 1
    return depth


def _reason(name: str) -> str | None:
    """Return why a file is left out; None for an image."""
    return None if PurePath(name).suffix.lower() in image_suffixes() else _OTHER


def _files(root: Path, left: _Left) -> Iterator[_Found]:
    """Find the images below a folder, following links."""
    # The real paths of the folders above each one, so that a link to one of these does not loop forever.
    stack: list[tuple[tuple[str, ...], frozenset[Path]]] = [((), frozenset())]
    while stack:
        parts, above = stack.pop()
        folder = root.joinpath(*parts)
        real = folder.resolve()
        if real in above:
            left.add(_LINK, "/".join(parts))
            continue
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            inner = (*parts, entry.name)
            path = "/".join(inner)
            if entry.name.startswith("."):
                left.add(_HIDDEN, path)
            elif _loops(entry):
                left.add(_LINK, path)
            elif entry.is_dir():
                if _reason(entry.name) is None:
                    left.add(_FOLDER, path)
                else:
                    stack.append((inner, above | {real}))
                    left.folders.append(inner)
            elif not entry.is_file():
                left.add(_SPECIAL if Path(entry).exists() else _LINK, path)
            elif reason := _reason(entry.name):
                left.add(reason, path)
            else:
                yield _Found(path, inner, path)


def _loops(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a link that leads to itself, of which the system tells nothing else."""
    try:
        entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return True
    return False


def _members(root: Path, left: _Left) -> Iterator[_Found]:
    """Find the images in an archive, first those of archives in it."""
    own = []
    with root.open("rb") as file:
        for member, parts in _tar(file, 0, os.fstat(file.fileno()).st_size, left):
            name, begin, path = PurePath(parts[-1]), member.offset_data, member.name
            if name.suffix.lower() == ".tar":
                for inner, inner_parts in _tar(file, begin, begin + member.size, left):
                    whole = f"{path}/{inner.name}"
                    if reason := _reason(inner_parts[-1]):
                        left.add(reason, whole)
                    else:
                        yield _Found(whole, (name.stem, *inner_parts), inner.name, inner.offset_data, inner.size)
            elif reason := _reason(parts[-1]):
                left.add(reason, path)
            else:
                own.append(_Found(path, parts, path, begin, member.size))
    yield from own


def _tar(file: IO[bytes], begin: int, end: int, left: _Left) -> Iterator[tuple[tarfile.TarInfo, tuple[str, ...]]]:
    """Read the archive between two places of a file.

    Yields:
        each ordinary file, with its place in ``file``, and the parts of its path. If several have one path, the last
        one counts, as tar extracts that one.

    Raises:
        InputError: the archive is cut off, or holds something else.
    """
    ordinary: dict[tuple[str, ...], tarfile.TarInfo] = {}
    file.seek(begin)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        # The first member has been read already, and may be all.
        while (archive.firstmember or archive.offset < end) and (member := archive.next()):  # type: ignore[attr-defined]
            if member.offset_data + member.size > end:
                raise InputError(f"the archive {file.name} is cut off in {printable_name(member.name)}")
            parts = tuple(part for part in member.name.split("/") if part not in ("", "."))
            if any(part.startswith(".") for part in parts):
                left.add(_HIDDEN, member.name)
            elif any(_reason(part) is None for part in parts[:-1]):
                left.add(_FOLDER, member.name)
            elif member.isfile() and not member.issparse():
                if parts in ordinary:
                    left.add(_REPLACED, member.name)
                ordinary[parts] = member
            elif member.isdir():
                left.folders.append(parts)
            else:
                left.add(_NO_FILE, member.name)
        # tarfile takes a damaged header for the end.
        file.seek(archive.offset)
        if archive.offset < end and file.read(512).strip(b"\0"):
            raise InputError(f"the archive {file.name} is damaged at byte {archive.offset}")
    for parts, member in ordinary.items():
        yield member, parts
