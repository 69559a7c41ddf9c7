"""Batches of a data set, in a fixed order, on the model's device."""

import math
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import AugMixDataset, create_transform
from timm.data.loader import fast_collate
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils.data import default_collate, get_worker_info

from ..errors import InputError, explain
from ..system import distributed
from ..system.device import Runtime
from ..system.signals import leave_signals_to_parent, start_method
from ..system.stalls import Reads, explain_workers
from .batched.around import Around
from .batched.backend import Backend, Decoding, evaluation_backend, training_backend
from .batched.batches import Prefetcher
from .config import Augmentation, Data
from .datasets import FakeImages, Stream
from .folders import Numbered
from .order import SeededErasing, evaluation_batches, training_batches

__all__ = ["Batches", "check_augmentation", "evaluation_loader", "training_loader"]

# Settings that have the same name in timm's transform and in the section of the configuration.
_AUGMENTATION = ("no_aug", "train_crop_mode", "scale", "ratio", "hflip", "vflip", "color_jitter", "color_jitter_prob")

# Batches that each worker holds ready, as in PyTorch.
_PREFETCHED = 2

# The largest tensor, in bytes, that a worker sends through its pipe. Linux holds as many in a pipe.
_SMALL = 2**16

# Steps that the host gives to a GPU before it waits.
_AHEAD = 3


def check_augmentation(policy: str | None) -> None:
    """Raise InputError unless timm can make the augmentation that ``--aa`` names."""
    try:
        create_transform(32, is_training=True, auto_augment=policy)
    except Exception as error:  # timm's asserts and look-ups raise almost anything
        raise InputError(
            f"no augmentation {policy!r} for --aa: give rand, augmix, original, originalr, v0, v0r or 3a, "
            "with options such as in rand-m9-mstd0.5-inc1 or augmix-m3-w3"
        ) from error


def training_loader(
    dataset: Any,
    config: dict[str, Any],
    data: Data,
    augmentation: Augmentation,
    runtime: Runtime,
    device: torch.device,
) -> "Batches":
    """Make the shuffled, augmented loader of this process's share. An epoch's last, partial batch is dropped.

    Raises:
        InputError: flags that contradict each other or the data, or fewer images than a batch of all processes.
    """
    if isinstance(dataset, FakeImages):
        return Batches(_Resident(dataset, config, runtime, device), runtime, device)
    _check_training(dataset, data, augmentation)
    numbered = _watched(dataset, data)
    splits = augmentation.aug_splits
    erasing = {
        "re_prob": augmentation.reprob,
        "re_mode": augmentation.remode,
        "re_count": augmentation.recount,
        # Without splits timm spares the first half of a batch.
        "re_num_splits": (splits or 2) if augmentation.resplit else 0,
    }
    transform = {
        **_shared_settings(config, data),
        **{name: getattr(augmentation, name) for name in _AUGMENTATION},
        "is_training": True,
        "grayscale_prob": augmentation.grayscale_prob or 0.0,
        "gaussian_blur_prob": augmentation.gaussian_blur_prob or 0.0,
        "auto_augment": augmentation.aa,
        "interpolation": config["interpolation"] if augmentation.no_aug else augmentation.train_interpolation,
        **erasing,
    }
    with explain("cannot load images like this"):
        backend = training_backend(dataset, transform, data, augmentation, device)
        _check_shared_memory(data, config, data.batch_size * max(splits, 1), backend)
        dataset = backend.set_up(dataset)
        loading = _loading(data, device, backend)
        is_stream = isinstance(dataset, Stream)
        if is_stream:
            if data.epoch_repeats:
                dataset.reader.num_samples = round(dataset.reader.num_samples * data.epoch_repeats)
            dataset.set_loader_cfg(num_workers=data.workers)
        if splits:
            dataset = AugMixDataset(dataset, num_splits=splits)
        loader = training_batches(
            dataset,
            data.batch_size,
            runtime.seed,
            views=augmentation.aug_repeats,
            passes=data.epoch_repeats or 1,
            continued=data.use_multi_epochs_loader,
            **loading,
        )
        if not is_stream and not len(loader):  # repeated augmentation takes a multiple of 256 images
            raise InputError(
                f"--aug-repeats leaves fewer images for each process than a batch of {data.batch_size}: "
                "give a smaller --batch-size"
            )
        erasing = {} if augmentation.no_aug else erasing
        loader = _prefetched(loader, backend, config, data, runtime, device, **erasing)
    # timm draws what is erased in a stream from the process's random numbers.
    if getattr(loader, "random_erasing", None) and not is_stream:
        loader.random_erasing = SeededErasing(loader.random_erasing, loader.sampler)
    return Batches(loader, runtime, device, numbered, backend.notes)


