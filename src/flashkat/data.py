"""Data sets and loaders: timm's, with errors that name the file, and every image counted.

``open_dataset`` opens what ``--dataset`` and the folder name: class folders, tar archives, Hugging Face's data sets,
sharded WebDatasets, torchvision's. ``training_loader`` and ``evaluation_loader`` make batches of them.
"""

import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import (
    AugMixDataset,
    ImageDataset,
    IterableImageDataset,
    create_dataset,
    create_loader,
    create_transform,
)
from torch import Tensor

from . import distributed
from .errors import InputError, did_you_mean, explain, quiet, require_package
from .samples import check_columns, check_shards, check_streamed_columns
from .sampling import evaluation_order, training_order

__all__ = [
    "Batches",
    "FakeImages",
    "check_augmentation",
    "check_same_classes",
    "evaluation_loader",
    "image_count",
    "open_dataset",
    "open_split",
    "training_loader",
]

_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "eval", "evaluation"),
}

# The packages that kinds of data sets need beside timm's own.
_PACKAGES = {
    "torch": "torchvision",
    "hfds": "datasets",
    "hfids": "datasets",
    "wds": "webdataset",
    "tfds": "tensorflow_datasets",
}
_STREAMED = ("hfids", "wds", "tfds")
_SHARDS_HINT = "; where no _info.json lists its splits, the split names shards, such as 'train-{000..099}.tar'"

# What timm opens of torchvision's.
_TORCHVISION = (
    *("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist"),
    *("inaturalist", "places365", "imagenet", "image_folder"),
)

_FAKE_TRAINING_BATCHES, _FAKE_EVALUATION_BATCHES, _FAKE_CLASSES = 100, 10, 1000


class _Labelled:
    """What data sets have in common: the labels they give out are classes of the model, as soon as these are counted.

    A label beyond them is an error here, in a loader's process; on a GPU it would end the whole program.
    """

    source: str
    num_classes: int | None = None

    def _checked(self, target: Any) -> Any:
        is_number = hasattr(target, "__index__")  # Python's or NumPy's
        if self.num_classes is not None and not (is_number and 0 <= target < self.num_classes):
            raise InputError(
                f"{self.source} has the label {target!s:.40}, which is none of the {self.num_classes} classes "
                f"from 0 to {self.num_classes - 1}: see --num-classes"
            )
        return target


class ImageFolder(_Labelled, ImageDataset):
    """timm's ImageDataset, but an image that cannot be decoded is an error and not skipped.

    Skipping would put a neighbour in its place, and change what an accuracy means.
    """

    def __init__(self, root: str | Path | None, reader: Any, source: str = "", mode: str = "RGB") -> None:
        super().__init__(root, reader=reader, input_img_mode=mode)
        self.source = source or str(root)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            file, target = self.reader[index]
        except Exception as error:
            raise InputError(f"cannot read image number {index} of {self.source}: {error}") from error
        try:
            with file:
                image = Image.open(file).convert(self.input_img_mode)
        # Damaged files make Pillow raise almost anything, a SyntaxError for a broken PNG among them.
        except Exception as error:
            raise InputError(f"cannot decode the image {self._name(index)}: replace or remove it") from error
        target = self._checked(target)
        try:
            return self.transform(image), target
        except Exception as error:
            raise InputError(f"cannot augment the image {self._name(index)}: {error}") from error

    def _name(self, index: int) -> str:
        return self.filename(index, absolute=True) or f"number {index} of {self.source}"

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of their indices; none where they are not known."""
        return _ordered(getattr(self.reader, "class_to_idx", None) or getattr(self.reader, "class_name_to_idx", {}))


class TorchImages(_Labelled, torch.utils.data.Dataset):
    """A data set of torchvision's, with images in the mode asked for."""

    def __init__(self, dataset: Any, source: str, mode: str) -> None:
        self.dataset, self.source, self.mode = dataset, source, mode
        self.transform: Any = None
        names = getattr(dataset, "classes", None) or getattr(dataset, "all_categories", [])
        self.classes = [name if isinstance(name, str) else ", ".join(name) for name in names]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            image, target = self.dataset[index]
            return self.transform(image.convert(self.mode)), self._checked(target)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"cannot read image number {index} of {self.source}: {error}") from error


