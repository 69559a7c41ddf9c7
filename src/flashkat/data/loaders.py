"""Batches of a data set: timm's loaders in a fixed order, on the model's device."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from timm.data import (
    AugMixDataset,
    create_loader,
    create_transform,
)
from torch import Tensor

from ..errors import InputError, explain
from ..system import distributed
from ..system.device import Runtime
from .config import Augmentation, Data
from .datasets import FakeImages, Stream
from .order import evaluation_order, training_order

__all__ = ["Batches", "check_augmentation", "evaluation_loader", "training_loader"]


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


def check_augmentation(policy: str | None) -> None:
    """Raise InputError unless timm can make the augmentation that ``--aa`` names."""
    try:
        create_transform(32, is_training=True, auto_augment=policy)
    except Exception as error:  # of timm's own code, for readers of that
        raise InputError(
            f"no augmentation {policy!r} for --aa: give rand, augmix, original, originalr, v0, v0r or 3a, "
            "with options such as in rand-m9-mstd0.5-inc1 or augmix-m3-w3"
        ) from error


def _common(data: Data, runtime: Runtime, config: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        "input_size": config["input_size"],
        "mean": config["mean"],
        "std": config["std"],
        "num_workers": data.workers,
        "pin_memory": data.pin_mem and device.type == "cuda",
        "use_prefetcher": not data.no_prefetcher,
        "img_dtype": runtime.dtype,
        "distributed": distributed.size() > 1,
        "device": device,
    }


def training_loader(
    dataset: Any,
    config: dict[str, Any],
    data: Data,
    augmentation: Augmentation,
    runtime: Runtime,
    device: torch.device,
) -> "Batches":
    """Make timm's shuffled, augmented loader of this process's share. An epoch's last, partial batch is dropped."""
    if isinstance(dataset, FakeImages):
        return Batches(_Resident(dataset, config, runtime, device), runtime, device)
    source = dataset.source
    if data.epoch_repeats and isinstance(dataset, Stream):
        dataset.reader.num_samples = round(dataset.reader.num_samples * data.epoch_repeats)
    elif data.epoch_repeats:
        dataset = _Repeated(dataset, data.epoch_repeats)
    processes = distributed.size()
    # Of a stream, timm's reader goes on from the beginning until the last batch is full.
    if not isinstance(dataset, Stream) and len(dataset) < data.batch_size * processes:
        each = f" for each of {processes} processes" if processes > 1 else ""
        raise InputError(
            f"{source} has {len(dataset)} images, fewer than a batch of {data.batch_size}{each}: "
            f"give a smaller --batch-size{' or fewer processes' if each else ''}"
        )
    for name in ("scale", "ratio"):
        low, high = getattr(augmentation, name)
        if low > high:
            raise InputError(f"--{name} takes the smaller number first, not {low:g} {high:g}")
    _check_views(dataset, data, augmentation)
    if data.use_multi_epochs_loader:
        _check_numbered(dataset, "--use-multi-epochs-loader")
    if augmentation.aug_splits:
        dataset = AugMixDataset(dataset, num_splits=augmentation.aug_splits)
    with explain("cannot load images like this"):
        loader = create_loader(
            dataset,
            **_common(data, runtime, config, device),
            batch_size=data.batch_size,
            is_training=True,
            no_aug=augmentation.no_aug,
            train_crop_mode=augmentation.train_crop_mode,
            scale=augmentation.scale,
            ratio=augmentation.ratio,
            hflip=augmentation.hflip,
            vflip=augmentation.vflip,
            color_jitter=augmentation.color_jitter,
            color_jitter_prob=augmentation.color_jitter_prob,
            grayscale_prob=augmentation.grayscale_prob or 0.0,
            gaussian_blur_prob=augmentation.gaussian_blur_prob or 0.0,
            auto_augment=augmentation.aa,
            num_aug_repeats=augmentation.aug_repeats,
            num_aug_splits=augmentation.aug_splits,
            re_prob=augmentation.reprob,
            re_mode=augmentation.remode,
            re_count=augmentation.recount,
            re_split=augmentation.resplit,
            interpolation=augmentation.train_interpolation,
            worker_seeding=data.worker_seeding,
        )
    return Batches(training_order(loader, runtime.seed, data.use_multi_epochs_loader), runtime, device)


def _check_views(dataset: Any, data: Data, augmentation: Augmentation) -> None:
    if augmentation.aug_splits == 1:
        raise InputError("--aug-splits takes 2 or more views of an image, or 0 for none")
    if augmentation.aug_splits and data.no_prefetcher:
        raise InputError("--aug-splits needs the prefetcher: leave out --no-prefetcher")
    if augmentation.aug_splits:
        _check_numbered(dataset, "--aug-splits")
    if augmentation.aug_splits and augmentation.no_aug:
        raise InputError("--aug-splits needs augmentation: leave out --no-aug")
    if augmentation.aug_repeats and distributed.size() == 1:
        raise InputError("--aug-repeats spreads the views of an image over processes: it needs several, from torchrun")
    if augmentation.aug_repeats:
        _check_numbered(dataset, "--aug-repeats")


def _check_numbered(dataset: Any, flag: str) -> None:
    """Raise InputError where images cannot be asked for by number, as a flag needs it."""
    if isinstance(dataset, Stream):
        raise InputError(f"{flag} needs images by number, {dataset.source} is streamed: leave it out")


def evaluation_loader(
    dataset: Any,
    config: dict[str, Any],
    data: Data,
    runtime: Runtime,
    device: torch.device,
    batch_size: int | None = None,
    crop_border_pixels: int | None = None,
) -> "Batches":
    """Make timm's loader over every image once, in order. Each of several processes has a share.

    Each of them reads all of what is streamed, and takes the share from that.
    """
    batch_size = batch_size or data.batch_size
    if isinstance(dataset, FakeImages):
        dataset.batch_size = batch_size
        return Batches(_Resident(dataset, config, runtime, device), runtime, device)
    if isinstance(dataset, Stream):
        dataset.read_whole()
    with explain("cannot load images like this"):
        loader = create_loader(
            dataset,
            **_common(data, runtime, config, device),
            batch_size=batch_size,
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
            crop_border_pixels=crop_border_pixels,
        )
    return Batches(evaluation_order(loader), runtime, device)


class _Resident:
    """The same random batch on the device, for every batch of an epoch."""

    def __init__(self, dataset: FakeImages, config: dict[str, Any], runtime: Runtime, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        size = (dataset.batch_size, *config["input_size"])
        self.dataset = dataset
        self.images = torch.randn(size, generator=generator).to(device, runtime.dtype)
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

    def __init__(self, loader: Any, runtime: Runtime, device: torch.device) -> None:
        self.loader, self.device, self.waited = loader, device, 0.0
        self._dtype = runtime.dtype
        self._layout = torch.channels_last if runtime.channels_last else torch.contiguous_format

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
