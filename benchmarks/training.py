"""How long does a training step of a KAT take, and how much memory, next to timm's ViT of the same size?

A step is forward, cross-entropy, backward in the same thread, and fused AdamW: that of ``flashkat train`` without
mixing and averages. It runs in one process, on 224-pixel images that are on the device already.

  --cases       bf16 and fp16: under autocast, batches of 128, fp16 with a gradient scaler
                fp32: with TF32 products, batches of 128
                bf16-1024: batches of 1,024, size tiny only
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from .parts.common import Call, Measure, Row, StepTimer, arguments, target
from .parts.contenders import CONTENDERS, LEGEND, SIZES, TOY, USUAL, WAYS, Scale, check_device, compare, make_model
from .parts.pieces import collect_in_pieces

__all__ = ["CASES", "Case", "Plan", "collect", "make_step", "targets"]

# Targets of KAT over ViT: images per second by way and size, and peak memory for all.
_IMAGES_PER_S = {
    "compiled": {"tiny": 1.00, "small": 1.00, "base": 1.00},
    "eager": {"tiny": 0.90, "small": 0.95, "base": 0.98},
    "graphs": {"tiny": 1.00, "small": 1.00, "base": 1.00},
}
_MEMORY = 1.02

_CASE = ("case", "size", "way")


@dataclass(frozen=True)
class Case:
    """A batch size and a precision: "fp32" with TF32 products, or autocast's dtype ("fp16" with a gradient scaler)."""

    batch: int
    precision: str
    sizes: tuple[str, ...] = SIZES


CASES = {
    "bf16": Case(128, "bf16"),
    "bf16-1024": Case(1024, "bf16", ("tiny",)),
    "fp16": Case(128, "fp16"),
    "fp32": Case(128, "fp32"),
}
_TARGET = "bf16"


@dataclass(frozen=True)
class Plan:
    """The cases to run."""

    sizes: Sequence[str] = SIZES
    ways: Sequence[str] = tuple(WAYS)
    contenders: Sequence[str] = CONTENDERS
    cases: Sequence[str] = tuple(CASES)
    scale: Scale = USUAL
    rounds: int = 10


def collect(plan: Plan, device: str, measure: Measure) -> Iterator[list[Row]]:
    """Time every case of the plan, and yield lists of rows, one row per contender."""
    for name in plan.cases:
        case = CASES[name]
        batch = min(case.batch, plan.scale.most_images)
        for size in (size for size in plan.sizes if size in case.sizes):
            for way in plan.ways:
                print(name, size, way, file=sys.stderr, flush=True)
                makers = {
                    contender: partial(
                        make_step, contender, size, way, case.precision, batch, device, **plan.scale.model
                    )
                    for contender in plan.contenders
                }
                yield compare({"case": name, "size": size, "way": way}, batch, makers, measure, plan.rounds)


def make_step(contender: str, size: str, way: str, precision: str, batch: int, device: str, **model_args: Any) -> Call:
    """Make a model and its optimiser, and return a function that trains one step. ``model_args`` are timm's."""
    model = make_model(contender, size, device, **model_args).train()
    forward = WAYS[way](model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    generator = torch.Generator(device).manual_seed(0)
    side = model_args["img_size"]
    images = torch.randn(batch, 3, side, side, device=device, generator=generator)
    labels = torch.randint(1000, (batch,), device=device, generator=generator)

    def step() -> None:
        with _autocast(precision, device):
            loss = F.cross_entropy(forward(images), labels)
        with torch.autograd.set_multithreading_enabled(False):
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def _autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device, dtypes[precision]) if precision in dtypes else nullcontext()


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets: images per second and memory of a KAT over a ViT's, for every way and size."""
    ours = {(r["way"], r["size"]): r for r in rows if (r["case"], r["contender"]) == (_TARGET, "ours")}
    found: list[Row] = []
    for way, limits in _IMAGES_PER_S.items():
        for size, limit in limits.items():
            row, where = ours.get((way, size), {}), f"{size}, {way}"
            found.append(target(f"images/s over ViT's, {where}", row.get("over_vit"), limit, at_least=True))
            found.append(target(f"peak memory over ViT's, {where}", row.get("peak_over_vit"), _MEMORY))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark, write the result and print it."""
    parts = {"cases": tuple(CASES), "sizes": SIZES, "ways": tuple(WAYS), "contenders": CONTENDERS}
    args = arguments("training", f"{__doc__}{LEGEND}", argv, parts=parts)
    plan = Plan(**{name: getattr(args, name) for name in parts})
    if args.quick:
        plan = replace(plan, scale=TOY, rounds=2)
    check_device(plan.contenders, quick=args.quick)
    torch.set_float32_matmul_precision("high")  # TF32
    settings = {
        "cases": {name: asdict(case) for name, case in CASES.items()},
        "scale": asdict(plan.scale),
        "optimizer": "torch.optim.AdamW, fused",
        "timing": f"median over {plan.rounds} rounds of means over half a second, contenders in turn; min, max",
        "memory": "peak of tensors in the second step, GiB, less what other contenders hold",
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    collect_in_pieces(args.output, "training", settings, collect(plan, device, StepTimer()), _CASE, targets)


if __name__ == "__main__":
    main()
