"""How many images/s does ``flashkat train`` reach on 1, 2, 4 and 8 GPUs, next to timm's ViT of the same size?

Each row is a training through the command line with fake data and the published recipe's flags. Each GPU has a process
and batches of 128 images. KAT and ViT train in turn.

  efficiency    images/s over those of one GPU times the number of GPUs
  added_ms      time that several GPUs add to a step: communication that is not hidden, and waiting for each other
  all_reduce_ms time that NCCL takes to sum the gradients while nothing else runs

  --ways        default: flashkat train without flags about compilation
                plain: compiled without CUDA graphs
                eager: --no-compile
                accumulated: four batches for each update
                fp16: with a gradient scaler
                fsdp: compiled, sharded
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import timm
import torch

import flashkat  # noqa: F401  registers the models

from .parts.common import ROOT, Row, arguments, finish, require_gpu, save, show, target

__all__ = ["CONTENDERS", "WAYS", "collect", "targets"]

CONTENDERS = {"ours": "kat_{}_patch16_224", "vit": "vit_{}_patch16_224"}
SIZES = ("tiny", "small", "base")
WAYS = {
    "default": (),
    "plain": ("--torchcompile", "inductor", "--torchcompile-mode", "default"),
    "eager": ("--no-compile",),
    "accumulated": ("--grad-accum-steps", "4"),
    "fp16": ("--amp-dtype", "float16"),
    "fsdp": ("--fsdp", "--torchcompile", "inductor"),
}
_RECIPE = (
    *(
        "--amp",
        "--amp-dtype",
        "bfloat16",
        "--opt",
        "adamw",
        "--lr",
        "1e-3",
        "--weight-decay",
        "0.05",
        "--clip-grad",
        "1",
    ),
    *("--mixup", "0.8", "--cutmix", "1.0", "--smoothing", "0.1", "--drop-path", "0.1", "--sched", "cosine"),
    *("--model-ema", "--model-ema-decay", "0.9999", "--model-ema-warmup"),
)
_EPOCHS = 4  # the first compiles and the last evaluates, so these are not counted
_BATCHES = {"tiny": 200, "small": 120, "base": 60}

_ONE_OVER_BARE = {"tiny": 0.98, "small": 0.98, "base": 0.98}
_EFFICIENCY = {"tiny": 0.96, "small": 0.96, "base": 0.97}
_OVER_VIT = {"tiny": 0.99, "small": 1.03, "base": 1.03}
_ACCUMULATED = 0.97

Train = Callable[[str, Sequence[str], int, int], Row]


def collect(
    sizes: Sequence[str], ways: Sequence[str], contenders: Sequence[str], gpus: Sequence[int], rounds: int, train: Train
) -> Iterator[Row]:
    """Train all contenders in turn, and yield a row for each size, way, number of GPUs and contender.

    Args:
        sizes: sizes of the models.
        ways: keys of ``WAYS``.
        contenders: keys of ``CONTENDERS``.
        gpus: numbers of GPUs.
        rounds: trainings of each contender.
        train: trains a model, given its name, flags, number of GPUs and batches of an epoch. It returns
            ``images_per_second`` of all GPUs and ``peak_memory_gib``.
    """
    for size in sizes:
        for way in ways:
            for number in (each for each in gpus if each > 1 or way != "fsdp"):
                found: dict[str, list[Row]] = {name: [] for name in contenders}
                for _ in range(rounds):
                    for name in contenders:
                        print(size, way, f"{number} GPUs", name, file=sys.stderr, flush=True)
                        found[name].append(train(CONTENDERS[name].format(size), WAYS[way], number, _BATCHES[size]))
                for name, rows in found.items():
                    rates = [row["images_per_second"] for row in rows]
                    yield {
                        **{"size": size, "way": way, "gpus": number, "contender": name},
                        **{"images_per_s": statistics.median(rates), "min": min(rates), "max": max(rates)},
                        "peak_gib": max(row["peak_memory_gib"] for row in rows),
                    }


def compare(rows: list[Row], batch: int) -> list[Row]:
    """Add to rows in place: the ratios to one GPU and to a ViT, and the added milliseconds of a step."""
    rates = {(row["size"], row["way"], row["gpus"], row["contender"]): row["images_per_s"] for row in rows}
    for row in rows:
        size, way, gpus, rate = row["size"], row["way"], row["gpus"], row["images_per_s"]
        one, vit = rates.get((size, way, 1, row["contender"])), rates.get((size, way, gpus, "vit"))
        row["over_vit"] = None if vit is None else round(rate / vit, 4)
        row["efficiency"] = None if one is None else round(rate / (gpus * one), 4)
        row["added_ms"] = None if one is None else round(1e3 * batch * (gpus / rate - 1 / one), 3)
    return rows


def targets(rows: list[Row], bare: dict[str, float]) -> list[Row]:
    """Return the targets: one GPU over a bare step, two over one, a KAT over a ViT, and accumulated gradients."""
    ours = {(row["size"], row["way"], row["gpus"]): row for row in rows if row["contender"] == "ours"}
    found = []
    for size in SIZES:
        one, two = (ours.get((size, "default", gpus), {}) for gpus in (1, 2))
        rate, summed = one.get("images_per_s"), ours.get((size, "accumulated", 1), {}).get("images_per_s")
        over_bare = rate / bare[size] if rate and size in bare else None
        found += [
            target(f"{size}: one GPU over a bare captured step", over_bare, _ONE_OVER_BARE[size], at_least=True),
            target(f"{size}: two GPUs over twice one", two.get("efficiency"), _EFFICIENCY[size], at_least=True),
            target(f"{size}: images/s over ViT's, two GPUs", two.get("over_vit"), _OVER_VIT[size], at_least=True),
            target(
                f"{size}: accumulated over not", summed / rate if summed and rate else None, _ACCUMULATED, at_least=True
            ),
        ]
    return found


def _train(extra: Sequence[str], batch: int, model: str, flags: Sequence[str], gpus: int, batches: int) -> Row:
    """Train through the command line, and return medians over the epochs that neither compile nor evaluate."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*_launch(gpus), "-m", "flashkat", "train", "--fake-data", "--model", model, *_RECIPE, *flags, *extra]
        command += ["-b", f"{batch}", "--train-num-samples", f"{batch * batches}", "--val-num-samples", f"{batch}"]
        command += ["--epochs", f"{_EPOCHS}", "--val-interval", "1000", "--output", folder, "--experiment", "run"]
        _run(command)
        with (Path(folder) / "run" / "summary.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))[1:-1]
    return {
        name: statistics.median(float(row[name]) for row in rows) for name in ("images_per_second", "peak_memory_gib")
    }


def _bare(gpus: int, *what: object) -> float:
    return float(_run([*_launch(gpus), "-m", "benchmarks.parts.bare", *map(str, what)]).split()[-1])


def _launch(gpus: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", f"{gpus}"]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


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
        "flags": " ".join((*_RECIPE, *extra)),
        "ways": {name: " ".join(WAYS[name]) for name in args.ways},
        "batch_per_gpu": batch,
        "timing": f"median of {_EPOCHS - 2} epochs, then of {args.rounds} rounds, contenders in turn; min, max",
    }

    def train(model: str, flags: Sequence[str], number: int, batches: int) -> Row:
        return _train(extra, batch, model, flags, number, 5 if args.quick else batches)

    rows: list[Row] = []
    for row in collect(args.sizes, args.ways, args.contenders, gpus, args.rounds, train):
        rows.append(row)
        save(args.output, "scaling_gpus", settings, compare(rows, batch), [])
    bare = {size: _bare(1, "step", CONTENDERS["ours"].format(size), side, batch) for size in args.sizes}
    for size in args.sizes:
        model = timm.create_model(CONTENDERS["ours"].format(size), weight_init="", img_size=side)
        gradients = 4 * sum(parameter.numel() for parameter in model.parameters())
        for number in (number for number in gpus if number > 1):
            milliseconds = _bare(number, "all_reduce", gradients)
            for row in rows:
                if (row["size"], row["gpus"]) == (size, number):
                    row["all_reduce_ms"] = round(milliseconds, 3)
    settings["bare_images_per_s"] = {size: round(rate, 1) for size, rate in bare.items()}
    show("scaling_gpus", rows)
    finish(args.output, "scaling_gpus", settings, rows, targets(rows, bare))


if __name__ == "__main__":
    main()
