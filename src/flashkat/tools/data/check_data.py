"""``flashkat data check``: read every image of a data set before training does."""

import math
import os
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from ...data.folders import SPLIT_NAMES, is_archive
from ...data.images import as_mode, open_image
from ...data.scan import Images, scan
from ...errors import InputError, explain, require
from ...system.stalls import Reads, explain_workers
from ...system.terminal import printable_name

__all__ = ["check_data"]

_AT_ONCE = 64

# Seconds that a process may take for so many images, as --loader-timeout has by default.
_LIMIT = 600.0


class _Look(NamedTuple):
    """The format, mode and size of an image's file, or the reason why it cannot be read."""

    format: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    fault: str = ""


class _Looks(Dataset):
    """Data set of the findings in each file of a split."""

    def __init__(self, images: Images, workers: int) -> None:
        self._images, self._reads = images, Reads(workers, _LIMIT)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> _Look:
        found = self._reads.read(self._look, index)
        self._reads.done()
        return found

    def being_read(self) -> str:
        """Return which processes read which images now."""
        names = {worker: printable_name(self._images.filename(index)) for worker, index in self._reads.at().items()}
        return ", ".join(f"worker {worker} at {name}" for worker, name in names.items())

    def _look(self, index: int) -> _Look:
        try:
            with self._images[index][0] as file:
                image = open_image(file)
                found = _Look(image.format or "", image.mode, image.size)
                as_mode(image, "RGB")
        except Exception as error:  # Pillow raises almost anything
            # Pillow adds the object that it reads from.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(" <")[0]
            return _Look(fault=printable_name(reason))
        return found


def check_data(folder: str) -> tuple[str, bool]:
    """Read every image of a data set, on all cores.

    Args:
        folder: the data set's folder, or an archive of one split.

    Returns:
        The report, and whether training can read everything.

    Raises:
        InputError: there is no such data set, or a split has no images.
    """
    require("rich")
    splits = _splits(Path(folder))
    found = {}
    for path in splits:
        with explain(f"cannot read {path}"):
            found[path] = scan(path)
    lines, is_whole = [], True
    for path, images in found.items():
        looks = _look(images, path.name)
        faults = [
            f"{printable_name(images.filename(index))}: {look.fault}" for index, look in enumerate(looks) if look.fault
        ]
        others = sorted({name for other in found.values() for name in other.class_to_idx} - {*images.class_to_idx})
        lines += [
            f"{path}: {len(images)} images, {len(images.class_to_idx)} classes",
            *_table(
                {
                    "formats": _counts(look.format for look in looks if not look.fault),
                    "modes": _counts(look.mode for look in looks if not look.fault),
                    "sizes": _sizes([look.size for look in looks if not look.fault]),
                    "alike": "; ".join(_alike(images.class_to_idx)),
                    "missing": printable_name(", ".join(others)),
                    "broken": str(len(faults) or ""),
                }
            ),
            *(f"    {fault}" for fault in faults),
            *(f"  {note.partition(': ')[2]}" for note in images.notes),
        ]
        is_whole = is_whole and not faults and not others
    return "\n".join(lines), is_whole


def _splits(root: Path) -> list[Path]:
    if is_archive(root):
        return [root]
    if not root.is_dir():
        raise InputError(f"no data folder at {root}")
    found = [path for path in sorted(root.iterdir()) if path.is_dir() or path.suffix == ".tar"]
    return [path for path in found if path.name.removesuffix(".tar") in SPLIT_NAMES] or [root]


def _look(images: Images, name: str) -> list[_Look]:
    from rich.console import Console
    from rich.progress import track

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, math.ceil(len(images) / _AT_ONCE))
    looks = _Looks(images, workers)
    loader: Any = DataLoader(looks, batch_size=_AT_ONCE, num_workers=workers, collate_fn=list, timeout=_LIMIT)
    bar = track(loader, printable_name(name), console=Console(stderr=True)) if sys.stderr.isatty() else loader
    with explain_workers(looks.being_read, "look at the disk, and try again"):
        return [look for batch in bar for look in batch]


def _table(rows: dict[str, str]) -> list[str]:
    return [f"  {name:<8} {value}" for name, value in rows.items() if value]


def _counts(values: Iterable[str]) -> str:
    return ", ".join(f"{value} {count}" for value, count in Counter(values).most_common())


def _sizes(sizes: list[tuple[int, int]]) -> str:
    if not sizes:
        return ""
    (most, count), *rest = Counter(sizes).most_common()
    low, high = min(sizes, key=math.prod), max(sizes, key=math.prod)
    name = "{} x {}".format
    return f"{name(*low)} to {name(*high)}, most often {name(*most)} ({count})" if rest else name(*most)


def _alike(names: Iterable[str]) -> list[str]:
    """Find names of classes that differ in case, spaces or the way that Unicode writes them alone."""
    groups = defaultdict(list)
    for name in names:
        groups["".join(unicodedata.normalize("NFKC", name).casefold().split())].append(printable_name(name))
    return [" and ".join(group) for group in groups.values() if len(group) > 1]
