"""How many images a second does loading give, by number of workers, and how many does a training step take?

The loader is that of flashkat train, with the augmentation of the published models' recipes. No model slows it down.
On a GPU, augmentation, erasing and normalising run there. The --backends are those of --data-backend that can load the
images. The benchmark makes these, and removes them afterwards:

- 32-pixel PNGs, as in CIFAR-10;
- JPEGs with the size and detail of photographs;
- smaller JPEGs that still hold the crops of 224 pixels.

Files are in the operating system's cache. On a GPU, the benchmark first times a training step of the fastest model,
KAT-Tiny with CUDA graphs. The kinds of --images and the --backends may run in parts, which add up to one result.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from flashkat.data.config import Augmentation, Data
from flashkat.data.datasets import open_dataset
from flashkat.data.loaders import training_loader
from flashkat.errors import is_installed
from flashkat.system.device import Runtime, resolve_device

from .parts.common import Call, Measure, Row, StepTimer, arguments
from .parts.pieces import collect_in_pieces
from .training import make_step

__all__ = ["FOLDERS", "Folder", "Plan", "collect", "write_images"]

_RECIPE = Augmentation(aa="rand-m9-mstd0.5", remode="pixel", reprob=0.25)
_BACKENDS = ("timm", "memory", "dali")
_CLASSES = 10
_WORKERS = tuple(2**power for power in range(min(16, os.cpu_count() or 1).bit_length()))
_EPOCH = 2**20  # images: longer than a measurement, so that none contains the start of an epoch
_DETAIL = ((4, 70.0), (16, 40.0), (64, 20.0))  # of a photograph: cells along a side, and their amplitude
_NOISE = 6.0


@dataclass(frozen=True)
class Folder:
    """A folder of images to make.

    Attributes:
        count: number of images.
        width: width in pixels.
        height: height in pixels.
        suffix: suffix of the files, which is their format.
        loaded: side of an augmented image in pixels.
        patch: side of the model's patch in pixels.
    """

    count: int
    width: int
    height: int
    suffix: str
    loaded: int
    patch: int


FOLDERS = {
    "CIFAR-10-like": Folder(5000, 32, 32, ".png", 32, 4),
    "photographs": Folder(1000, 500, 400, ".jpg", 224, 16),
    "photographs stored smaller": Folder(1000, 320, 256, ".jpg", 224, 16),
}


@dataclass(frozen=True)
class Plan:
    """The settings of a measurement."""

    workers: tuple[int, ...]
    batch: int = 128
    windows: int = 5
    window_s: float = 2.0


def collect(
    plan: Plan, folders: dict[str, Folder], backends: Sequence[str], device: torch.device, measure: Measure
) -> Iterator[list[Row]]:
    """Measure the folders, and yield the rows of each and backend: images per second for each number of workers.

    ``step_images_per_s`` is the rate of a training step, and ``over_step`` the loader's share of it. Both are None
    without a GPU.
    """
    for name, folder in folders.items():
        # Before workers use the processor.
        step = plan.batch / measure(_step(folder, plan.batch)) * 1e6 if device.type == "cuda" else None
        with tempfile.TemporaryDirectory() as root:
            write_images(Path(root), folder)
            for backend in backends:
                if not _can_load(backend, folder, device):
                    continue
                yield [_row(root, name, folder, backend, plan, workers, device, step) for workers in plan.workers]


def _can_load(backend: str, folder: Folder, device: torch.device) -> bool:
    if backend == "dali":
        return device.type == "cuda" and is_installed("nvidia.dali") and folder.suffix == ".jpg"
    return backend == "timm" or (device.type == "cuda" and folder.width <= 128)


def _row(
    root: str,
    name: str,
    folder: Folder,
    backend: str,
    plan: Plan,
    workers: int,
    device: torch.device,
    step: float | None,
) -> Row:
    print(name, backend, workers, file=sys.stderr, flush=True)
    rates = _rates(_batches(root, folder, backend, plan.batch, workers, device), plan, workers)
    rate = statistics.median(rates)
    return {
        "images": name,
        "pixels": folder.loaded,
        "backend": backend,
        "workers": workers,
        "images_per_s": round(rate, 1),
        "min_images_per_s": round(min(rates), 1),
        "max_images_per_s": round(max(rates), 1),
        "step_images_per_s": step and round(step, 1),
        "over_step": step and round(rate / step, 4),
    }


def _step(folder: Folder, batch: int) -> Call:
    model = {"img_size": folder.loaded, "patch_size": folder.patch}
    step = make_step("ours", "tiny", "graphs", "bf16", batch, "cuda", **model)
    for _ in range(3):  # compile, record, replay
        step()
    return step


def _batches(
    root: str, folder: Folder, backend: str, batch: int, workers: int, device: torch.device
) -> Iterable[object]:
    data = Data(
        data_dir=root,
        batch_size=batch,
        workers=workers,
        epoch_repeats=_EPOCH // folder.count,
        data_backend=backend,
    )
    size = {"input_size": (3, folder.loaded, folder.loaded)}
    config = {**size, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    return training_loader(open_dataset(data, "train", is_training=True), config, data, _RECIPE, Runtime(), device)


def _rates(batches: Iterable[object], plan: Plan, workers: int) -> list[float]:
    """Return the images per second of each window, after the batches that workers had prefetched."""
    iterator = iter(batches)
    for _ in islice(iterator, 3 * workers):
        pass
    rates = []
    for _ in range(plan.windows):
        start, images = time.perf_counter(), 0
        # Whole rounds of the workers, as the batches of a round arrive close together.
        while (seconds := time.perf_counter() - start) < plan.window_s or not images:
            images += plan.batch * sum(1 for _ in islice(iterator, workers))
        rates.append(images / seconds)
    return rates


def write_images(root: Path, folder: Folder) -> None:
    """Write a training split of ``count`` images, evenly spread over the classes."""
    for label in range(_CLASSES):
        (root / "train" / str(label)).mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(partial(_write_image, root, folder), range(folder.count)))


def _write_image(root: Path, folder: Folder, index: int) -> None:
    path = root / "train" / str(index % _CLASSES) / f"{index:05d}{folder.suffix}"
    Image.fromarray(_photograph(folder.width, folder.height, seed=index)).save(path, quality=90)


def _photograph(width: int, height: int, seed: int) -> np.ndarray:
    """Return an image of smooth random fields, coarse to fine, plus noise: uint8 (height, width, 3)."""
    generator = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128.0, dtype=np.float32)
    for cells, amplitude in _DETAIL:
        for channel in range(3):
            field = Image.fromarray(generator.standard_normal((cells, cells), dtype=np.float32))
            image[..., channel] += amplitude * np.asarray(field.resize((width, height), Image.Resampling.BICUBIC))
    image += _NOISE * generator.standard_normal(image.shape, dtype=np.float32)
    return image.clip(0, 255).astype(np.uint8)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark, write the result and print it."""
    args = arguments("loading", __doc__, argv, parts={"images": tuple(FOLDERS), "backends": _BACKENDS})
    plan = Plan(_WORKERS)
    plan = replace(plan, windows=2, window_s=1.0) if args.quick else plan
    device = resolve_device(None)
    settings = {
        "folders": {name: asdict(folder) for name, folder in FOLDERS.items()},
        "recipe": "--aa rand-m9-mstd0.5 --remode pixel --reprob 0.25",
        "batch": plan.batch,
        "device": device.type,
        "timing": f"median over {plan.windows} windows of {plan.window_s:g} s, after the first batches; min, max",
        "step": "KAT-Tiny with CUDA graphs, autocast to bf16, mean over half a second, before loading",
    }
    folders = {name: FOLDERS[name] for name in args.images}
    pieces = collect(plan, folders, args.backends, device, StepTimer())
    collect_in_pieces(args.output, "loading", settings, pieces, ("images", "backend"), lambda rows: [])


if __name__ == "__main__":
    main()
