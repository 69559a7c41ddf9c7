"""Images that cannot be read: counted, replaced and listed."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..system import distributed
from ..system.files import replaced

__all__ = ["SKIPPED", "BadImages", "bad_image_names", "check_bad_images", "list_bad_images"]

SKIPPED = -1
"""The label of an image in the place of one that cannot be read, where it must not count."""


class BadImages:
    """Which images of a data set could not be read, in memory that the loader's processes share.

    Args:
        images: how many the data set has.
        limit: share of them from which on it is an error.
        is_training: whether the image in place of a bad one counts.
    """

    def __init__(self, images: int, limit: float, is_training: bool) -> None:
        self.limit, self.is_training = limit, is_training
        self.is_bad = torch.zeros(images, dtype=torch.bool).share_memory_()

    def read(self, read: Callable[[int], tuple[Any, Any]], index: int) -> tuple[bool, tuple[Any, Any]]:
        """Read an image and its label, or those of the next one that can be read.

        Args:
            read: reads by number, and raises InputError where it cannot.
            index: the image's number.

        Returns:
            Whether it counts, and what ``read`` gave.

        Raises:
            InputError: more images than the limit allows cannot be read.
        """
        images = len(self.is_bad)
        for number in range(index, index + images):
            try:
                found = read(number % images)
            except InputError as error:
                self.is_bad[number % images] = True
                self.check(str(error))
            else:
                return number == index or self.is_training, found
        raise InputError("no image can be read")

    def check(self, last: str = "") -> None:
        """Raise InputError where more images are bad than the limit allows."""
        count, images = int(self.is_bad.sum()), len(self.is_bad)
        if count > self.limit * images:
            raise InputError(
                f"{count} of {images} images cannot be read, a larger share than --max-bad-images {self.limit:g}: "
                f"flashkat data check lists them{'; ' if last else ''}{last}"
            )

    def share(self) -> None:
        """Learn what other processes found. All of a run call this together."""
        for found in distributed.gather(self.is_bad.nonzero().flatten().tolist()):
            self.is_bad[found] = True


def bad_image_names(datasets: Iterable[Any]) -> list[str]:
    """Return the names of the bad images that all processes of a run found so far. They call this together."""
    names = []
    for dataset in datasets:
        if bad := getattr(dataset, "bad", None):
            bad.share()
            names += [dataset.name(index) for index in bad.is_bad.nonzero().flatten().tolist()]
    return names


def check_bad_images(datasets: Iterable[Any]) -> None:
    """Raise InputError where a data set has more bad images than ``--max-bad-images`` allows."""
    for dataset in datasets:
        if bad := getattr(dataset, "bad", None):
            bad.check()


def list_bad_images(names: Sequence[str], folder: Path) -> list[str]:
    """Add names of bad images to the folder's ``bad-images.txt``, a line each.

    Returns:
        A line on new ones, or none.
    """
    file = folder / "bad-images.txt"
    known = file.read_text(encoding="utf-8").splitlines() if names and file.is_file() else []
    listed = list(dict.fromkeys([*known, *names]))
    if len(listed) == len(known):
        return []
    with replaced(file, keeps_special=False) as partial:
        partial.write_text("".join(f"{name}\n" for name in listed), encoding="utf-8")
    return [f"Images that cannot be read, in whose place others were taken: {len(listed)}, see {file}"]
