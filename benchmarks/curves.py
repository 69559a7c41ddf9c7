"""Do a KAT's training losses agree, step by step: compiled with eager, our kernels with the plain formula?

Two processes, each with half a batch and its step in one CUDA graph, are compared with one process, too.

A KAT of size tiny with patches of 4 x 4 pixels learns CIFAR-10 once for each way to compute. Initial weights, batches
and their order are the same. Float32 products do not use TF32.

Training magnifies rounding errors, with the published initialisation (mimetic attention) sooner than with timm's. In
the end they move the losses as much as another order of batches might. To tell what rounding alone does, the benchmark
also trains from nudged weights, each moved by at most one rounding. The farthest of several nudged trainings sets the
limit for the differences between ways.

Pairs may run in parts, several at once, which add up to one result. Pairs of one initialisation and precision share
their eager training.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from flashkat.evaluation.metrics import Meters
from flashkat.ops.reference import rational_reference
from flashkat.system import distributed
from flashkat.system.device import resolve_device
from flashkat.training.step import TrainingStep

from .parts.common import Row, arguments, require_gpu, requirement, show, target
from .parts.contenders import swap_rationals
from .parts.pieces import collect_in_pieces
from .parts.processes import in_processes

__all__ = ["PAIRS", "Plan", "Run", "collect", "read_images", "targets"]

_LARGEST = 0.05
_APART = 1e-3
_MEAN_OVER = 25
_NUDGES = 4
_PROCESSES = 2
_WARMUP = 100
_LISTS = ("curves", "last_losses", "largest_differences_of_means")
_MODEL = {"img_size": 32, "patch_size": 4, "num_classes": 10}
_TOY = {**_MODEL, "depth": 2, "embed_dim": 16, "num_heads": 2}


@dataclass(frozen=True)
class Run:
    """A training of a model.

    Attributes:
        family: "kat" or "vit".
        start: initialisation, a key of ``_STARTS``.
        precision: "fp32", or "bf16" under autocast.
        how: "eager", "compiled", "formula" (the definition in PyTorch), "nudged" (eager, from nudged weights), or
            "processes" (two, each with half a batch, in the captured step of ``flashkat train``).
        nudge: seed of the nudge.
    """

    family: str
    start: str
    precision: str
    how: str = "eager"
    nudge: int = 0

    def __str__(self) -> str:
        return f"{_NAMES[self.family]}, {self.start} start, {self.how}, {self.precision}"


_NAMES = {"kat": "KAT", "vit": "ViT"}
_STARTS: dict[str, dict[str, str]] = {"timm": {"weight_init": ""}, "published": {}}


def _pairs() -> Iterator[tuple[str, tuple[Run, Run]]]:
    for start in _STARTS:
        for precision in ("fp32", "bf16"):
            eager = Run("kat", start, precision)
            ways: tuple[str, ...] = ("formula", "compiled", "nudged") if precision == "fp32" else ("compiled", "nudged")
            ways += ("processes",) if start == "timm" else ()
            for how in ways:
                yield f"{start}-{precision}-{how}", (replace(eager, how=how), eager)
    for precision in ("fp32", "bf16"):
        eager = Run("vit", "timm", precision)
        yield f"vit-{precision}-compiled", (replace(eager, how="compiled"), eager)


PAIRS = dict(_pairs())
"""The two trainings to compare, by name."""


@dataclass(frozen=True)
class Plan:
    """The settings of every training."""

    steps: int
    batch_size: int
    seed: int
    model: dict[str, int]
    lr: float = 1e-3
    weight_decay: float = 0.05
    clip_grad: float = 1.0


def read_images(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Read at most ``count`` training images in a fixed random order.

    Returns:
        Images (N, 3, H, W), uint8, and labels (N,).

    Raises:
        SystemExit: there is no training split, or an image has another size.
    """
    if not (folder / "train").is_dir():
        raise SystemExit(f"there is no folder {folder}/train: give the folder of CIFAR-10 as train/CLASS/*")
    dataset = create_dataset("", root=str(folder), split="train")
    side = _MODEL["img_size"]
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count].tolist()

    def read(index: int) -> tuple[Tensor, int]:
        image, label = dataset[index]
        if image.size != (side, side):
            wrong = " x ".join(map(str, image.size))
            raise SystemExit(f"an image of {folder}/train has {wrong} pixels: give images of {side} x {side}")
        return pil_to_tensor(image.convert("RGB")), label

    with ThreadPoolExecutor() as pool:
        images, labels = zip(*pool.map(read, order), strict=True)
    return torch.stack(images), torch.tensor(labels)


