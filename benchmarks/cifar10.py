"""Does a KAT learn CIFAR-10 as well as the ViT of its size under nearly the published recipe, and what does it cost?

Contenders train through ``flashkat train`` with the same flags and seeds. They train at once, spread over the GPUs.
A call stops after ``--minutes``, and the next one resumes. Accuracies are compared by their means over the seeds.

Speeds are compared alone. After training, each contender in turn trains a few more epochs by itself. It does so on the
images, and on one batch held on the device. ``--rounds 0`` leaves this out.
"""

import argparse
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flashkat import checkpoints

from .parts.common import ROOT, Row, arguments, finish, require_gpu, requirement, show, target
from .parts.trainings import read_summary

__all__ = ["CONTENDERS", "RECIPE", "Run", "collect", "plan", "targets", "train"]

_SIZE = ("--img-size", "32", "--model-kwargs", "patch_size=4")
_PUBLISHED_KAT = ("--model", "kat_tiny_patch16_224", *_SIZE)
_PUBLISHED_DEGREES = (*_PUBLISHED_KAT, "weight_init=")
_KAT = (*_PUBLISHED_DEGREES, "m=4", "n=2")
CONTENDERS = {
    "KAT": _KAT,
    "ViT": ("--model", "vit_tiny_patch16_224", *_SIZE),
    "KAT-published-degrees": _PUBLISHED_DEGREES,
    "KAT-published-start": _PUBLISHED_KAT,
    "KAT-no-decay": (*_KAT, "--rational-weight-decay", "0"),
    "KAT-slow": (*_KAT, "--rational-lr-scale", "0.1"),
    "KAT-timm-loader": (*_KAT, "--data-backend", "timm"),
}
"""The contenders' flags, by name.

KAT is initialised as timm's ViT, and has rationals of degrees 3 and 2. KAT-published-degrees has degrees 5 and 4.
KAT-published-start has the published initialisation of attention too. KAT-no-decay and KAT-slow train the coefficients
of KAT with other settings. KAT-timm-loader has images that are augmented on the CPU.
"""

RECIPE = (
    *("--opt", "adamw", "--lr", "1e-3", "--weight-decay", "0.05", "--sched", "cosine", "--warmup-epochs", "10"),
    *("--mixup", "0.8", "--cutmix", "1.0", "--smoothing", "0.1", "--drop-path", "0.1", "--clip-grad", "1"),
    *("--aa", "rand-m9-mstd0.5", "--remode", "pixel", "--reprob", "0.25"),
    *("--scale", "0.2", "1", "--crop-pct", "1"),
    *("--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"),
    *("--model-ema", "--model-ema-decay", "0.9999", "--model-ema-warmup"),
)
"""The recipe of the published models on ImageNet, for one process, with three changes for small images.

- A crop has at least a fifth of the area. timm's smallest crops would have a side of 9 pixels.
- Evaluation does not crop.
- Warm-up is longer, as in Compact Transformers (Hassani et al., 2021).
"""

# Training compiles with CUDA graphs by default. The loader persists, as epochs take only seconds.
_MACHINE = ("--amp", "--use-multi-epochs-loader")
_CLASSES = 10
_TORCHVISIONS = "cifar-10-batches-py"
_FAKE = ("--fake-data", "--num-classes", f"{_CLASSES}", "--train-num-samples", "50000", "--val-num-samples", "1000")
_TIMED_EPOCHS = 4  # the first one compiles and is not counted
_TOP1 = 88.0
_MOST_UNLIKE = 0.01
_LOADERS_APART = 0.3
_SECONDS_TO_STOP = 60.0


