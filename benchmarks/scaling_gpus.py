"""How many images/s does ``flashkat train`` reach on 1, 2, 4 and 8 GPUs, next to timm's ViT of the same size?

Each row is a training through the command line with fake data and the published recipe's flags. Each GPU has a process
and batches of 128 images. KAT and ViT train in turn.

  over_vit      images/s over the ViT's
  all_reduce_ms time that NCCL takes to sum the gradients while nothing else runs

  --ways        default: flashkat train without flags about compilation
                plain: compiled without CUDA graphs
                eager: --no-compile
                accumulated: four batches for each update
                fp16: with a gradient scaler
                fsdp: compiled, sharded
                bare: one GPU, the step alone in one CUDA graph

A result adds up from several calls, for example one for each size.
"""

import argparse
import functools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

import timm
import torch

import flashkat  # noqa: F401  registers the models

from .parts import trainings
from .parts.common import Row, arguments, require_gpu, target
from .parts.pieces import collect_in_pieces
from .parts.trainings import BATCHES, CONTENDERS, EPOCHS, RECIPE, SIZES, launch, medians, output_of

__all__ = ["WAYS", "collect", "efficiency", "targets"]

WAYS = {
    "default": (),
    "plain": ("--torchcompile", "inductor", "--torchcompile-mode", "default"),
    "eager": ("--no-compile",),
    "accumulated": ("--grad-accum-steps", "4"),
    "fp16": ("--amp-dtype", "float16"),
    "fsdp": ("--fsdp", "--torchcompile", "inductor"),
    "bare": (),
}

_ONE_OVER_BARE = {"tiny": 0.98, "small": 0.98, "base": 0.98}
_EFFICIENCY = {"tiny": 0.96, "small": 0.96, "base": 0.97}
_OVER_VIT = {"tiny": 0.99, "small": 1.03, "base": 1.03}
_ACCUMULATED = 0.97

# Entries that identify a piece of the result: the trainings that took turns.
_CASE = ("size", "way", "gpus")

Train = Callable[[str, Sequence[str], int, int], Row]
Bare = Callable[..., float]


def collect(
    sizes: Sequence[str],
    ways: Sequence[str],
    contenders: Sequence[str],
    gpus: Sequence[int],
    rounds: int,
    train: Train,
    bare: Bare,
) -> Iterator[list[Row]]:
    """Train the contenders in turn, and yield the rows of each size, way and number of GPUs.

    Args:
        sizes: sizes of the models.
        ways: keys of ``WAYS``.
        contenders: keys of ``CONTENDERS``.
        gpus: numbers of GPUs.
        rounds: trainings of each contender.
        train: trains a model, given its name, flags, number of GPUs and batches of an epoch. It returns
            ``images_per_second`` of all GPUs and ``peak_memory_gib``.
        bare: times a part of training, given the number of GPUs and the arguments of ``parts/bare.py``.
    """
    for size in sizes:
        for way in ways:
            if way == "bare":
                models = {name: CONTENDERS[name].format(size) for name in contenders}
                yield [
                    _row(size, way, 1, name, [bare(1, "step", model, BATCHES[size]) for _ in range(rounds)])
                    for name, model in models.items()
                ]
                continue
            for number in (each for each in gpus if each > 1 or way != "fsdp"):
                yield _piece(size, way, number, contenders, rounds, train, bare)


