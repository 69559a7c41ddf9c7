"""Image folders and tar archives in the ImageNet layout."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from PIL import Image
from timm.data import ImageDataset

from ..errors import InputError, explain
from ..system.files import placeholder
from ..system.stalls import Reads
from ..system.terminal import printable_name
from .bad_images import SKIPPED, BadImages
from .images import read_image
from .scan import read_class_map, scan

__all__ = [
    "SPLIT_NAMES",
    "Labelled",
    "Numbered",
    "has_evaluation_split",
    "is_archive",
    "open_split",
    "ordered",
    "split_folder",
    "undecodable",
]

_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "eval", "evaluation"),
}
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")
# Images that the message of a stalled loader names, and folders that others name.
_NAMED = 4
SPLIT_NAMES = {"test", *(name for names in _SPLIT_FOLDERS.values() for name in names)}
"""Names of folders that are splits, and no classes."""


class Labelled:
    """A data set whose labels are checked against the number of classes, once ``num_classes`` is set.

    A label beyond it is an error in a worker. On a GPU it would end the whole program.

    Attributes:
        notes: lines for the user about the data set.
    """

    source: str
    num_classes: int | None = None
    notes: tuple[str, ...] = ()

    def _checked(self, target: Any) -> Any:
        is_number = hasattr(target, "__index__")  # Python's or NumPy's
        if self.num_classes is not None and not (is_number and 0 <= target < self.num_classes):
            hint = "see --num-classes" if is_number else "an image has one class, and that is a whole number"
            raise InputError(
                f"{self.source} has the label {target!s:.40}, which is none of the {self.num_classes} classes "
                f"from 0 to {self.num_classes - 1}: {hint}"
            )
        return target


class Numbered(Labelled):
    """A data set whose images are indexed by number.

    Attributes:
        bad: records images that cannot be read, which others then replace; None raises an error for each.
        reads: takes note of the images that are read, and limits how long one may take.
    """

    transform: Any
    bad: BadImages | None = None
    reads: Reads | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            return self._sample(index)
        finally:
            if self.reads is not None:
                self.reads.done()

    def _sample(self, index: int) -> tuple[Any, int]:
        read = self._read if self.reads is None else partial(self._read_in_time, self.reads)
        try:
            counts, (image, target) = (True, read(index)) if self.bad is None else self.bad.read(read, index)
        except TimeoutError as error:  # no image that cannot be read, so others do not replace it
            raise InputError(f"{error}; try a longer --loader-timeout for slow storage") from error
        target = self._checked(target)
        try:
            return self.transform(image), target if counts else SKIPPED
        except Exception as error:
            raise InputError(f"cannot augment the image {self.name(index)}: {error}") from error

    def _read_in_time(self, reads: Reads, index: int) -> tuple[Any, Any]:
        try:
            return reads.read(self._read, index)
        except TimeoutError as error:
            raise TimeoutError(f"reading the image {self.name(index)} stalled: {error}") from error

    def being_read(self) -> str:
        """Return which workers read which images now; empty if none does."""
        at = [] if self.reads is None else list(self.reads.at().items())
        named = [f"worker {worker} at {self.name(index)}" for worker, index in at[:_NAMED]]
        return ", ".join([*named, *([f"{len(at) - _NAMED} more"] if len(at) > _NAMED else [])])

    def name(self, index: int) -> str:
        """Return what messages call an image."""
        return f"number {index} of {self.source}"

    def _read(self, index: int) -> tuple[Any, Any]:
        """Return an image and its label.

        Raises:
            InputError: it cannot be read.
        """
        raise NotImplementedError


class ImageFolder(Numbered, ImageDataset):
    """timm's ImageDataset, but an image that cannot be decoded is an error, unless ``bad`` takes note of it.

    A neighbour in its place would change what an accuracy means.

    Attributes:
        read_file: reads an open file, given the mode of images, to what ``transform`` takes.
        held_out: digest of the names of the held-out images, see :class:`flashkat.data.scan.Images`.
    """

    def __init__(self, root: str | Path | None, reader: Any, source: str = "", mode: str = "RGB") -> None:
        ImageDataset.__init__(self, root, reader=reader, input_img_mode=mode)
        self.source = source or str(root)
        self.read_file: Callable[[IO[bytes], str], Any] = read_image
        self.notes = getattr(reader, "notes", ())
        self.held_out: str = getattr(reader, "held_out", "")

    def __len__(self) -> int:
        return len(self.reader)

    def _read(self, index: int) -> tuple[Any, Any]:
        try:
            file, target = self.reader[index]
        except Exception as error:
            raise InputError(f"cannot read image number {index} of {self.source}: {error}") from error
        with file:
            try:
                return self.read_file(file, self.input_img_mode), target
            # Damaged files make Pillow raise almost anything, a SyntaxError for a broken PNG among them.
            except Exception as error:
                raise undecodable(file, self.name(index), error) from error

    def name(self, index: int) -> str:
        file = self.filename(index, absolute=True)
        return printable_name(str(file)) if file else super().name(index)

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of their indices; none where they are not known."""
        return ordered(getattr(self.reader, "class_to_idx", None) or {})


def undecodable(file: IO[bytes], name: str, error: Exception) -> InputError:
    """Return the error of a file that Pillow does not decode: its name, and what to do."""
    return InputError(f"cannot decode the image {name}: {_remedy(file, error)}")