@dataclass(frozen=True)
class Run:
    """A call of ``flashkat train``.

    Attributes:
        contender: name of the contender.
        seed: random seed.
        flags: flags of ``flashkat train``.
        epochs: epochs to train.
        kind: "images" or "model" for a run that is timed alone; such a run is not resumed.
        number: the round of a timed run.
    """

    contender: str
    seed: int
    flags: tuple[str, ...]
    epochs: int
    kind: str = ""
    number: int = 0

    @property
    def resumes(self) -> bool:
        """Whether a stopped run is resumed."""
        return not self.kind

    @property
    def name(self) -> str:
        """The run's folder, relative to the common one."""
        timed = f"-{self.kind}-{self.number}" if self.kind else ""
        return f"{'alone/' if self.kind else ''}{self.contender}-{self.seed}{timed}"

    def rows(self, work: Path) -> list[dict[str, float]]:
        """Return the rows of the run's summary so far."""
        return read_summary(work / self.name)

    def is_done(self, work: Path) -> bool:
        return len(self.rows(work)) >= self.epochs

    def command(self, data: Path, work: Path, workers: int) -> list[str]:
        """Return the command that starts or resumes the run. A folder that cannot be resumed is removed."""
        command = [sys.executable, "-m", "flashkat", "train", str(data), *self.flags, "--epochs", str(self.epochs)]
        if (data / _TORCHVISIONS).is_dir():
            command += ["--dataset", "torch/cifar10"]
        command += ["--workers", str(workers), "--checkpoint-hist", "1"]
        folder = work / self.name
        command += ["--output", str(folder.parent), "--experiment", folder.name]
        if self.resumes and any(folder.glob("*.pth.tar")):
            # Also completes the files of a run that was killed after its last checkpoint.
            return [*command, "--resume", "auto"]
        shutil.rmtree(folder, ignore_errors=True)
        return command


def plan(args: argparse.Namespace) -> list[list[Run]]:
    """Return the runs as lists: those of a list run at once, one list after the other.

    Training comes first, all runs at once or in turn. Runs that measure speed follow.
    """
    common = ("--batch-size", str(args.batch_size), *RECIPE, *_MACHINE)
    whole = ("--val-interval", str(args.val_interval), "--mixup-off-epoch", str(args.mixed_epochs or 0))

    def flags(name: str, seed: int, *more: str) -> tuple[str, ...]:
        return (*CONTENDERS[name], *common, "--seed", str(seed), *more)

    training = [
        Run(name, seed, flags(name, seed, *whole), args.epochs) for seed in args.seeds for name in args.contenders
    ]
    together = [[run] for run in training] if args.in_turn else [training]
    alone = [
        [Run(name, args.seeds[0], flags(name, args.seeds[0], *more), _TIMED_EPOCHS, kind, number)]
        for number in range(args.rounds)
        for kind, more in (("images", ()), ("model", _FAKE))
        for name in args.contenders
    ]
    return [*together, *alone]


def train(
    runs: Iterable[Run], data: Path, work: Path, deadline: float, at_once: int | None = None
) -> Iterator[tuple[Run, str]]:
    """Train runs until they are done, or until a deadline. A run begins as soon as one before it has ended.

    Args:
        runs: the runs; finished ones are skipped.
        data: folder of the data set.
        work: folder of the runs. Output is appended to ``NAME.log`` in it.
        deadline: time to stop, as of ``time.monotonic``.
        at_once: how many train at the same time; None trains all.

    Yields:
        Each run that has ended, and the last line of its output if it failed, else "".
    """
    waiting = [run for run in runs if not run.is_done(work)]
    at_once = min(at_once or len(waiting), len(waiting))
    gpus = _visible_gpus()
    running: dict[Run, tuple[subprocess.Popen, str]] = {}
    try:
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < at_once:
                run, used = waiting.pop(0), [gpu for _, gpu in running.values()]
                gpu = min(gpus, key=used.count)
                # One core for the main process of each run. The others load images.
                workers = max(1, len(os.sched_getaffinity(0)) // at_once - 1)
                running[run] = _start(run, run.command(data, work, workers), work, gpu), gpu
            ended = [run for run, (process, _) in running.items() if process.poll() is not None]
            for run in ended:
                process, _ = running.pop(run)
                yield run, _last_line(_log(run, work)) if process.returncode else ""
            if not ended:
                time.sleep(0.2)
    finally:
        _stop([process for process, _ in running.values()])


def _start(run: Run, command: list[str], work: Path, gpu: str) -> subprocess.Popen:
    log = _log(run, work)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def _log(run: Run, work: Path) -> Path:
    return work / f"{run.name}.log"


def _visible_gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(max(1, torch.cuda.device_count()))]


