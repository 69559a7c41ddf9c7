"""Data sets by name: timm's readers, with errors that name the file."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from timm.data import (
    IterableImageDataset,
    create_dataset,
)
from timm.data.readers.reader_wds import log_and_continue

from ..errors import InputError, did_you_mean, explain, quiet, require_package
from ..system import distributed
from ..system.terminal import printable_name
from .bad_images import BadImages
from .checks import NO_IMAGES, check_columns, check_shards, check_streamed_columns, name_classes
from .config import Data
from .folders import SPLIT_NAMES, ImageFolder, Labelled, Numbered, open_split, ordered, split_folder, undecodable
from .images import as_mode, image_mode, read_image
from .scan import read_class_map

__all__ = ["FakeImages", "check_splits", "image_count", "open_dataset"]

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

# The data sets of torchvision that timm opens. The first ones have two splits.
_TWO_SPLITS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
_TORCHVISION = (*_TWO_SPLITS, "inaturalist", "places365", "imagenet", "image_folder")

_FOLDERS = ("image_folder", "folder")

# A file of one pixel, which timm decodes in 0.03 ms.
_ONE_PIXEL = b"P5 1 1 255\n\0"

_FAKE_TRAINING_BATCHES, _FAKE_EVALUATION_BATCHES, _FAKE_CLASSES = 100, 10, 1000


class TorchImages(Numbered, torch.utils.data.Dataset):
    """A data set of torchvision's, with images in the mode asked for."""

    def __init__(self, dataset: Any, source: str, mode: str) -> None:
        self.dataset, self.source, self.mode = dataset, source, mode
        self.transform: Any = None
        names = getattr(dataset, "classes", None) or getattr(dataset, "all_categories", [])
        self.classes = [name if isinstance(name, str) else ", ".join(name) for name in names]

    def __len__(self) -> int:
        return len(self.dataset)

    def _read(self, index: int) -> tuple[Any, Any]:
        try:
            image, target = self.dataset[index]
            return as_mode(image, self.mode), target
        except Exception as error:
            raise InputError(f"cannot read image {self.name(index)}: {error}") from error


class Stream(Labelled, IterableImageDataset):
    """A data set that is read from front to end, such as the shards of a WebDataset."""

    def __init__(self, dataset: IterableImageDataset, source: str, mode: str) -> None:
        super().__init__(None, reader=dataset.reader)
        self.source, self.mode = source, mode

    def set_loader_cfg(self, num_workers: int | None = None) -> None:
        """Tell the reader how many processes read; one at least, without which timm 1.0.29 counts no samples."""
        super().set_loader_cfg(num_workers=max(1, num_workers or 1))

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        with explain(f"cannot read {self.source}"):
            for image, target in self._samples():
                yield self.transform(image), self._checked(target)

    def _samples(self) -> Iterator[tuple[Any, Any]]:
        for image, target in self.reader:
            yield as_mode(image, self.mode), target

    def read_whole(self) -> None:
        """Let this process read all samples. timm's shares repeat some and leave others out, to have the same size.

        Call this before making a loader.
        """
        self.reader.dist_rank, self.reader.dist_num_replicas = 0, 1

    @property
    def classes(self) -> list[str]:
        """Class names, where a class map or the data set lists them."""
        return ordered(getattr(self.reader, "class_to_idx", None) or {})