def _piece(
    size: str, way: str, gpus: int, contenders: Sequence[str], rounds: int, train: Train, bare: Bare
) -> list[Row]:
    found: dict[str, list[Row]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in contenders:
            print(size, way, f"{gpus} GPUs", name, file=sys.stderr, flush=True)
            found[name].append(train(CONTENDERS[name].format(size), WAYS[way], gpus, BATCHES[size]))
    rows = []
    for name, trained in found.items():
        row = _row(size, way, gpus, name, [each["images_per_second"] for each in trained])
        rows.append({**row, "peak_gib": max(each["peak_memory_gib"] for each in trained)})
    rates = {row["contender"]: row["images_per_s"] for row in rows}
    for row in rows:
        row["over_vit"] = round(row["images_per_s"] / rates["vit"], 4) if "vit" in rates else None
        if way == "default" and gpus > 1:
            row["all_reduce_ms"] = round(bare(gpus, "all_reduce", CONTENDERS[row["contender"]].format(size)), 3)
    return rows


def _row(size: str, way: str, gpus: int, contender: str, rates: list[float]) -> Row:
    return {
        **{"size": size, "way": way, "gpus": gpus, "contender": contender},
        **{"images_per_s": round(statistics.median(rates), 1), "min": round(min(rates), 1)},
        "max": round(max(rates), 1),
    }


def efficiency(rows: Sequence[Row], row: Row) -> float | None:
    """Return a row's images/s over those of one GPU times its number of GPUs, or None if one GPU was not measured."""
    rate = _rates(rows).get((row["size"], row["way"], 1, row["contender"]))
    return None if rate is None else row["images_per_s"] / (row["gpus"] * rate)


def _rates(rows: Sequence[Row]) -> dict[tuple[str, str, int, str], float]:
    return {(row["size"], row["way"], row["gpus"], row["contender"]): row["images_per_s"] for row in rows}


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets: one GPU over a bare step, two over one, a KAT over a ViT, and accumulated gradients."""
    rates, found = _rates(rows), []

    def over(size: str, way: str, gpus: int, contender: str, other: tuple[str, int, str]) -> float | None:
        rate, by = rates.get((size, way, gpus, contender)), rates.get((size, *other))
        return rate / by if rate and by else None

    for size in SIZES:
        doubled = over(size, "default", 2, "ours", ("default", 1, "ours"))
        values = {
            "one GPU over a bare captured step": (
                over(size, "default", 1, "ours", ("bare", 1, "ours")),
                _ONE_OVER_BARE[size],
            ),
            "two GPUs over twice one": (doubled and doubled / 2, _EFFICIENCY[size]),
            "images/s over ViT's, two GPUs": (over(size, "default", 2, "ours", ("default", 2, "vit")), _OVER_VIT[size]),
            "accumulated over not": (over(size, "accumulated", 1, "ours", ("default", 1, "ours")), _ACCUMULATED),
        }
        found += [target(f"{size}: {name}", value, limit, at_least=True) for name, (value, limit) in values.items()]
    return found


def _train(extra: Sequence[str], batch: int, model: str, flags: Sequence[str], gpus: int, batches: int) -> Row:
    """Train through the command line, and return medians over the epochs."""
    given = ["--fake-data", "--model", model, *RECIPE, *flags, *extra, "-b", f"{batch}"]
    given += ["--train-num-samples", f"{batch * batches}", "--val-num-samples", f"{batch}"]
    epochs, _ = trainings.train([*given, "--epochs", f"{EPOCHS}", "--val-interval", "1000"], launch(gpus))
    return medians(epochs, ("images_per_second", "peak_memory_gib"))


def _bare(side: int, batch: int, gpus: int, what: str, model: str, steps: int = 0) -> float:
    """Time a part of training in processes of its own: "step" gives images/s, "all_reduce" milliseconds."""
    if what == "step":
        given = [model, side, batch, steps]
    else:
        made = timm.create_model(model, weight_init="", img_size=side)
        given = [4 * sum(parameter.numel() for parameter in made.parameters())]
    return float(output_of([*launch(gpus), "benchmarks.parts.bare", what, *map(str, given)]).split()[-1])


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", nargs="+", type=int, metavar="N", help="default: 1, 2, 4, 8 up to the number of GPUs")
    parser.add_argument(
        "--rounds", type=int, default=2, metavar="N", help="trainings of each contender (default: %(default)s)"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train, write the result and print it."""
    parts = {"sizes": SIZES, "ways": tuple(WAYS), "contenders": tuple(CONTENDERS)}
    args = arguments("scaling_gpus", __doc__ or "", argv, _add_flags, parts)
    require_gpu()
    gpus = args.gpus or [number for number in (1, 2, 4, 8) if number <= torch.cuda.device_count()]
    batch, side, extra = (8, 32, ["--img-size", "32"]) if args.quick else (128, 224, [])
    settings = {
        "flags": " ".join((*RECIPE, *extra)),
        "ways": {name: " ".join(flags) for name, flags in WAYS.items()},
        "batch_per_gpu": batch,
        "timing": f"an epoch after the first, median of {args.rounds} trainings, contenders in turn; min, max",
    }

    def train(model: str, flags: Sequence[str], number: int, batches: int) -> Row:
        return _train(extra, batch, model, flags, number, 5 if args.quick else batches)

    pieces = collect(
        args.sizes, args.ways, args.contenders, gpus, args.rounds, train, functools.partial(_bare, side, batch)
    )
    collect_in_pieces(args.output, "scaling_gpus", settings, pieces, _CASE, targets)


if __name__ == "__main__":
    main()