def collect(
    pairs: Iterable[str], plan: Plan, images: Tensor, labels: Tensor, device: torch.device
) -> Iterator[list[Row]]:
    """Train every pair, and yield a row for each: both curves, and the largest differences between them.

    The row of a nudged pair is that of the nudge whose means differ most. ``largest_differences_of_means`` lists all
    nudges.

    Args:
        pairs: keys of ``PAIRS``.
        plan: the settings.
        images: training images (N, 3, H, W), uint8.
        labels: their labels (N,).
        device: where to train.
    """
    curves: dict[Run, list[float]] = {}

    def curve(run: Run) -> list[float]:
        if run not in curves:
            print(run, file=sys.stderr, flush=True)
            curves[run] = _losses(run, plan, images, labels, device)
        return curves[run]

    for name in pairs:
        one, other = PAIRS[name]
        tried = [replace(one, nudge=number) for number in range(_NUDGES)] if one.how == "nudged" else [one]
        found = [_differences(curve(run), curve(other)) for run in tried]
        furthest = max(found, key=_distance)
        row = {"pair": name, "one": str(one), "other": str(other), **furthest}
        row["largest_differences_of_means"] = [each["largest_difference_of_means"] for each in found]
        show("curves", [{key: row[key] for key in row if key not in _LISTS}])
        yield [row]


def _distance(differences: Row) -> float:
    """Return the largest difference of means, infinite if it is not a number."""
    distance = differences["largest_difference_of_means"]
    return math.inf if math.isnan(distance) else distance


def _losses(run: Run, plan: Plan, images: Tensor, labels: Tensor, device: torch.device) -> list[float]:
    """Train, and return the loss of each step."""
    if run.how == "processes":
        return in_processes(_PROCESSES, _losses_of_share, run, plan, images, labels, device.type)
    torch.compiler.reset()
    model = _model(run, plan, device)
    if run.how == "formula":
        swap_rationals(model, rational_reference)
    if run.how == "nudged":
        _nudge(model, run.nudge)
    forward = torch.compile(model, dynamic=False) if run.how == "compiled" else model
    optimizer, warmup = _optimizer(model, plan)
    losses = []
    for batch, targets in islice(_batches(plan, images, labels, device), plan.steps):
        with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            loss = F.cross_entropy(forward(batch), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        warmup.step()
        losses.append(loss.detach())
    return torch.stack(losses).double().tolist()


def _losses_of_share(run: Run, plan: Plan, images: Tensor, labels: Tensor, kind: str) -> list[float]:
    """Train on this process's share of each batch, and return the losses of the whole batches."""
    rank, size = distributed.rank(), distributed.size()
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    model = _model(run, plan, device)
    if kind == "cuda":
        model.compile(dynamic=False)
    optimizer, warmup = _optimizer(model, plan, fused=kind == "cuda")
    meters = Meters()
    step = TrainingStep(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        torch.amp.GradScaler(kind, enabled=False),
        meters,
        precision=torch.autocast(kind, torch.bfloat16, enabled=run.precision == "bf16"),
        clip_grad=plan.clip_grad,
        capture=kind == "cuda",
        say=sys.exit,  # a step without a graph is not what is measured
    )
    sums = []
    for number, (batch, targets) in enumerate(islice(_batches(plan, images, labels, device), plan.steps), 1):
        step(batch[rank::size].contiguous(), targets[rank::size].contiguous(), update=number)
        warmup.step()
        sums.append(meters.sums()[0])
    step.close()
    totals = distributed.total(sums)
    return [(now - before) / plan.batch_size for now, before in zip(totals, [0.0, *totals], strict=False)]


def _model(run: Run, plan: Plan, device: torch.device) -> nn.Module:
    torch.manual_seed(plan.seed)
    settings: dict[str, Any] = {**plan.model, **_STARTS[run.start]}
    return timm.create_model(f"{run.family}_tiny_patch16_224", **settings).to(device).train()


def _optimizer(
    model: nn.Module, plan: Plan, *, fused: bool = False
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(model.parameters(), plan.lr, weight_decay=plan.weight_decay, fused=fused)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARMUP))


