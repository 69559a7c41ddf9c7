"""Which process sees which images in which order, and what random numbers an image is augmented with.

An epoch's order depends on the seed and the epoch alone: global batch k is the same set of images whether one process
draws it or several draw a share each. An image's augmentation depends on the seed, the epoch and its place in that
order alone. So it does not matter how many loader processes there are, or whether the epoch was begun in another run.
"""

from collections.abc import Iterator
from typing import Any

import torch
from timm.data.distributed_sampler import OrderedDistributedSampler, RepeatAugSampler
from timm.data.loader import PrefetchLoader
from timm.data.random_erasing import RandomErasing
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    SequentialSampler,
    get_worker_info,
)

from ..errors import InputError
from ..system import distributed
from ..system.random import draw_from, isolated, seed_of
from .erasing import BatchErasing

__all__ = ["evaluation_order", "own_images", "start_epoch", "training_order"]


class _Passes:
    """Which epoch is passed through, and from which batch on.

    Attributes:
        seed: of the run.
        epoch, first_batch: of the pass that is under way.
        passes: how many were begun.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.next_pass = seed, (0, 0)
        self.epoch = self.first_batch = self.passes = 0

    def start(self, epoch: int, batch: int) -> None:
        """What the next iteration is to be: an epoch from one of its batches on. Without it, the epoch after."""
        self.next_pass = (epoch, batch)

    def _begin(self) -> None:
        self.epoch, self.first_batch = self.next_pass
        self.next_pass = (self.epoch + 1, 0)
        self.passes += 1


class EpochSampler(_Passes, Sampler):
    """The indices of a process's share of an epoch, each with the numbers that the seed of its augmentation is made of.

    Args:
        sampler: of the indices, with ``set_epoch``.
        seed: of the run.
        batch_size: of this process.
    """

    def __init__(self, sampler: DistributedSampler | RepeatAugSampler, seed: int, batch_size: int) -> None:
        super().__init__(seed)
        self.sampler, self.batch_size = sampler, batch_size

    def __iter__(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        self._begin()
        self.sampler.set_epoch(self.epoch)
        rank, size = distributed.rank(), distributed.size()
        for number, index in enumerate(self.sampler):
            if number >= self.first_batch * self.batch_size:
                # Making a seed takes a while, which the loader's processes have and the training process does not.
                yield index, (self.seed, self.epoch, rank + size * number)

    def __len__(self) -> int:
        """Of the whole epoch."""
        return len(self.sampler)


class _SeededDataset(Dataset):
    """A data set that takes an index and the numbers of a seed."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, drawn: tuple[int, tuple[int, ...]]) -> Any:
        index, seed = drawn[0], seed_of(*drawn[1])
        if get_worker_info() is not None:
            # Nobody else draws in a loader's process, and keeping NumPy's state takes as long as a small image.
            draw_from(seed)
            return self.dataset[index]
        with isolated(seed):
            return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)


class _Endless(BatchSampler):
    """The batches of an epoch, then those of the next."""

    def __iter__(self) -> Iterator[list[Any]]:
        while True:
            yield from super().__iter__()


class ContinuedLoader(_Passes):
    """A loader that goes on with the next epoch while the last batches of one are taken, and what is done in between.

    Args:
        loader: over the endless batches of ``order``.
        order: of its images.
    """

    def __init__(self, loader: DataLoader, order: EpochSampler) -> None:
        super().__init__(order.seed)
        self.loader, self.order, self.dataset = loader, order, loader.dataset
        self._batches: Iterator[Any] = iter(())
        self._next_batch: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Any]:
        self._begin()
        if self._next_batch != (self.epoch, self.first_batch):
            self.order.start(self.epoch, self.first_batch)
            self._batches = iter(self.loader)
        # Until the pass is over, so that one that is broken off is not gone on with.
        self._next_batch = None
        for _ in range(self.first_batch, len(self)):
            yield next(self._batches)
        self._next_batch = (self.epoch + 1, 0)

    @property
    def sampler(self) -> _Passes:
        """What says, and is told, which pass is taken: the loader itself, as the order is ahead."""
        return self

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.loader)


class _SeededErasing:
    """Erasing of whole batches, which runs a batch ahead of training, with random numbers of its own."""

    def __init__(self, erasing: RandomErasing, order: _Passes) -> None:
        self.erasing, self.order = BatchErasing(erasing), order
        self.passes = self.batch = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        order = self.order
        if self.passes != order.passes:
            self.passes, self.batch = order.passes, order.first_batch
        seed = seed_of(order.seed, order.epoch, self.batch, distributed.rank(), 1)
        self.batch += 1
        return self.erasing(images, seed)


