"""Determine the order of images, each process's share of them, and the random numbers of their augmentation.

An epoch's order depends only on the seed and the epoch. Global batch k holds the same images for any number of
processes. An image's augmentation depends on the seed, the epoch and its place in the order. So neither the number of
workers nor a resumed run changes it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from timm.data.distributed_sampler import OrderedDistributedSampler, RepeatAugSampler
from timm.data.random_erasing import RandomErasing
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    get_worker_info,
)

from ..errors import InputError
from ..system import distributed
from ..system.random import draw_from, isolated, seed_of
from .erasing import BatchErasing

__all__ = ["SeededErasing", "evaluation_batches", "own_images", "start_epoch", "training_batches"]


class _Passes:
    """Track the current pass over the data.

    Attributes:
        seed: seed of the run.
        epoch: epoch of the current pass.
        first_batch: the batch that the pass began with.
        passes: number of passes begun.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.next_pass = seed, (0, 0)
        self.epoch = self.first_batch = self.passes = 0

    def start(self, epoch: int, batch: int) -> None:
        """Set the epoch and first batch of the next iteration. By default it is the next epoch's batch 0."""
        self.next_pass = (epoch, batch)

    def _begin(self) -> None:
        self.epoch, self.first_batch = self.next_pass
        self.next_pass = (self.epoch + 1, 0)
        self.passes += 1


class EpochSampler(_Passes, Sampler):
    """Draw a process's share of an epoch: indices, each with the numbers that seed its augmentation.

    Args:
        sampler: draws the places of an epoch. Each pass over the images takes the next places. It has ``set_epoch``.
        seed: seed of the run.
        batch_size: images of a batch of this process.
        images: number of images.
        places: number of places of an epoch.
    """

    def __init__(
        self, sampler: DistributedSampler | RepeatAugSampler, seed: int, batch_size: int, images: int, places: int
    ) -> None:
        super().__init__(seed)
        self.sampler, self.batch_size, self.images, self.places = sampler, batch_size, images, places

    def _rest(self) -> list[int]:
        """Draw the images of an epoch's last pass, if that is a partial one. Each epoch leaves out others."""
        if not (count := self.places % self.images):
            return []
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        return torch.randperm(self.images, generator=generator)[:count].tolist()

    def __iter__(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        self._begin()
        # timm's RepeatAugSampler has no other seed than the epoch.
        has_views = isinstance(self.sampler, RepeatAugSampler)
        self.sampler.set_epoch(self.epoch + self.seed if has_views else self.epoch)
        rank, size = distributed.rank(), distributed.size()
        rest = self._rest()
        whole = self.places - len(rest)
        for number, place in enumerate(self.sampler):
            if number >= self.first_batch * self.batch_size:
                index = place % self.images if place < whole else rest[place - whole]
                # The workers make the seed, as that takes too long for the training process.
                yield index, (self.seed, self.epoch, rank + size * number)

    def __len__(self) -> int:
        """Count the images of a whole epoch."""
        return len(self.sampler)


class _SeededDataset(Dataset):
    """A data set whose index comes with the numbers of a seed for its augmentation."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, drawn: tuple[int, tuple[int, ...]]) -> Any:
        index, seed = drawn[0], seed_of(*drawn[1])
        if get_worker_info() is not None:
            # Nothing else draws in a worker. Saving NumPy's state takes as long as a small image.
            draw_from(seed)
            return self.dataset[index]
        with isolated(seed):
            return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)


class _Endless(BatchSampler):
    """Draw the batches of an epoch, then those of the next."""

    def __iter__(self) -> Iterator[list[Any]]:
        while True:
            yield from super().__iter__()


class ContinuedLoader(_Passes):
    """Load the next epoch ahead, while training takes an epoch's last batches and evaluates.

    Args:
        loader: the loader of the endless batches of ``order``.
        order: draws the images.
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
        # None until the pass ends, so that an interrupted pass is not continued.
        self._next_batch = None
        for _ in range(self.first_batch, len(self)):
            yield next(self._batches)
        self._next_batch = (self.epoch + 1, 0)

    @property
    def sampler(self) -> _Passes:
        """The loader itself, which tracks the current pass, as ``order`` is ahead of it."""
        return self

    def __len__(self) -> int:
        """Count the batches of a whole epoch."""
        return len(self.loader)


class SeededErasing:
    """Erase in whole batches, each from its own seed, as the loader runs a batch ahead of training.

    Args:
        erasing: timm's settings.
        order: the loader's sampler.
    """

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


def training_batches(
    dataset: Any,
    batch_size: int,
    seed: int,
    *,
    passes: float = 1,
    views: int = 0,
    continued: bool = False,
    **loading: Any,
) -> Any:
    """Make the loader of this process's share, whose order and augmentation follow from the seed.

    A stream keeps its own order and random numbers.

    Args:
        dataset: the data set.
        batch_size: images of a batch of this process.
        seed: seed of the run.
        passes: passes over the data in an epoch. Each epoch draws its own images for a partial pass.
        views: views of an image that the processes share, by timm's RepeatAugSampler; 0 shares none.
        continued: load the next epoch ahead, see :class:`ContinuedLoader`.
        **loading: further arguments of DataLoader.
    """
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size, drop_last=True, **loading)
    size, rank = distributed.size(), distributed.rank()
    places: Any = range(round(passes * len(dataset)))
    if views:
        sampler: Any = RepeatAugSampler(places, size, rank, num_repeats=views)
    else:
        # Drops the images that do not divide among the processes. A single process drops them with the last batch.
        sampler = DistributedSampler(places, size, rank, seed=seed, drop_last=True)
    order, seeded = EpochSampler(sampler, seed, batch_size, len(dataset), len(places)), _SeededDataset(dataset)
    loading["generator"] = _own_generator()
    if not continued:
        return DataLoader(seeded, batch_size, sampler=order, drop_last=True, **loading)
    batches = _Endless(order, batch_size, drop_last=True)
    return ContinuedLoader(DataLoader(seeded, batch_sampler=batches, **loading), order)