@torch.no_grad()
def _nudge(model: nn.Module, number: int) -> None:
    """Move each nonzero weight at random to one of its neighbouring numbers or to none. ``number`` is the seed."""
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        limit = torch.randint(-1, 2, parameter.shape, generator=generator).to(parameter) * math.inf
        moved = torch.nextafter(parameter, torch.where(limit.isnan(), parameter, limit))
        parameter.copy_(torch.where(parameter == 0, parameter, moved))


def _batches(plan: Plan, images: Tensor, labels: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield full batches without end, in a new order each epoch."""
    generator = torch.Generator().manual_seed(plan.seed)
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    images, labels = images.to(device), labels.to(device)
    while True:
        for chosen in torch.randperm(len(images), generator=generator).split(plan.batch_size):
            if len(chosen) == plan.batch_size:
                chosen = chosen.to(device)
                yield (images[chosen].float() / 255 - mean) / std, labels[chosen]


def _differences(one: list[float], other: list[float]) -> Row:
    curves = torch.tensor([one, other], dtype=torch.float64)
    means = curves.unfold(1, min(_MEAN_OVER, len(one)), 1).mean(dim=2)
    steps, smooth = (values[0].sub(values[1]).abs() for values in (curves, means))
    return {
        "steps": len(one),
        "first_loss": one[0],
        "last_losses": means[:, -1].tolist(),
        "apart_at_step": next((step for step, apart in enumerate(steps.tolist(), 1) if apart > _APART), None),
        "largest_difference": float(steps.max()),
        "at_step": int(steps.argmax()) + 1,
        "largest_difference_of_means": float(smooth.max()),
        "curves": [[float(f"{value:.6g}") for value in curve] for curve in (one, other)],
    }


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets: losses are finite and fell, and the curves of a KAT agree.

    Curves agree within a limit, or within twice the difference that nudges make. A pair that was not measured misses
    its target.
    """
    found: list[Row] = []
    apart = {row["pair"]: row["largest_difference_of_means"] for row in rows}
    for row in rows:
        start, precision, how = row["pair"].split("-")
        limit = round(max(_LARGEST, 2 * apart.get(f"{start}-{precision}-nudged", 0.0)), 4)
        if start != "vit" and how != "nudged":
            what = f"{row['one']}, against {row['other']}: largest difference of means of {_MEAN_OVER} steps"
            found.append(target(what, row["largest_difference_of_means"], limit))
        fell = all(math.isfinite(last) and last < row["first_loss"] for last in row["last_losses"])
        found.append(requirement(f"{row['one']}, and {row['other']}: losses fell", fell))
    found += [requirement(f"{one}, and {other}", None) for name, (one, other) in PAIRS.items() if name not in apart]
    return found


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DIR", help="CIFAR-10 as train/CLASS/*")
    parser.add_argument("--steps", type=int, default=500, metavar="N", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=42, metavar="S", help="default: %(default)s")
    parser.add_argument("--device", default="cuda", metavar="D", help="default: %(default)s")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, write the result and print it."""
    args = arguments("curves", f"{__doc__}", argv, _add_flags, parts={"pairs": tuple(PAIRS)})
    if args.device == "cuda":
        require_gpu()
        if torch.cuda.device_count() < _PROCESSES and any("processes" in pair for pair in args.pairs):
            raise SystemExit(f"the pairs of {_PROCESSES} processes need {_PROCESSES} GPUs: leave them out of --pairs")
    model: dict[str, Any] = _TOY if args.quick else _MODEL
    plan = Plan(min(args.steps, 30) if args.quick else args.steps, args.batch_size, args.seed, model)
    images, labels = read_images(args.data, plan.steps * plan.batch_size)
    if len(images) < plan.batch_size:
        raise SystemExit(f"{args.data}/train has {len(images)} images, fewer than a batch: give a smaller --batch-size")
    settings = {
        **asdict(plan),
        "warmup_steps": _WARMUP,
        "mean_over": _MEAN_OVER,
        "apart": _APART,
        "device": args.device,
    }
    rows = collect(args.pairs, plan, images, labels, resolve_device(args.device))
    collect_in_pieces(args.output, "curves", settings, rows, ("pair",), targets)


if __name__ == "__main__":
    main()