def training_order(loader: Any, seed: int, continued: bool = False) -> Any:
    """timm's training loader, with every process's share, order and augmentation a function of the seed.

    If it is to be ``continued``, the next epoch is begun while one ends, see :class:`ContinuedLoader`. Of a data set
    that can only be read in its own order, or a loader that is no plain DataLoader, nothing is changed.
    """
    plain = loader.loader if isinstance(loader, PrefetchLoader) else loader
    if not _can_be_rebuilt(plain):
        return loader
    sampler = plain.sampler
    if not isinstance(sampler, RepeatAugSampler):
        # Dropping what does not divide among the processes, as a single process drops it with the last batch.
        sampler = DistributedSampler(
            plain.dataset, distributed.size(), distributed.rank(), shuffle=True, seed=seed, drop_last=True
        )
    rebuilt = _in_order(plain, EpochSampler(sampler, seed, plain.batch_size), continued)
    if not isinstance(loader, PrefetchLoader):
        return rebuilt
    loader.loader = rebuilt
    if loader.random_erasing is not None:
        loader.random_erasing = _SeededErasing(loader.random_erasing, rebuilt.sampler)
    return loader


def start_epoch(loader: Any, epoch: int, batch: int) -> bool:
    """Let the next iteration of a loader be an epoch from one of its batches on; False if it cannot start there."""
    order: Any = getattr(loader, "sampler", None)
    if isinstance(order, _Passes):
        order.start(epoch, batch)
        return True
    # Of loaders that are timm's as they are, what draws the order is told: a sampler, or a data set that is streamed.
    parts: tuple[Any, ...] = (order, getattr(loader, "dataset", None))
    for part in parts:
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)
    return batch == 0


class _OwnBatches:
    """Every n-th batch of a loader that is the same in all of n processes, as many for each, so that they go in step.

    Who would have one fewer gets the last one of all once more, without targets: there is nothing in it to count.
    """

    def __init__(self, loader: Any) -> None:
        self.loader, self.dataset = loader, loader.dataset

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rank, size = distributed.rank(), distributed.size()
        turn = size - 1
        for number, (images, target) in enumerate(self.loader):
            turn = number % size
            if turn == rank:
                yield images, target
        if turn < rank:
            yield images, target[:0]

    def __len__(self) -> int:
        return -(-len(self.loader) // distributed.size())


def evaluation_order(loader: Any) -> Any:
    """timm's evaluation loader, which gives each process its share in order.

    All shares are of one size, so that the processes go in step; those past the end of the data set hold an image that
    is counted elsewhere: :func:`own_images` says how many are not. Data that is streamed, which every process has to
    read whole, is shared by batches.
    """
    plain = loader.loader if isinstance(loader, PrefetchLoader) else loader
    if isinstance(plain.dataset, IterableDataset) and distributed.size() > 1:
        return _OwnBatches(loader)
    if not _can_be_rebuilt(plain):
        return loader
    sampler: Sampler = SequentialSampler(plain.dataset)
    if distributed.size() > 1:
        if len(plain.dataset) < distributed.size():
            raise InputError(
                f"{len(plain.dataset)} images to evaluate on are fewer than the {distributed.size()} processes: "
                "give fewer processes"
            )
        sampler = OrderedDistributedSampler(plain.dataset, distributed.size(), distributed.rank())
    rebuilt = _rebuilt(plain, plain.dataset, **_batches_of(plain, sampler))
    if not isinstance(loader, PrefetchLoader):
        return rebuilt
    loader.loader = rebuilt
    return loader


def own_images(loader: Any) -> int | None:
    """How many images of an evaluation loader count, the first ones; None for all of them."""
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, OrderedDistributedSampler):
        return None
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))


def _can_be_rebuilt(loader: Any) -> bool:
    return type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset)


def _in_order(loader: DataLoader, order: EpochSampler, continued: bool) -> Any:
    """A loader whose ``sampler`` says, and is told, which pass is taken."""
    dataset = _SeededDataset(loader.dataset)
    if not continued:
        return _rebuilt(loader, dataset, **_batches_of(loader, order))
    endless = _Endless(order, order.batch_size, loader.drop_last)
    return ContinuedLoader(_rebuilt(loader, dataset, batch_sampler=endless), order)


def _batches_of(loader: DataLoader, sampler: Sampler) -> dict[str, Any]:
    return {"sampler": sampler, "batch_size": loader.batch_size, "drop_last": loader.drop_last}


def _rebuilt(loader: DataLoader, dataset: Dataset, **order: Any) -> DataLoader:
    return DataLoader(
        dataset,
        **order,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        # Of its own: with the process's, the first pass would move random numbers that later ones do not.
        generator=torch.Generator().manual_seed(0),
    )