def _shared_settings(config: dict[str, Any], data: Data) -> dict[str, Any]:
    """Return what training and evaluation tell ``create_transform`` alike."""
    names = ("input_size", "mean", "std")
    return {**{name: config[name] for name in names}, "use_prefetcher": not data.no_prefetcher}


def _loading(data: Data, device: torch.device, backend: Backend) -> dict[str, Any]:
    """Return the arguments of a DataLoader that do not concern its order."""
    return {
        "num_workers": data.workers,
        "timeout": data.loader_timeout if data.workers else 0,
        "collate_fn": backend.collate or (default_collate if data.no_prefetcher else fast_collate),
        "pin_memory": data.pin_mem and device.type == "cuda",
        "worker_init_fn": partial(_start_worker, data.worker_seeding == "all"),
        "persistent_workers": data.workers > 0,
        "multiprocessing_context": start_method() if data.workers else None,
    }


def _watched(dataset: Any, data: Data) -> Numbered | None:
    """Let a data set take note of its reads, and return it; None for a stream."""
    if not isinstance(dataset, Numbered):
        return None
    dataset.reads = Reads(data.workers, data.loader_timeout)
    return dataset


def _check_shared_memory(data: Data, config: dict[str, Any], batch_size: int, backend: Backend) -> None:
    """Raise InputError if the batches that workers hold ready do not fit into shared memory: they would hang or die."""
    shared = Path("/dev/shm")
    # Where the images are in the GPU's memory, workers send only numbers.
    if not data.workers or not shared.is_dir() or backend.resident is not None:
        return
    image = math.prod(config["input_size"]) * (torch.float32.itemsize if data.no_prefetcher else 1)
    # All processes of this machine share it.
    workers = data.workers * (int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if distributed.size() > 1 else 1)
    needed, free = workers * _PREFETCHED * batch_size * image, shutil.disk_usage(shared).free
    if needed > free:
        raise InputError(
            f"{workers} workers hold batches of {needed / 2**20:.0f} MiB in {shared}, which has "
            f"{free / 2**20:.0f}: give fewer --workers, a smaller --batch-size, or docker run a larger --shm-size"
        )


def _start_worker(seeds_numpy: bool, worker: int) -> None:
    """Prepare a loader's process.

    Args:
        seeds_numpy: whether to seed NumPy as timm does. Only the augmentation of streams draws from that seed.
        worker: the index of the process.
    """
    leave_signals_to_parent()
    ForkingPickler.register(Tensor, _by_value_if_small)
    if seeds_numpy:
        info: Any = get_worker_info()
        np.random.seed(info.seed % (2**32 - 1))


def _by_value_if_small(tensor: Tensor) -> tuple[Any, ...]:
    """Send a tensor of a worker's batch: a small one through the worker's pipe, others through shared memory.

    Shared memory takes a handshake for each tensor. A batch of photographs: 5 ms -> 1.5 ms on two busy cores.
    """
    if tensor.nbytes <= _SMALL:
        return torch.from_numpy, (tensor.numpy(),)
    return reduce_tensor(tensor)


def _prefetched(
    loader: Any,
    backend: Backend,
    config: dict[str, Any],
    data: Data,
    runtime: Runtime,
    device: torch.device,
    **erasing: Any,
) -> Any:
    """Let timm copy, normalise and erase batches ahead of their use, unless ``--no-prefetcher`` is given."""
    if data.no_prefetcher:
        return loader
    channels = config["input_size"][0]
    if backend.decoder is not None:
        loader = Decoding(loader, backend.decoder)
    return Prefetcher(loader, config["mean"], config["std"], channels, device, runtime.dtype, **erasing)


