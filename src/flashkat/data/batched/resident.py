"""A whole data set of small images in the GPU's memory: crops, resizing and flips there, to Pillow's bits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...system.signals import leave_signals_to_parent, start_method
from ...system.stalls import explain_workers
from .around import Around
from .batches import DrawnBatch
from .encoded import EvaluationCut, Jpeg, TrainingCut
from .steps import as_table

__all__ = ["CollateResident", "ResidentBatch", "ResidentImages", "Store", "read_all"]

# Most bytes of a data set that stays in memory, and most pixels along a side: larger images resize slowly this way.
_MOST_BYTES = 2**30
_LONGEST_SIDE = 128
# Images of a batch while all are read.
_READ = 256


def read_all(dataset: Any, workers: int, timeout: float) -> tuple[Tensor, list[int]] | None:
    """Read and decode a whole data set.

    Args:
        dataset: gives images of the mode RGB, and labels.
        workers: processes that read.
        timeout: seconds that a process may take for a batch; 0 waits for ever.

    Returns:
        Images (N, H, W, 3) in uint8, and their labels. None if images differ in size, are larger than 128 pixels or
        take more than 1 GiB.
    """
    dataset.transform = np.asarray
    first, _ = dataset[0]
    if max(first.shape) > _LONGEST_SIDE or first.nbytes * len(dataset) > _MOST_BYTES:
        return None
    images = torch.empty(len(dataset), *first.shape, dtype=torch.uint8)
    labels: list[int] = []
    loader = DataLoader(
        dataset,
        _READ,
        num_workers=workers,
        timeout=timeout if workers else 0,
        collate_fn=list,
        worker_init_fn=_begin,
        multiprocessing_context=start_method() if workers else None,
        generator=torch.Generator().manual_seed(0),
    )
    with explain_workers(dataset.being_read):
        for batch in loader:
            for image, label in batch:
                if image.shape != first.shape:
                    return None
                images[len(labels)] = torch.from_numpy(image.copy())
                labels.append(int(label))
    return images, labels


def _begin(worker: int) -> None:
    leave_signals_to_parent()


class ResidentImages(Around, Dataset):
    """Shows where images are and what is cut out of them, in place of the images.

    Args:
        dataset: the data set that was read.
        labels: its labels.
        size: (width, height) of its images.
        cut: draws what is cut out.
    """

    inside = "dataset"

    def __init__(
        self, dataset: Any, labels: list[int], size: tuple[int, int], cut: TrainingCut | EvaluationCut
    ) -> None:
        self.dataset, self.labels, self.cut = dataset, labels, cut
        self._stand_in = Jpeg(np.empty(0, dtype=np.uint8), "", size)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        (_, cut), steps = self.cut(self._stand_in)
        return (index, cut, steps), self.labels[index]


@dataclass
class ResidentBatch:
    """Places of images in a store. timm's prefetcher takes it for a tensor of images.

    Attributes:
        numbers: (B, 8) in int64: the image, top, left, height and width of the cut, whether it is bicubic, and whether
            it is flipped along x and y.
        size: height and width after resizing.
        window: top and left of the result within that.
        steps: further steps, see :func:`flashkat.data.batched.steps.as_table`.
        fill: the colour of places that an affine map leaves empty.
        store: has the images; set in the training process.
    """

    numbers: Tensor
    size: tuple[int, int]
    window: tuple[int, int]
    steps: Tensor
    fill: tuple[int, ...]
    store: "Store | None" = field(default=None, repr=False)

    def pin_memory(self) -> "ResidentBatch":
        """Return a batch in pinned memory, as PyTorch's loader asks for."""
        pinned = self.numbers.pin_memory(), self.size, self.window, self.steps.pin_memory()
        return ResidentBatch(*pinned, self.fill)

    def start(self, store: "Store") -> None:
        """Take note of the store. Its images are decoded."""
        self.store = store

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        """Return the augmented images (B, 3, H, W) in uint8 on a GPU."""
        assert self.store is not None
        images = self.store(self.numbers.to(device, non_blocking=non_blocking), self.size, self.window)
        return DrawnBatch(images, self.steps, self.fill).to(device, non_blocking)


class CollateResident:
    """Put the samples of :class:`ResidentImages` together.

    Args:
        fill: see :class:`ResidentBatch`.
    """

    def __init__(self, fill: tuple[int, ...] = (0, 0, 0)) -> None:
        self.fill = fill

    def __call__(self, batch: Sequence[tuple[Any, int]]) -> tuple[ResidentBatch, Tensor]:
        samples, labels = zip(*batch, strict=True)
        numbers = torch.tensor([(index, *cut.numbers()[:7]) for index, cut, _ in samples])
        _, first, _ = samples[0]
        steps = as_table([each for _, _, each in samples])
        return ResidentBatch(numbers, first.size, first.window, steps, self.fill), torch.tensor(labels)


class Store:
    """The images of a data set on a device.

    Args:
        images: (N, H, W, 3) in uint8, on the device.
        size: height and width of what is cut out.
    """

    def __init__(self, images: Tensor, size: tuple[int, int]) -> None:
        self._images, self._size = images, size

    def __call__(self, numbers: Tensor, size: tuple[int, int], window: tuple[int, int]) -> Tensor:
        """Return what a batch cuts out of its images: (B, H, W, 3) in uint8. See its attributes for the arguments."""
        from .resize import resized  # imports Triton, which only GPUs need

        return resized(self._images, numbers, size, (*window, *self._size))
