"""Choose where a data set's images are decoded and cut: in the workers, in the GPU's memory, or by NVIDIA DALI."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.data import create_transform

from ...errors import InputError, is_installed
from ...ops.dispatch import is_triton
from ..augment import mend_posterize
from ..config import Augmentation, Data
from ..datasets import Shards
from ..folders import ImageFolder, Numbered
from ..images import image_mode
from .around import Around
from .batches import Collate, Drawing
from .dali import Decoder
from .encoded import CollateEncoded, EvaluationCut, TrainingCut, read_encoded
from .resident import CollateResident, ResidentImages, Store, read_all
from .steps import Recipe, UnsupportedError

__all__ = ["Backend", "Decoding", "evaluation_backend", "has_gpu", "training_backend"]

# Batches that are decoded at once.
_AHEAD = 2

_DALI = ("dali", "dali-cpu")


@dataclass
class Backend:
    """How images go from files to batches.

    Attributes:
        transform: the data set's transform.
        collate: puts images together in a worker; None for timm's own.
        decoder: makes images of a batch in the training process; None where the workers do.
        notes: lines for the user.
        resident: shows the images of a data set in memory; None where the workers read files.
    """

    transform: Any
    collate: Callable[..., Any] | None = None
    decoder: Decoder | Store | None = None
    notes: list[str] = field(default_factory=list)
    resident: ResidentImages | None = None

    def set_up(self, dataset: Any) -> Any:
        """Let a data set read images for this backend, and return the one to load."""
        if self.resident is not None:
            return self.resident
        dataset.transform = self.transform
        if self.decoder is not None:
            dataset.read_file = read_encoded
        return dataset


class Decoding(Around):
    """A loader whose batches are decoded while the model trains on earlier ones.

    Args:
        loader: gives the batches of :class:`CollateEncoded` or :class:`CollateResident`.
        decoder: makes their images.
    """

    def __init__(self, loader: Any, decoder: Decoder | Store) -> None:
        self.loader, self.decoder = loader, decoder

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        started: deque[Any] = deque()
        for images, target in self.loader:
            images.start(self.decoder)
            started.append((images, target))
            if len(started) == _AHEAD:
                yield started.popleft()
        yield from started


def has_gpu(device: torch.device) -> bool:
    """Return whether a device decodes and augments images."""
    return device.type == "cuda" and is_triton(device)


def training_backend(
    dataset: Any, settings: dict[str, Any], data: Data, augmentation: Augmentation, device: torch.device
) -> Backend:
    """Choose the backend of a training loader.

    Args:
        dataset: the data set.
        settings: the arguments of timm's ``create_transform``.
        data: the section of the configuration.
        augmentation: the section of the configuration.
        device: where batches are used.

    Raises:
        InputError: the backend that was asked for cannot load the images like this.
    """
    views = augmentation.aug_splits
    transform = create_transform(**settings, separate=views > 0)
    mend_posterize(transform)
    if not has_gpu(device):
        return _by_pillow(Backend(transform), data, "it is for GPUs only", is_worth_a_line=False)
    for is_given, flag in (
        (augmentation.no_aug, "--no-aug"),
        (views, "--aug-splits"),
        (data.no_prefetcher, "--no-prefetcher"),
    ):
        if is_given:
            return _by_pillow(Backend(transform), data, f"it does not know {flag}")
    if image_mode(data) != "RGB":
        return _by_pillow(Backend(transform), data, "it takes colour images only")
    primary, secondary, _ = create_transform(**settings, separate=True)
    try:
        recipe = Recipe(secondary.transforms)
    except UnsupportedError as error:
        return _by_pillow(Backend(transform), data, f"it does not know {error}")
    by_pillow = Backend(Drawing(primary, recipe), Collate(recipe.fill)) if secondary.transforms else Backend(transform)
    if data.data_backend in (None, "timm"):
        return by_pillow
    try:
        cut = TrainingCut(primary, recipe)
    except UnsupportedError as error:
        return _by_pillow(by_pillow, data, f"it does not know {error}")
    return _on_gpu(dataset, cut, settings, data, data.batch_size, device, recipe.fill) or _by_pillow(
        by_pillow, data, _why_not(dataset, data)
    )


def evaluation_backend(
    dataset: Any, settings: dict[str, Any], data: Data, batch_size: int, device: torch.device
) -> Backend:
    """Choose the backend of a loader for evaluation. See :func:`training_backend`."""
    transform = create_transform(**settings)
    if data.data_backend in (None, "timm"):
        return Backend(transform)
    if not has_gpu(device):
        return _by_pillow(Backend(transform), data, "it is for GPUs only", is_worth_a_line=False)
    if data.no_prefetcher:
        return _by_pillow(Backend(transform), data, "it does not know --no-prefetcher")
    if image_mode(data) != "RGB":
        return _by_pillow(Backend(transform), data, "it takes colour images only")
    try:
        cut = EvaluationCut(transform)
    except UnsupportedError as error:
        return _by_pillow(Backend(transform), data, f"it does not know {error}")
    return _on_gpu(dataset, cut, settings, data, batch_size, device) or _by_pillow(
        Backend(transform), data, _why_not(dataset, data), is_worth_a_line=False
    )


def _why_not(dataset: Any, data: Data) -> str:
    """Return why the backend that was asked for cannot load a data set."""
    if data.data_backend == "memory":
        if not isinstance(dataset, Numbered):
            return "they are streamed, and it reads images by number"
        return "they differ in size, have more than 128 pixels a side, or take more than 1 GiB"
    return _why_not_dali(dataset, data)


def _why_not_dali(dataset: Any, data: Data) -> str:
    if not is_installed("nvidia.dali"):
        return "it is not installed (pip install '.[dali]' in the clone)"
    if not isinstance(dataset, (ImageFolder, Shards)):
        return "it reads image folders, archives and WebDataset shards only"
    if data.skip_bad_images:
        return "it cannot replace images, as --skip-bad-images asks for"
    return ""


def _by_pillow(backend: Backend, data: Data, reason: str, *, is_worth_a_line: bool = True) -> Backend:
    """Return the backend of the workers, or raise InputError where another one was asked for."""
    if data.data_backend in ("memory", *_DALI):
        raise InputError(f"--data-backend {data.data_backend} cannot load these images: {reason}")
    if data.data_backend == "auto" and is_worth_a_line:
        backend.notes.append(f"Pillow decodes the images, not NVIDIA DALI: {reason}")
    return backend


def _on_gpu(
    dataset: Any,
    cut: TrainingCut | EvaluationCut,
    settings: dict[str, Any],
    data: Data,
    batch_size: int,
    device: torch.device,
    fill: tuple[int, ...] = (0, 0, 0),
) -> Backend | None:
    """Return the backend in the GPU's memory or else by DALI, whichever was asked for and can load the data set."""
    size = tuple(settings["input_size"][1:])
    is_open, notes = data.data_backend == "auto", []
    if data.data_backend not in _DALI and isinstance(dataset, Numbered):
        found = read_all(dataset, data.workers, data.loader_timeout)
        if found is not None:
            images, labels = found
            if is_open:
                notes = [f"All images are in the GPU's memory: {images.nbytes / 2**20:.0f} MiB"]
            store = Store(images.to(device), size)
            resident = ResidentImages(dataset, labels, (images.shape[2], images.shape[1]), cut)
            return Backend(cut, CollateResident(fill), store, notes, resident)
    if data.data_backend == "memory" or _why_not_dali(dataset, data):
        return None
    if is_open:
        notes = ["NVIDIA DALI decodes the images, with pixels a few grey levels from Pillow's"]
    decoder = Decoder(
        batch_size,
        size,
        device,
        max(1, data.workers),
        has_windows=isinstance(cut, EvaluationCut),  # training resizes to the size itself
        is_on_cpu=data.data_backend == "dali-cpu",
    )
    return Backend(cut, CollateEncoded(size, fill), decoder, notes)