class Stream(_Labelled, IterableImageDataset):
    """A data set that is read from front to end, such as the shards of a WebDataset."""

    def __init__(self, dataset: IterableImageDataset, source: str) -> None:
        super().__init__(None, reader=dataset.reader)
        self.source = source

    def set_loader_cfg(self, num_workers: int | None = None) -> None:
        """Tell the reader how many processes read; one at least, without which timm 1.0.29 counts no samples."""
        super().set_loader_cfg(num_workers=max(1, num_workers or 1))

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        with explain(f"cannot read {self.source}"):
            for image, target in super().__iter__():
                yield image, self._checked(target)

    def read_whole(self) -> None:
        """Let this process read all samples and no share; timm's shares repeat some and leave others out, to be even.

        To be called before a loader is made.
        """
        self.reader.dist_rank, self.reader.dist_num_replicas = 0, 1

    @property
    def classes(self) -> list[str]:
        """Class names, where a class map or the data set lists them."""
        return _ordered(getattr(self.reader, "class_to_idx", None) or {})


class FakeImages:
    """No images: its loader shows one random batch on the device, again and again."""

    def __init__(self, classes: int, batches: int, batch_size: int) -> None:
        self.source = "fake data"
        self.classes = [str(index) for index in range(classes)]
        self.batches, self.batch_size = batches, batch_size

    def __len__(self) -> int:
        return self.batches * self.batch_size


class _Repeated(torch.utils.data.Dataset):
    """A data set seen several times in an epoch."""

    def __init__(self, dataset: Any, repeats: float) -> None:
        self.dataset, self.length = dataset, round(len(dataset) * repeats)

    @property
    def transform(self) -> Any:
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[index % len(self.dataset)]


def _ordered(indices: dict[str, int]) -> list[str]:
    names = [str(name) for name, _ in sorted(indices.items(), key=lambda item: item[1])]
    # A map that leaves numbers out has no list of names.
    return names if sorted(indices.values()) == list(range(len(names))) else []


