"""How much of its speed does a training keep that reads its images from files?

Each row is a training through ``flashkat train`` with the published recipe's flags, RandAugment and erasing. Trainings
on fake data, which need no loader, take turns with those on files. The benchmark makes the files and removes them
afterwards. They are in the operating system's cache.

  --images    photographs: JPEGs of 500 x 400 pixels for models of 224 pixels
              CIFAR-10-like: PNGs of 32 pixels, size tiny alone
  --backends  those of --data-backend: dali and dali-cpu for photographs, memory for small images, timm for both
  over_fake   images/s over those on fake data
  loader_gib  memory of the fullest GPU over that on fake data

A result adds up from several calls, for example one for each size.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flashkat.errors import is_installed

from ..loading import FOLDERS, write_images
from ..parts.common import Row, arguments, require_gpu, target
from ..parts.pieces import collect_in_pieces
from ..parts.trainings import BATCHES, CONTENDERS, EPOCHS, RECIPE, SIZES, launch, medians, train

__all__ = ["FAKE", "KINDS", "Case", "collect", "targets"]

FAKE = "fake"
KINDS = {"photographs": ("dali", "dali-cpu", "timm"), "CIFAR-10-like": ("memory", "timm")}
"""The kinds of images, and the backends that can load them."""

_AUGMENTATION = ("--aa", "rand-m9-mstd0.5-inc1", "--remode", "pixel", "--reprob", "0.25")
_SMALL_MODEL = ("--img-size", "32", "--model-kwargs", "patch_size=4")
_BATCH = 128
_SHARE_OF_CORES = 0.75  # for loader processes: the training process and the decoder's threads need the rest
_SAMPLE_S = 2.0

_ALL_CORES = {"tiny": 0.85, "small": 0.95, "base": 0.98}
_EIGHT_CORES = {"small": 0.90, "base": 0.97}
_SMALL_IMAGES = 0.9
_LOADER_GIB = 4.0

# Entries that identify a piece of the result: the trainings that took turns.
_CASE = ("images", "size", "gpus", "cores", "contender")

Train = Callable[[Sequence[str], int], Row]


@dataclass(frozen=True)
class Case:
    """Trainings that take turns.

    Attributes:
        images: a key of ``KINDS``.
        size: size of the model.
        gpus: number of GPUs.
        cores: cores for each GPU.
        contender: "ours" or "vit".
    """

    images: str
    size: str
    gpus: int
    cores: int
    contender: str

    def flags(self, backend: str, folder: Path, batches: int, images: int) -> list[str]:
        """Return the flags of ``flashkat train``.

        Args:
            backend: a data backend, or ``FAKE``.
            folder: of the images.
            batches: batches of an epoch on each GPU.
            images: number of images in the folder.
        """
        small = _SMALL_MODEL if self.images == "CIFAR-10-like" else ()
        model = CONTENDERS[self.contender].format(self.size)
        flags = ["--model", model, *small, *RECIPE, *_AUGMENTATION, "-b", f"{_BATCH}", "--epochs", f"{EPOCHS}"]
        if backend == FAKE:
            count = ("--train-num-samples", f"{_BATCH * batches * self.gpus}", "--val-num-samples", f"{_BATCH}")
            return [*flags, "--fake-data", *count, "--val-interval", "1000"]
        workers = max(1, round(_SHARE_OF_CORES * self.cores))
        repeats = _BATCH * batches * self.gpus / images
        flags += ["--data-backend", backend, "--workers", f"{workers}", "--epoch-repeats", f"{repeats:g}"]
        return [f"{folder}", *flags, "--val-split", ""]


def collect(
    cases: Sequence[Case], backends: Sequence[str], rounds: int, batches: int | None, train: Train
) -> Iterator[list[Row]]:
    """Train on fake data and on files in turn, and yield the rows of each case.

    Args:
        cases: the cases.
        backends: data backends. Those that cannot load a case's images are left out there.
        rounds: trainings of each backend.
        batches: batches of an epoch; None takes a number by the model's size.
        train: trains, given the flags and the number of GPUs. It returns ``images_per_second``, ``data_wait`` and
            ``gpu_gib``.
    """
    for images in dict.fromkeys(case.images for case in cases):
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), FOLDERS[images])
            for case in (each for each in cases if each.images == images):
                yield _piece(case, backends, Path(folder), rounds, batches or BATCHES[case.size], train)


def _piece(case: Case, backends: Sequence[str], folder: Path, rounds: int, batches: int, train: Train) -> list[Row]:
    found: dict[str, list[Row]] = {
        name: [] for name in (FAKE, *(each for each in KINDS[case.images] if each in backends))
    }
    with _cores(case.cores * case.gpus):
        for _ in range(rounds):
            for backend, trained in found.items():
                print(*(vars(case).values()), backend, file=sys.stderr, flush=True)
                flags = case.flags(backend, folder, batches, FOLDERS[case.images].count)
                trained.append(train(flags, case.gpus))
    fake = _row(case, FAKE, found.pop(FAKE))
    rows = [fake]
    for backend, trained in found.items():
        row = _row(case, backend, trained)
        row["over_fake"] = round(row["images_per_s"] / fake["images_per_s"], 4)
        if row["gpu_gib"] is not None:
            row["loader_gib"] = round(row["gpu_gib"] - fake["gpu_gib"], 3)
        rows.append(row)
    return rows


def _row(case: Case, backend: str, trained: Sequence[Row]) -> Row:
    rates = [each["images_per_second"] for each in trained]
    memory = [each["gpu_gib"] for each in trained if each["gpu_gib"] is not None]
    return {
        **vars(case),
        "backend": backend,
        "images_per_s": round(statistics.median(rates), 1),
        "min": round(min(rates), 1),
        "max": round(max(rates), 1),
        "data_wait": round(statistics.median(each["data_wait"] for each in trained), 4),
        "gpu_gib": round(max(memory), 3) if memory else None,
        "over_fake": None,
        "loader_gib": None,
    }


@contextlib.contextmanager
def _cores(count: int) -> Iterator[None]:
    """Let the processes that start here use so many cores."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets of one GPU: images/s over those on fake data, and the loader's memory.

    They are for the faster of DALI's two ways to decode.
    """
    ours: dict[tuple[str, str, int], Row] = {}
    for row in rows:
        key = row["images"], row["size"], min(row["cores"], 16)
        is_ours = row["contender"] == "ours" and row["gpus"] == 1 and row["backend"] not in (FAKE, "timm")
        if is_ours and row["over_fake"] > ours.get(key, {"over_fake": 0.0})["over_fake"]:
            ours[key] = row
    limits = [(("photographs", size, 16), limit) for size, limit in _ALL_CORES.items()]
    limits += [(("photographs", size, 8), limit) for size, limit in _EIGHT_CORES.items()]
    limits += [(("CIFAR-10-like", "tiny", 16), _SMALL_IMAGES)]
    found = []
    for (images, size, cores), limit in limits:
        share = ours.get((images, size, cores), {}).get("over_fake")
        name = f"{images}, {size}, {cores} cores: images/s over fake data's"
        found.append(target(name, share, limit, at_least=True))
    memory = [row["loader_gib"] for row in ours.values() if row["loader_gib"] is not None]
    return [*found, target("GPU memory of the loader, GiB", max(memory, default=None), _LOADER_GIB)]


def _train(flags: Sequence[str], gpus: int) -> Row:
    epochs, samples = train(flags, launch(gpus), _SAMPLE_S)
    memory = [sample.gpu_mib for sample in samples if sample.gpu_mib is not None]
    found = medians(epochs, ("images_per_second", "data_wait"))
    return {**found, "gpu_gib": max(memory) / 1024 if memory else None}


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", nargs="+", type=int, default=[1], metavar="N", help="numbers of GPUs (default: 1)")
    parser.add_argument(
        "--cores", nargs="+", type=int, metavar="N", help="cores for each GPU (default: its share of the machine's)"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, metavar="N", help="trainings of each backend (default: %(default)s)"
    )
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=["ours"], help="who trains (default: ours)"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train, write the result and print it."""
    backends = tuple(dict.fromkeys(backend for each in KINDS.values() for backend in each))
    parts = {"images": tuple(KINDS), "sizes": SIZES, "backends": backends}
    args = arguments("backends.feeding", __doc__ or "", argv, _add_flags, parts)
    require_gpu()
    if not is_installed("nvidia.dali"):
        print("NVIDIA DALI is not installed: its rows are left out", file=sys.stderr)
        args.backends = [backend for backend in args.backends if not backend.startswith("dali")]
    shared = len(os.sched_getaffinity(0)) // torch.cuda.device_count()
    cases = [
        Case(images, size, gpus, cores, contender)
        for images in args.images
        for size in (args.sizes if images == "photographs" else ["tiny"])
        for gpus in args.gpus
        for cores in args.cores or [shared]
        for contender in args.contenders
    ]
    settings = {
        "flags": " ".join((*RECIPE, *_AUGMENTATION)),
        "batch_per_gpu": _BATCH,
        "workers": f"{_SHARE_OF_CORES:.0%} of the cores for each GPU",
        "timing": f"an epoch after the first, median of {args.rounds} trainings, backends in turn; min, max",
        "memory": "largest memory in use on a GPU, less that on fake data",
    }
    pieces = collect(cases, args.backends, args.rounds, 5 if args.quick else None, _train)
    collect_in_pieces(args.output, "feeding", settings, pieces, _CASE, targets)


if __name__ == "__main__":
    main()