def _stop(processes: Iterable[subprocess.Popen]) -> None:
    """Interrupt running processes, so that they keep their checkpoints, and kill those that do not stop."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        try:
            process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    return next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "")


def collect(runs: Iterable[Run], work: Path, errors: dict[str, str]) -> list[Row]:
    """Return a row per contender and seed: accuracy, speed, memory and curves, from the runs' summaries."""
    runs = list(runs)
    rows = []
    for run in runs:
        epochs = run.rows(work)
        evaluated = [row for row in epochs if "eval_top1" in row]
        if not run.resumes or not evaluated:
            continue
        measured = {
            kind: [row for other in runs if (other.contender, other.seed, other.kind) == (run.contender, run.seed, kind)
                   for row in other.rows(work)[1:]]
            for kind in ("images", "model")
        }  # fmt: skip
        together = epochs[1:]
        weights = checkpoints.read(work / run.name / "last.pth.tar")["state_dict"]
        losses = [value for row in epochs for name, value in row.items() if name.endswith("_loss")]
        memory = [row["peak_memory_gib"] for row in epochs if "peak_memory_gib" in row]
        rows.append(
            {
                "contender": run.contender,
                "seed": run.seed,
                "parameters": sum(tensor.numel() for tensor in weights.values()),
                "epochs": len(epochs),
                "top1": evaluated[-1]["eval_top1"],
                "ema_top1": evaluated[-1]["eval_ema_top1"],
                "finite": all(map(math.isfinite, losses)) and run.name not in errors,
                "images_per_second": _spread(row["images_per_second"] for row in measured["model"]),
                "images_per_second_with_loading": _spread(row["images_per_second"] for row in measured["images"]),
                "seconds_per_epoch": _spread(row["seconds"] for row in measured["images"]),
                "data_wait": _spread(row["data_wait"] for row in measured["images"]),
                "seconds_per_epoch_together": _spread(row["seconds"] for row in together),
                "images_per_second_together": _spread(row["images_per_second"] for row in together),
                "data_wait_together": _spread(row["data_wait"] for row in together),
                "peak_memory_gib": max(memory, default=None),
                "train_losses": [row["train_loss"] for row in epochs],
                "curve": {
                    "epoch": [int(row["epoch"]) + 1 for row in evaluated],
                    **{
                        name: [row[name] for row in evaluated]
                        for name in ("eval_loss", "eval_ema_loss", "eval_top1", "eval_ema_top1")
                    },
                },
            }
        )
    return rows


