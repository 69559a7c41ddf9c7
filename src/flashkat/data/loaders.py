"""Batches of a data set: timm's loaders in a fixed order, on the model's device."""

import time
from argparse import Namespace
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