def _check_training(dataset: Any, data: Data, augmentation: Augmentation) -> None:
    """Raise InputError where flags contradict each other or the data."""
    images, processes = round(len(dataset) * (data.epoch_repeats or 1)), distributed.size()
    # A stream's reader begins anew until the last batch is full.
    if images < data.batch_size * processes and not isinstance(dataset, Stream):
        each = f" for each of {processes} processes" if processes > 1 else ""
        raise InputError(
            f"{dataset.source} has {images} images, fewer than a batch of {data.batch_size}{each}: "
            f"give a smaller --batch-size{' or fewer processes' if each else ''}"
        )
    for name in ("scale", "ratio"):
        low, high = getattr(augmentation, name)
        if low > high:
            raise InputError(f"--{name} takes the smaller number first, not {low:g} {high:g}")
    _check_views(dataset, data, augmentation)
    if data.use_multi_epochs_loader:
        _check_numbered(dataset, "--use-multi-epochs-loader")


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
    """Raise InputError if a flag needs images by number and the data is streamed."""
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
    most: int | None = None,
) -> "Batches":
    """Make the loader of this process's share, in order. Every process reads a stream whole.

    Args:
        dataset: the data set.
        config: how images are cut and normalised, see :func:`flashkat.data.config.data_config`.
        data: the section of the configuration.
        runtime: the dtype and the layout of images.
        device: where batches are used.
        batch_size: images of a batch; None takes that of ``data``.
        crop_border_pixels: pixels to leave out at each edge of an image.
        most: show this many images at most, evenly spaced; None shows all. It does not limit streams and fake data.

    Raises:
        InputError: the images cannot be loaded like this, or are fewer than the processes.
    """
    batch_size = batch_size or data.batch_size
    if isinstance(dataset, FakeImages):
        dataset.batch_size = batch_size
        return Batches(_Resident(dataset, config, runtime, device), runtime, device)
    numbered = _watched(dataset, data)
    with explain("cannot load images like this"):
        transform = {
            **_shared_settings(config, data),
            **{name: config[name] for name in ("interpolation", "crop_pct", "crop_mode")},
            "crop_border_pixels": crop_border_pixels,
        }
        backend = evaluation_backend(dataset, transform, data, batch_size, device)
        dataset = backend.set_up(dataset)
        if isinstance(dataset, Stream):
            dataset.read_whole()
            dataset.set_loader_cfg(num_workers=data.workers)
        _check_shared_memory(data, config, batch_size, backend)
        loader = evaluation_batches(dataset, batch_size, most, **_loading(data, device, backend))
        loader = _prefetched(loader, backend, config, data, runtime, device)
    return Batches(loader, runtime, device, numbered, backend.notes)


class _Resident:
    """Show one random batch on the device throughout an epoch."""

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
            yield self.images, self.target


class Batches(Around):
    """Give a loader's batches to a model: on its device, in its dtype and layout.

    Args:
        loader: gives images and targets.
        runtime: the dtype and the layout.
        device: where the model is.
        dataset: what the loader's processes read, for errors; None for a stream.
        notes: lines for the user about the loader.

    Attributes:
        waited: seconds spent waiting for the loader, since the last epoch began.
    """

    def __init__(
        self,
        loader: Any,
        runtime: Runtime,
        device: torch.device,
        dataset: Numbered | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.loader, self.device, self.waited, self.notes = loader, device, 0.0, notes
        self._numbered = dataset
        self._dtype = runtime.dtype
        self._layout = torch.channels_last if runtime.channels_last else torch.contiguous_format

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.waited = 0.0
        used: deque[torch.cuda.Event] = deque()
        last = time.perf_counter()
        batches: Iterator[tuple[Tensor, Tensor]] | None = None
        while True:
            try:
                with explain_workers(str if self._numbered is None else self._numbered.being_read):
                    if batches is None:
                        batches = iter(self.loader)
                    images, target = next(batches)
            except StopIteration:
                return
            _keep_until_used(images, target)
            images = images.to(self.device, self._dtype, non_blocking=True).contiguous(memory_format=self._layout)
            target = target.to(self.device, non_blocking=True)
            self.waited += time.perf_counter() - last
            yield images, target
            if images.is_cuda:
                _wait_for_earlier(used, images.device)
            last = time.perf_counter()


def _wait_for_earlier(used: deque[torch.cuda.Event], device: torch.device) -> None:
    """Wait until the GPU has used all batches but the last ones, as each that waits takes memory.

    Args:
        used: marks the end of the steps that the GPU was given. This adds one.
        device: the GPU.
    """
    used.append(torch.cuda.Event(blocking=True))
    used[-1].record(torch.cuda.current_stream(device))
    if len(used) > _AHEAD:
        used.popleft().synchronize()


def _keep_until_used(*tensors: Tensor) -> None:
    """Call ``record_stream``, so that the allocator does not reuse a batch that the GPU still reads.

    timm 1.0.29's prefetcher does not wait for that itself.
    """
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