def _spread(values: Iterable[float]) -> Row | None:
    values = list(values)
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def targets(rows: list[Row], epochs: int) -> list[Row]:
    """Return the targets: KAT's mean accuracy is at least a ViT's of equal size and a limit, and losses are finite.

    KATs with images from different loaders are as accurate.
    """
    named = [(f"{row['contender']}, seed {row['seed']},", row) for row in rows]
    checks = [requirement(f"{name} has trained {epochs} epochs", row["epochs"] >= epochs) for name, row in named]
    checks += [requirement(f"{name} has finite losses", row["finite"]) for name, row in named]
    names = ("KAT", "ViT", "KAT-timm-loader")
    kats, vits, others = ([row for row in rows if row["contender"] == name] for name in names)
    if kats and others:
        loaded = [statistics.mean(row["top1"] for row in found) for found in (kats, others)]
        checks.append(
            target("KAT's top-1, apart from that with timm's loader", abs(loaded[0] - loaded[1]), _LOADERS_APART)
        )
    if not kats or not vits:
        return checks
    for weights, name in (("trained", "top1"), ("averaged", "ema_top1")):
        what = f"KAT's top-1 of the {weights} weights"
        kat, vit = (statistics.mean(row[name] for row in found) for found in (kats, vits))
        checks.append(target(f"{what}, against ViT's", kat, vit, at_least=True))
        checks.append(target(what, kat, _TOP1, at_least=True))
    checks.append(target("parameters apart", abs(kats[0]["parameters"] / vits[0]["parameters"] - 1), _MOST_UNLIKE))
    return checks


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        type=Path,
        metavar="DIR",
        help=f"CIFAR-10: train/CLASS/* and val/CLASS/*, or torchvision's {_TORCHVISIONS}",
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder of runs and logs (default: output/cifar10)")
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=["KAT", "ViT"], help="who trains (default: KAT ViT)"
    )
    parser.add_argument("--epochs", type=int, default=300, metavar="N", help="default: %(default)s")
    parser.add_argument("--mixed-epochs", type=int, metavar="N", help="mix images in the first N (default: all)")
    parser.add_argument(
        "--val-interval", type=int, default=20, metavar="N", help="evaluate after each N epochs (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[42], metavar="S", help="each trains once with each (default: 42)"
    )
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="rounds of timing (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="F", help="stop after F, to be called again")
    parser.add_argument("--in-turn", action="store_true", help="train one after the other, not at once")


def main(argv: Sequence[str] | None = None) -> None:
    """Train until the time is up, write the result and print it."""
    args = arguments("cifar10", "A KAT and a ViT on CIFAR-10.", argv, _add_flags)
    deadline = time.monotonic() + 60 * args.minutes
    require_gpu()
    if args.quick:
        args.epochs, args.rounds = min(args.epochs, 2), 1
    work = args.work or ROOT / "output" / ("cifar10-quick" if args.quick else "cifar10")
    # A shell starts background commands with interrupts ignored, and child processes would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stages = plan(args)
    errors: dict[str, str] = {}
    for runs in stages:
        if not all(run.is_done(work) for run in runs):
            print(f"{', '.join(run.name for run in runs)}: see {work}/NAME.log", file=sys.stderr, flush=True)
        errors |= {run.name: line for run, line in train(runs, args.data, work, deadline) if line}
    for name, line in errors.items():
        print(f"{name} failed: {line}", file=sys.stderr)
    runs = [run for runs in stages for run in runs]
    left = [run.name for run in runs if not run.is_done(work)]
    rows = collect(runs, work, errors)
    if not rows:
        raise SystemExit("no epoch is finished: see above, or give more --minutes")
    settings = {
        "flags": " ".join((*RECIPE, *_MACHINE)),
        "contenders": {name: " ".join(CONTENDERS[name]) for name in args.contenders},
        **{name: getattr(args, name) for name in ("epochs", "batch_size", "seeds", "val_interval", "in_turn")},
        "mixed_epochs": args.mixed_epochs or args.epochs,
        "top1": "of the last epoch, on the 10,000 test images; ema_top1 of the averaged weights",
        "speed": f"of the first seed, each alone on the machine, in turn, {args.rounds} rounds of {_TIMED_EPOCHS} "
        "epochs, without the first; images_per_second on one batch on the device, seconds_per_epoch with loading and "
        "two evaluations; together: of all trainings at once, of their epochs without the first, few of which evaluate",
        "gpus": len(_visible_gpus()),
        "unfinished": left,
    }
    show(
        "cifar10",
        [{key: _median(value) for key, value in row.items() if key not in ("train_losses", "curve")} for row in rows],
    )
    finish(args.output, "cifar10", settings, rows, targets(rows, args.epochs))
    if left:
        print(f"not done: {', '.join(left)}. Call again to go on")
    if errors:
        raise SystemExit(1)


def _median(value: object) -> object:
    return value["median"] if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