def _own_generator() -> torch.Generator:
    """Return a generator for a DataLoader, which otherwise draws from the process's random numbers."""
    return torch.Generator().manual_seed(0)


def start_epoch(loader: Any, epoch: int, batch: int) -> bool:
    """Set the epoch and first batch of a loader's next iteration.

    Returns:
        Whether the loader can start at that batch. Streams only start at the first.
    """
    order = getattr(loader, "sampler", None)
    if isinstance(order, _Passes):
        order.start(epoch, batch)
        return True
    dataset: Any = getattr(loader, "dataset", None)
    if hasattr(dataset, "set_epoch"):  # a stream
        dataset.set_epoch(epoch)
    return batch == 0


class _OwnBatches:
    """Take every n-th batch of a loader that is the same in all n processes.

    A process that runs out gets the stream's last batch without targets, so that all take as many steps.
    """

    def __init__(self, loader: DataLoader) -> None:
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


def evaluation_batches(dataset: Any, batch_size: int, most: int | None = None, **loading: Any) -> Any:
    """Make the loader of this process's share, in order.

    All shares have the same size, so that the processes take the same number of steps. Some shares are padded with
    images that another process counts, see :func:`own_images`. Every process reads a stream whole and takes its share
    of the batches.

    Args:
        dataset: the data set.
        batch_size: images of a batch of this process.
        most: show every process this many images at most, evenly spaced; None shows all. It does not limit a stream.
        **loading: further arguments of DataLoader.

    Raises:
        InputError: there are fewer images than processes.
    """
    size = distributed.size()
    if isinstance(dataset, IterableDataset):
        return _OwnBatches(DataLoader(dataset, batch_size, **loading))
    if len(dataset) < size:
        raise InputError(
            f"{len(dataset)} images to evaluate on are fewer than the {size} processes: give fewer processes"
        )
    sampler: Any = OrderedDistributedSampler(dataset, size, distributed.rank()) if size > 1 else None
    if most is not None:
        count = min(most, len(dataset))
        sampler = [number * len(dataset) // count for number in range(count)]
    return DataLoader(dataset, batch_size, sampler=sampler, generator=_own_generator(), **loading)


def own_images(loader: Any) -> int | None:
    """Return how many of an evaluation loader's first images count in this process. None means all of them."""
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, OrderedDistributedSampler):
        return None
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))
