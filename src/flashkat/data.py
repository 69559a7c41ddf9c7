"""Image folders and loaders: timm's data sets, transforms and loaders, with errors that name the file."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageDataset, create_dataset, create_loader

from . import distributed
from .errors import InputError, explain
from .sampling import evaluation_order, training_order

__all__ = ["check_same_classes", "evaluation_loader", "open_split", "training_loader"]

_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "eval"),
}


class ImageFolder(ImageDataset):
    """timm's ImageDataset, but an image that cannot be decoded is an error and not skipped.

    Skipping would put a neighbour in its place, and change what an accuracy means.
    """

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file, target = self.reader[index]
        try:
            with file:
                image = Image.open(file).convert(self.input_img_mode)
        # Damaged files make Pillow raise almost anything, a SyntaxError for a broken PNG among them.
        except Exception as error:
            name = self.filename(index, absolute=True)
            raise InputError(f"cannot decode the image {name}: replace or remove it") from error
        return self.transform(image), target

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of their indices."""
        return list(self.reader.class_to_idx)


def open_split(root: str | Path, split: str) -> ImageFolder:
    """Open a split of a data set in the ImageNet layout, ``root/<split>/<class>/*``.

    Args:
        root: the data set's folder; for evaluation it may be the folder that holds the class folders itself.
        split: "train", "val", or a folder's name. The usual synonyms (validation, valid, ...) are found too.

    Raises:
        InputError: a folder that is not there, or has no class folders or no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"no data folder at {root}")
    folder = _split_folder(root, split)
    if not any(path.is_dir() for path in folder.iterdir()):
        raise InputError(f"{folder} has no class folders: images belong in {folder}/<class>/")
    try:
        reader = create_dataset("", root=folder, search_split=False).reader
    except RuntimeError as error:
        raise InputError(f"{folder} has no images in its class folders") from error
    return ImageFolder(folder, reader=reader)


def _split_folder(root: Path, split: str) -> Path:
    synonyms = next((names for names in _SPLIT_FOLDERS.values() if split in names), (split,))
    for name in (split, *synonyms):
        if (root / name).is_dir():
            return root / name
    others = {name for names in _SPLIT_FOLDERS.values() for name in names}
    if synonyms == _SPLIT_FOLDERS["val"] and not any((root / name).is_dir() for name in others):
        return root
    raise InputError(f"{root} has no folder named {' or '.join(dict.fromkeys((split, *synonyms)))}")


def check_same_classes(train: ImageFolder, val: ImageFolder) -> None:
    """Raise InputError unless both splits have the same class folders."""
    for a, b in ((train, val), (val, train)):
        missing = [name for name in a.classes if name not in b.classes]
        if missing:
            some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise InputError(
                f"{a.reader.root} has {len(missing)} classes that {b.reader.root} has no images of: {some}"
            )


def training_loader(dataset: ImageFolder, config: dict[str, Any], args: Any, device: torch.device):
    """timm's shuffled, augmented loader of this process's share; the last, partial batch of an epoch is dropped."""
    processes = distributed.size()
    if len(dataset) < args.batch_size * processes:
        each = f" for each of {processes} processes" if processes > 1 else ""
        raise InputError(
            f"{dataset.reader.root} has {len(dataset)} images, fewer than a batch of {args.batch_size}{each}: "
            f"give a smaller --batch-size{' or fewer processes' if each else ''}"
        )
    for name in ("scale", "ratio"):
        low, high = getattr(args, name)
        if low > high:
            raise InputError(f"--{name} takes the smaller number first, not {low:g} {high:g}")
    with explain("cannot load images like this"):
        loader = create_loader(
            dataset,
            input_size=config["input_size"],
            batch_size=args.batch_size,
            is_training=True,
            no_aug=args.no_aug,
            scale=args.scale,
            ratio=args.ratio,
            hflip=args.hflip,
            vflip=args.vflip,
            color_jitter=args.color_jitter,
            auto_augment=args.aa,
            re_prob=args.reprob,
            re_mode=args.remode,
            interpolation=args.train_interpolation,
            mean=config["mean"],
            std=config["std"],
            num_workers=args.workers,
            device=device,
            distributed=processes > 1,
        )
    return training_order(loader, args.seed)


def evaluation_loader(
    dataset: ImageFolder, config: dict[str, Any], batch_size: int, workers: int, device: torch.device
):
    """timm's loader over every image once, in order; of several processes each has a share."""
    with explain("cannot load images like this"):
        loader = create_loader(
            dataset,
            input_size=config["input_size"],
            batch_size=batch_size,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
            num_workers=workers,
            device=device,
        )
    return evaluation_order(loader)