def open_dataset(args: Namespace, split: str, is_training: bool = False, num_samples: int | None = None) -> Any:
    """The split of the data set that ``--dataset`` and the data folder name.

    Args:
        args: see :mod:`flashkat.arguments`.
        split: its name.
        is_training: whether it is shuffled, where that is the data set's work and not the loader's.
        num_samples: how many samples it has, where it does not say.

    Raises:
        InputError: there is no such data set, it cannot be read, or a package is not installed.
    """
    if getattr(args, "fake_data", False):
        batch, few = args.batch_size, _FAKE_TRAINING_BATCHES if is_training else _FAKE_EVALUATION_BATCHES
        return FakeImages(args.num_classes or _FAKE_CLASSES, max(1, (num_samples or few * batch) // batch), batch)
    kind, slash, name = args.dataset.partition("/")
    kind = kind.lower()
    mode = args.input_img_mode or ("L" if _channels(args) == 1 else "RGB")
    if not slash and kind in ("", "folder", "tar"):
        return open_split(args.data_dir, split, args.class_map, mode)
    if not slash or kind not in _PACKAGES:
        raise InputError(
            f"no kind of data set {args.dataset!r}: leave it out for a folder, or try torch/cifar10, hfds/, wds/"
        )
    if not name and kind != "wds":
        raise InputError(f"--dataset {kind}/ needs a name: {kind}/NAME")
    require_package(_PACKAGES[kind], f"--dataset {kind}/")
    if kind in ("torch", "wds") and not (args.dataset_download or Path(args.data_dir).is_dir()):
        raise InputError(f"no data folder at {args.data_dir}")
    source = f"the {split} split of {args.dataset}"
    hint = _torchvision_hint(args) if kind == "torch" else _SHARDS_HINT if kind == "wds" else ""
    # They warn of optional files, and of each retry.
    with explain(f"cannot open {source}", hint), quiet("timm.data.readers", "huggingface_hub"):
        dataset = create_dataset(
            args.dataset,
            root=args.data_dir,
            split=split,
            class_map=args.class_map or None,
            is_training=is_training,
            download=args.dataset_download,
            batch_size=args.batch_size,
            num_samples=num_samples,
            seed=getattr(args, "seed", 42),
            input_img_mode=mode,
            trust_remote_code=args.dataset_trust_remote_code,
            **{name: getattr(args, name) for name in ("input_key", "target_key") if kind != "torch"},
        )
    if kind == "torch":
        return TorchImages(dataset, source, mode)
    if kind == "hfds":
        check_columns(dataset.reader, source)
    if kind == "hfids":
        check_streamed_columns(dataset.reader, source)
    if kind == "wds":
        check_shards(dataset.reader, source, distributed.size() * max(1, args.workers) if is_training else 1)
    if kind not in _STREAMED:
        return ImageFolder(args.data_dir, dataset.reader, source, mode)
    if not len(dataset):
        flag = "--train-num-samples" if is_training else "--val-num-samples (--num-samples of flashkat validate)"
        raise InputError(f"{source} does not say how many samples it has: give {flag}")
    return Stream(dataset, source)


def _torchvision_hint(args: Namespace) -> str:
    """What may help where a data set of torchvision's cannot be opened."""
    # Of "torch/NAME", or "torch/anything/NAME", as timm reads it.
    name = args.dataset.split("/", 2)[-1].lower()
    if name not in (*_TORCHVISION, "inat", "folder"):
        return "; " + did_you_mean(name, _TORCHVISION, f"there are {', '.join(_TORCHVISION)}")
    return "" if args.dataset_download else "; --dataset-download downloads it"


def _channels(args: Namespace) -> int:
    return args.input_size[0] if args.input_size else args.in_chans or 3


def open_split(root: str | Path, split: str, class_map: str = "", mode: str = "RGB") -> ImageFolder:
    """Open a split of a data set in the ImageNet layout, ``root/<split>/<class>/*``, or of archives of that.

    Args:
        root: the data set's folder; for evaluation it may be the folder that holds the class folders itself. Splits may
            be archives, ``root/<split>.tar``, and ``root`` may be an archive.
        split: "train", "val", or a folder's name. The usual synonyms (validation, valid, ...) are found too.
        class_map: file with the class names in the order of their indices; default is the order of their names.
        mode: Pillow's mode for the images.

    Raises:
        InputError: a folder that is not there, or has no class folders or no images.
    """
    root = Path(root)
    is_archive = root.is_file() and root.suffix == ".tar"
    if not root.is_dir() and not is_archive:
        raise InputError(f"no data folder at {root}")
    folder = root if is_archive else _split_folder(root, split)
    if class_map and not (Path(class_map).is_file() or (folder / class_map).is_file()):
        raise InputError(f"no class map at {class_map}")
    if folder.is_dir() and not any(path.is_dir() for path in folder.iterdir()):
        raise InputError(f"{folder} has no class folders: images belong in {folder}/<class>/")
    with explain(f"cannot read {folder}"):
        try:
            reader = create_dataset("", root=folder, search_split=False, class_map=class_map or None).reader
        # How timm's readers put it, for folders and archives.
        except (RuntimeError, ValueError) as error:
            if "Found 0 images" in str(error) or "not enough values" in str(error):
                raise InputError(f"{folder} has no images in its class folders") from error
            raise
    return ImageFolder(folder, reader, mode=mode)


def _split_folder(root: Path, split: str) -> Path:
    synonyms = next((names for names in _SPLIT_FOLDERS.values() if split in names), (split,))
    for name in (split, *synonyms):
        for path in (root / name, root / f"{name}.tar"):
            if path.is_dir() or (path.is_file() and path.suffix == ".tar"):
                return path
    others = {name for names in _SPLIT_FOLDERS.values() for name in names}
    if synonyms == _SPLIT_FOLDERS["val"] and not any((root / name).is_dir() for name in others):
        return root
    raise InputError(f"{root} has no folder named {' or '.join(dict.fromkeys((split, *synonyms)))}")


def image_count(dataset: Any) -> int:
    """How many images a data set has for all processes together."""
    return dataset.reader.num_samples if isinstance(dataset, Stream) else len(dataset)


def check_augmentation(policy: str | None) -> None:
    """Raise InputError unless timm can make the augmentation that ``--aa`` names."""
    try:
        create_transform(32, is_training=True, auto_augment=policy)
    except Exception as error:  # of timm's own code, for readers of that
        raise InputError(
            f"no augmentation {policy!r} for --aa: give rand, augmix, original, originalr, v0, v0r or 3a, "
            "with options such as in rand-m9-mstd0.5-inc1 or augmix-m3-w3"
        ) from error


def check_same_classes(train: Any, val: Any) -> None:
    """Raise InputError unless both splits have the same classes, as far as these are known."""
    if not train.classes or not val.classes:
        return
    for a, b in ((train, val), (val, train)):
        known = set(b.classes)
        missing = [name for name in a.classes if name not in known]
        if missing:
            some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise InputError(f"{a.source} has {len(missing)} classes that {b.source} has no images of: {some}")


def _common(args: Namespace, config: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        "input_size": config["input_size"],
        "mean": config["mean"],
        "std": config["std"],
        "num_workers": args.workers,
        "pin_memory": args.pin_mem and device.type == "cuda",
        "use_prefetcher": not args.no_prefetcher,
        "img_dtype": getattr(torch, args.model_dtype or "float32"),
        "distributed": distributed.size() > 1,
        "device": device,
    }


def training_loader(dataset: Any, config: dict[str, Any], args: Namespace, device: torch.device) -> "Batches":
    """timm's shuffled, augmented loader of this process's share; the last, partial batch of an epoch is dropped."""
    if isinstance(dataset, FakeImages):
        return Batches(_Resident(dataset, config, args, device), args, device)
    source = dataset.source
    if args.epoch_repeats and isinstance(dataset, Stream):
        dataset.reader.num_samples = round(dataset.reader.num_samples * args.epoch_repeats)
    elif args.epoch_repeats:
        dataset = _Repeated(dataset, args.epoch_repeats)
    processes = distributed.size()
    # Of a stream, timm's reader goes on from the beginning until the last batch is full.
    if not isinstance(dataset, Stream) and len(dataset) < args.batch_size * processes:
        each = f" for each of {processes} processes" if processes > 1 else ""
        raise InputError(
            f"{source} has {len(dataset)} images, fewer than a batch of {args.batch_size}{each}: "
            f"give a smaller --batch-size{' or fewer processes' if each else ''}"
        )
    for name in ("scale", "ratio"):
        low, high = getattr(args, name)
        if low > high:
            raise InputError(f"--{name} takes the smaller number first, not {low:g} {high:g}")
    _check_views(dataset, args)
    if args.use_multi_epochs_loader:
        _check_numbered(dataset, "--use-multi-epochs-loader")
    if args.aug_splits:
        dataset = AugMixDataset(dataset, num_splits=args.aug_splits)
    with explain("cannot load images like this"):
        loader = create_loader(
            dataset,
            **_common(args, config, device),
            batch_size=args.batch_size,
            is_training=True,
            no_aug=args.no_aug,
            train_crop_mode=args.train_crop_mode,
            scale=args.scale,
            ratio=args.ratio,
            hflip=args.hflip,
            vflip=args.vflip,
            color_jitter=args.color_jitter,
            color_jitter_prob=args.color_jitter_prob,
            grayscale_prob=args.grayscale_prob or 0.0,
            gaussian_blur_prob=args.gaussian_blur_prob or 0.0,
            auto_augment=args.aa,
            num_aug_repeats=args.aug_repeats,
            num_aug_splits=args.aug_splits,
            re_prob=args.reprob,
            re_mode=args.remode,
            re_count=args.recount,
            re_split=args.resplit,
            interpolation=args.train_interpolation,
            worker_seeding=args.worker_seeding,
        )
    return Batches(training_order(loader, args.seed, args.use_multi_epochs_loader), args, device)


def _check_views(dataset: Any, args: Namespace) -> None:
    if args.aug_splits == 1:
        raise InputError("--aug-splits takes 2 or more views of an image, or 0 for none")
    if args.aug_splits and args.no_prefetcher:
        raise InputError("--aug-splits needs the prefetcher: leave out --no-prefetcher")
    if args.aug_splits:
        _check_numbered(dataset, "--aug-splits")
    if args.aug_splits and args.no_aug:
        raise InputError("--aug-splits needs augmentation: leave out --no-aug")
    if args.aug_repeats and distributed.size() == 1:
        raise InputError("--aug-repeats spreads the views of an image over processes: it needs several, from torchrun")
    if args.aug_repeats:
        _check_numbered(dataset, "--aug-repeats")


def _check_numbered(dataset: Any, flag: str) -> None:
    """Raise InputError where images cannot be asked for by number, as a flag needs it."""
    if isinstance(dataset, Stream):
        raise InputError(f"{flag} needs images by number, {dataset.source} is streamed: leave it out")


def evaluation_loader(
    dataset: Any, config: dict[str, Any], args: Namespace, device: torch.device, batch_size: int | None = None
) -> "Batches":
    """timm's loader over every image once, in order; of several processes each has a share.

    Each of them reads all of what is streamed, and takes the share from that.
    """
    batch_size = batch_size or args.batch_size
    if isinstance(dataset, FakeImages):
        dataset.batch_size = batch_size
        return Batches(_Resident(dataset, config, args, device), args, device)
    if isinstance(dataset, Stream):
        dataset.read_whole()
    with explain("cannot load images like this"):
        loader = create_loader(
            dataset,
            **_common(args, config, device),
            batch_size=batch_size,
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
            crop_border_pixels=getattr(args, "crop_border_pixels", None),
        )
    return Batches(evaluation_order(loader), args, device)


class _Resident:
    """The same random batch on the device, for every batch of an epoch."""

    def __init__(self, dataset: FakeImages, config: dict[str, Any], args: Namespace, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        size = (dataset.batch_size, *config["input_size"])
        dtype = getattr(torch, args.model_dtype or "float32")
        self.dataset = dataset
        self.images = torch.randn(size, generator=generator).to(device, dtype)
        self.target = torch.randint(len(dataset.classes), size[:1], generator=generator).to(device)

    def __len__(self) -> int:
        return self.dataset.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(len(self)):
            # Mixing writes into what it is given.
            yield self.images.clone(), self.target


class Batches:
    """A loader's batches as the model takes them: on its device, in its dtype and layout.

    ``waited`` counts the seconds that went by waiting for the loader, since the last epoch began.
    """

    def __init__(self, loader: Any, args: Namespace, device: torch.device) -> None:
        self.loader, self.device, self.waited = loader, device, 0.0
        self._dtype = getattr(torch, args.model_dtype or "float32")
        self._layout = torch.channels_last if args.channels_last else torch.contiguous_format

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # while it is made or copied
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.waited = 0.0
        last = time.perf_counter()
        for images, target in self.loader:
            _keep_until_used(images, target)
            images = images.to(self.device, self._dtype, non_blocking=True).contiguous(memory_format=self._layout)
            target = target.to(self.device, non_blocking=True)
            self.waited += time.perf_counter() - last
            yield images, target
            last = time.perf_counter()


def _keep_until_used(*tensors: Tensor) -> None:
    """Let the memory of what another stream has made wait for the current one, which uses it, before it is used again.

    timm's prefetcher of 1.0.29 writes later batches to the memory of one that the GPU has not got to yet.
    """
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