def _remedy(file: IO[bytes], error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "it has more pixels than Pillow decodes, make it smaller or remove it"
    with contextlib.suppress(OSError, ValueError):
        file.seek(0)
        if other := placeholder(file.read(64)):
            return f"it {other}"
    return "replace or remove it"


def ordered(indices: dict[str, int]) -> list[str]:
    """Return the names of classes in the order of their indices, or none where indices are left out."""
    names = [str(name) for name, _ in sorted(indices.items(), key=lambda item: item[1])]
    return names if sorted(indices.values()) == list(range(len(names))) else []


def open_split(
    root: str | Path,
    split: str,
    class_map: str = "",
    mode: str = "RGB",
    val_fraction: float = 0.0,
    is_training: bool = False,
) -> ImageFolder:
    """Open a split of a data set in the ImageNet layout, ``root/<split>/<class>/*``, or of archives of that.

    Args:
        root: the data set's folder; for evaluation it may be the folder that holds the class folders itself. Splits may
            be archives, ``root/<split>.tar``, and ``root`` may be an archive.
        split: "train", "val", or a folder's name. The usual synonyms (validation, valid, ...) are found too.
        class_map: file with the class names in the order of their indices; default is the order of their names.
        mode: Pillow's mode for the images.
        val_fraction: share of the training images to hold out for evaluation. ``root`` may then be the folder of the
            class folders in training too.
        is_training: whether to open the images to train on, with ``val_fraction``.

    Raises:
        InputError: a folder that is not there, or has no class folders or no images. Or there are images to evaluate
            beside those to hold out.
    """
    root = Path(root)
    if not root.is_dir() and not is_archive(root):
        _refuse_compressed(root.parent, root.name)
        raise InputError(f"no data folder at {root}")
    folder, is_divided = _place(root, split, val_fraction, is_training)
    class_to_idx = read_class_map(class_map, folder) if class_map else None
    if folder.is_dir() and not any(path.is_dir() for path in folder.iterdir()):
        raise InputError(f"{folder} has no class folders: images belong in {folder}/<class>/")
    with explain(f"cannot read {folder}"):
        images = scan(folder, class_to_idx)
    if len(images.class_to_idx) > 1 and images.class_to_idx.keys() <= SPLIT_NAMES:
        raise InputError(
            f"{folder} holds the splits {', '.join(images.class_to_idx)}, not classes: name one split alone"
        )
    return ImageFolder(folder, images.part(val_fraction, not is_training) if is_divided else images, mode=mode)


def has_evaluation_split(root: Path) -> bool:
    """Return whether a data set in the ImageNet layout has a split to evaluate."""
    return _first(root, _SPLIT_FOLDERS["val"]) is not None


def is_training_split(name: str) -> bool:
    """Return whether ``val_fraction`` may divide a split of this name."""
    return name in _SPLIT_FOLDERS["train"]


def _place(root: Path, split: str, val_fraction: float, is_training: bool) -> tuple[Path, bool]:
    """Return a split's folder or archive, and whether it is divided into images for training and for evaluation."""
    if is_archive(root) or not val_fraction:
        return (root if is_archive(root) else split_folder(root, split)), bool(val_fraction)
    if is_training and not is_training_split(split):
        raise InputError(f"--val-fraction divides the training images of {root}: leave out --train-split {split}")
    if not is_training and split not in _SPLIT_FOLDERS["val"]:
        return split_folder(root, split), False
    if (evaluated := _first(root, _SPLIT_FOLDERS["val"])) is not None:
        raise InputError(f"{evaluated} holds images to evaluate already: leave out --val-fraction")
    return _first(root, _SPLIT_FOLDERS["train"]) or root, True


def is_archive(path: Path) -> bool:
    """Return whether a path is an archive of images."""
    return path.is_file() and path.suffix == ".tar"


def split_folder(root: Path, split: str) -> Path:
    """Return a split's folder or archive. If ``root`` has no splits, it is the evaluation split itself.

    Raises:
        InputError: there is no such split.
    """
    synonyms = next((names for names in _SPLIT_FOLDERS.values() if split in names), (split,))
    names = tuple(dict.fromkeys((split, *synonyms)))
    if (found := _first(root, names)) is not None:
        return found
    if synonyms == _SPLIT_FOLDERS["val"] and not any(_first(root, others) for others in _SPLIT_FOLDERS.values()):
        return root
    for name in names:
        _refuse_compressed(root, name)
    there = sorted(printable_name(path.name) for path in root.iterdir() if path.is_dir() or is_archive(path))
    more = f" and {len(there) - _NAMED} more" if len(there) > _NAMED else ""
    instead = f", but {', '.join(there[:_NAMED])}{more}" if there else ""
    raise InputError(
        f"{root} has no folder named {' or '.join(names)}{instead}: name one in --train-split, --val-split or --split, "
        "or hold out training images with --val-fraction 0.1"
    )


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    """Return the folder or archive in a folder that has the first of these names."""
    places = [path for name in names for path in (root / name, root / f"{name}.tar")]
    return next((path for path in places if path.is_dir() or is_archive(path)), None)


def _refuse_compressed(folder: Path, name: str) -> None:
    """Raise InputError if there is a compressed archive of this name."""
    for suffix in ("", *_COMPRESSED):
        path = folder / f"{name}{suffix}"
        if path.is_file() and path.name.lower().endswith(_COMPRESSED):
            raise InputError(f"{path} is compressed, so images in it cannot be read one by one: unpack it")