class _Member(BytesIO):
    """A file of a shard, with the name that messages give it."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


class Shards(Stream):
    """The shards of a WebDataset. An image that cannot be decoded is left out with a warning that names it, as in timm.

    Attributes:
        read_file: reads the file of an image, given the mode of images, to what ``transform`` takes.
    """

    def __init__(self, dataset: IterableImageDataset, source: str, mode: str) -> None:
        super().__init__(dataset, source, mode)
        self.read_file: Callable[[IO[bytes], str], Any] = read_image
        self._since_image = 0  # samples since the last one that had an image

    def _samples(self) -> Iterator[tuple[Any, Any]]:
        if self.reader.ds is None:
            self._take_part()
        yield from self.reader

    def _take_part(self) -> None:
        """Decode in the place of timm. Its own stages for shards, order and labels stay."""
        self.reader._lazy_init()
        *others, decode, rename = self.reader.ds.pipeline
        self.reader.ds.pipeline = [*others, partial(self._decode, lambda samples: rename(decode(samples)))]

    def _decode(self, timms: Callable[[Any], Iterator[dict[str, Any]]], samples: Iterable[Any]) -> Iterator[Any]:
        """Read the images of samples, and leave the rest to timm, which sees one pixel in the place of each image."""
        for sample in samples:
            # timm 1.0.29 would begin anew for ever.
            if self._since_image > self.reader.num_samples:
                raise InputError(NO_IMAGES)
            self._since_image += 1
            keys = [key for key in self.reader.input_key.split(";") if key in sample]
            try:
                image = self._image(sample, keys[0]) if keys else None
            except InputError as error:
                log_and_continue(error)
                continue
            for found in timms([{**sample, **dict.fromkeys(keys, _ONE_PIXEL)}]):
                self._since_image = 0
                yield {**found, "image": image}

    def _image(self, sample: dict[str, Any], key: str) -> Any:
        file = _Member(sample[key], f"{sample.get('__url__', self.source)}/{sample['__key__']}.{key}")
        try:
            return self.read_file(file, self.mode)
        except Exception as error:  # damaged files make Pillow raise almost anything
            raise undecodable(file, printable_name(file.name), error) from error


class FakeImages:
    """No images: its loader shows one random batch on the device, again and again."""

    def __init__(self, classes: int, batches: int, batch_size: int) -> None:
        self.source, self.notes = "fake data", ()
        self.classes = [str(index) for index in range(classes)]
        self.batches, self.batch_size = batches, batch_size

    def __len__(self) -> int:
        return self.batches * self.batch_size


def open_dataset(
    data: Data,
    split: str,
    *,
    is_training: bool = False,
    num_samples: int | None = None,
    num_classes: int | None = None,
    seed: int = 42,
) -> Any:
    """Open a split of the data set that ``--dataset`` and the data folder name.

    Args:
        data: the section of the configuration.
        split: the split's name.
        is_training: shuffle the split if it is streamed. Loaders shuffle others.
        num_samples: number of samples of data that does not give it.
        num_classes: number of classes of fake data.
        seed: seed of the order of streamed data.

    Raises:
        InputError: there is no such data set, it cannot be read, or a package is not installed.
    """
    if data.fake_data:
        batch, few = data.batch_size, _FAKE_TRAINING_BATCHES if is_training else _FAKE_EVALUATION_BATCHES
        return FakeImages(num_classes or _FAKE_CLASSES, max(1, (num_samples or few * batch) // batch), batch)
    if not split:
        raise InputError("a split has no name: give its folder's in --train-split, or in --split of flashkat validate")
    mode = image_mode(data)
    dataset = _open(data, split, mode, is_training=is_training, num_samples=num_samples, seed=seed)
    if data.skip_bad_images and isinstance(dataset, Numbered):
        dataset.bad = BadImages(len(dataset), data.max_bad_images, is_training)
    return dataset


def _open(data: Data, split: str, mode: str, *, is_training: bool, num_samples: int | None, seed: int) -> Any:
    kind, slash, name = data.dataset.partition("/")
    kind = kind.lower()
    if data.is_folder:
        if data.data_dir is None:
            raise InputError("no data set: name its folder")
        return open_split(data.data_dir, split, data.class_map, mode, data.val_fraction or 0.0, is_training)
    if data.val_fraction:
        raise InputError(f"--val-fraction divides folders and archives, {data.dataset} has splits: leave it out")
    if not slash or kind not in _PACKAGES:
        raise InputError(
            f"no kind of data set {data.dataset!r}: leave it out for a folder, or try torch/cifar10, hfds/, wds/"
        )
    if not name and kind != "wds":
        raise InputError(f"--dataset {kind}/ needs a name: {kind}/NAME")
    if kind == "torch" and data.class_map:
        raise InputError(f"{data.dataset} numbers its classes itself: leave out --class-map")
    # timm opens the images to evaluate for every name that is not one of training's.
    if kind == "torch" and _torchvision_name(data) in _TWO_SPLITS and split not in SPLIT_NAMES:
        raise InputError(f"{data.dataset} has the splits train and validation, not {split!r:.40}: name one of these")
    class_to_idx = read_class_map(data.class_map) if data.class_map else None
    require_package(_PACKAGES[kind], f"--dataset {kind}/")
    if kind in ("torch", "wds") and not (data.dataset_download or Path(data.data_dir or "").is_dir()):
        raise InputError(f"no data folder at {data.data_dir}")
    source = f"the {split} split of {data.dataset}"
    hint = _torchvision_hint(data) if kind == "torch" else _SHARDS_HINT if kind == "wds" else ""
    # They warn of optional files, and of each retry.
    with explain(f"cannot open {source}", hint), quiet("timm.data.readers", "huggingface_hub"):
        root = data.data_dir
        if kind == "torch" and _torchvision_name(data) in _FOLDERS:
            # timm would open all of DIR if it lacks the split.
            root = str(split_folder(Path(root or ""), split))
        try:
            dataset = create_dataset(
                data.dataset,
                root=root,
                split=split,
                search_split=False,
                class_map=None if kind == "wds" else class_to_idx,
                is_training=is_training,
                download=data.dataset_download,
                batch_size=data.batch_size,
                num_samples=num_samples,
                seed=seed,
                # Converting is ours, where timm can leave it: its own clips 16-bit images.
                input_img_mode=mode if kind == "tfds" else "",
                trust_remote_code=data.dataset_trust_remote_code,
                **{name: getattr(data, name) for name in ("input_key", "target_key") if kind != "torch"},
            )
        except (RuntimeError, ValueError) as error:
            if kind in _STREAMED and "num_samples" in str(error):
                raise _uncounted(source, is_training) from error
            raise
    if kind == "torch":
        images = TorchImages(dataset, source, mode)
        if hidden := next((each for each in images.classes if each.startswith(".")), None):
            raise InputError(f"{source} takes the hidden folder {hidden!r:.80} for a class: remove it, or --dataset")
        return images
    if kind == "hfds":
        check_columns(dataset.reader, source)
        name_classes(dataset.reader, source)
    if kind == "hfids":
        check_streamed_columns(dataset.reader, source)
    if kind == "wds":
        # Classes in shards are numbers, which a class map gives names to.
        dataset.reader.class_to_idx = class_to_idx or dataset.reader.class_to_idx
        check_shards(dataset.reader, source, distributed.size() * max(1, data.workers) if is_training else 1)
    if kind not in _STREAMED:
        return ImageFolder(data.data_dir, dataset.reader, source, mode)
    if not len(dataset):
        raise _uncounted(source, is_training)
    return (Shards if kind == "wds" else Stream)(dataset, source, mode)


def _uncounted(source: str, is_training: bool) -> InputError:
    flag = "--train-num-samples" if is_training else "--val-num-samples (--num-samples of flashkat validate)"
    return InputError(f"{source} does not say how many samples it has: give {flag}")


def _torchvision_name(data: Data) -> str:
    """Return the name of a data set of torchvision. timm takes "torch/NAME" and "torch/anything/NAME"."""
    return data.dataset.split("/", 2)[-1].lower()


def _torchvision_hint(data: Data) -> str:
    """Return a hint for a data set of torchvision that cannot be opened."""
    name = _torchvision_name(data)
    if name not in (*_TORCHVISION, *_FOLDERS, "inat"):
        return "; " + did_you_mean(name, _TORCHVISION, f"there are {', '.join(_TORCHVISION)}")
    return "" if data.dataset_download else "; --dataset-download downloads it"


def image_count(dataset: Any) -> int:
    """Return how many images a data set has for all processes together."""
    return dataset.reader.num_samples if isinstance(dataset, Stream) else len(dataset)


def check_splits(train: Any, val: Any) -> None:
    """Raise InputError unless both splits have the same classes, as far as known, and other images."""
    if isinstance(val, ImageFolder) and Path(val.source) in Path(train.source).parents:
        raise InputError(
            f"{val.source} holds the training images of {train.source}, too: name the images to evaluate in "
            "--val-split, or give --val-split '' for none"
        )
    if not train.classes or not val.classes:
        return
    for a, b in ((train, val), (val, train)):
        known = set(b.classes)
        missing = [name for name in a.classes if name not in known]
        if missing:
            some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise InputError(
                f"{b.source} has no images of classes that {a.source} has: {some}. Add images, or remove these classes"
            )
