"""How long does a training step of a KAT take, and how much memory, next to timm's ViT of the same size?

One process, 224-pixel images that are on the device already: the model forward, cross-entropy, backward, fused AdamW,
as ``flashkat train`` does it, without mixing and averages. Contenders take turns. The command runs in pieces, since
compiling takes minutes: rows of another size, way or contender join those that the file has.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from .common import Call, Measure, Row, StepTimer, arguments, collect_in_pieces, require_gpu, target
from .contenders import CONTENDERS, SIZES, WAYS, compare, make_model, pairs

__all__ = ["CASES", "FULL", "Case", "Plan", "collect", "targets"]

# KAT over ViT, by way and size; and the same of peak memory, for every way.
_IMAGES_PER_S = {
    "compiled": {"tiny": 1.00, "small": 1.00, "base": 1.00},
    "eager": {"tiny": 0.90, "small": 0.95, "base": 0.98},
    "graphs": {"tiny": 1.00, "small": 1.00, "base": 1.00},
}
_MEMORY = 1.02

_CASE = ("case", "size", "way")


@dataclass(frozen=True)
class Case:
    """A batch and a precision: autocast's dtype, or float32 with TF32 products; fp16 with a gradient scaler."""

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
    """What to run, and how the models differ from their usual selves."""

    sizes: Sequence[str] = SIZES
    ways: Sequence[str] = tuple(WAYS)
    contenders: Sequence[str] = CONTENDERS
    cases: Sequence[str] = tuple(CASES)
    image_size: int = 224
    rounds: int = 5


FULL = Plan()


def collect(plan: Plan, device: str, measure: Measure) -> Iterator[list[Row]]:
    """Time every case of the plan: lists of rows, one row per contender."""
    for name in plan.cases:
        case = CASES[name]
        for size in (size for size in plan.sizes if size in case.sizes):
            for way in plan.ways:
                print(name, size, way, file=sys.stderr, flush=True)
                makers = {
                    contender: partial(_make_step, contender, size, way, case, plan.image_size, device)
                    for contender in plan.contenders
                }
                row = {"case": name, "size": size, "way": way}
                yield compare(row, case.batch, makers, measure, plan.rounds)


def _make_step(contender: str, size: str, way: str, case: Case, image_size: int, device: str) -> Call:
    model = make_model(contender, size, device, img_size=image_size).train()
    forward = WAYS[way](model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    scaler = torch.amp.GradScaler(device, enabled=case.precision == "fp16")
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(case.batch, 3, image_size, image_size, device=device, generator=generator)
    labels = torch.randint(1000, (case.batch,), device=device, generator=generator)

    def step() -> None:
        with _autocast(case.precision, device):
            loss = F.cross_entropy(forward(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def _autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device, dtypes[precision]) if precision in dtypes else nullcontext()


def targets(rows: list[Row]) -> list[Row]:
    """Images per second and memory of a KAT over a ViT that took turns with it."""
    found: list[Row] = []
    for ours, vit in pairs(rows, _CASE):
        if ours["case"] == _TARGET:
            where, limit = f"{ours['size']}, {ours['way']}", _IMAGES_PER_S[ours["way"]][ours["size"]]
            speed = ours["images_per_s"] / vit["images_per_s"]
            found.append(target(f"images/s over ViT's, {where}", speed, limit, at_least=True))
            if ours["peak_gib"] is not None:
                found.append(target(f"peak memory over ViT's, {where}", ours["peak_gib"] / vit["peak_gib"], _MEMORY))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run, write and print."""
    args = arguments(
        "training",
        "Training steps of KATs and ViTs.",
        argv,
        sizes=SIZES,
        ways=tuple(WAYS),
        contenders=CONTENDERS,
        cases=tuple(CASES),
    )
    require_gpu()
    torch.set_float32_matmul_precision("high")  # TF32
    plan = replace(FULL, **{name: getattr(args, name) for name in ("sizes", "ways", "contenders", "cases")})
    plan = replace(plan, rounds=2) if args.quick else plan
    settings = {
        "cases": {name: asdict(case) for name, case in CASES.items()},
        "image_size": plan.image_size,
        "optimizer": "torch.optim.AdamW, fused",
        "timing": f"median over {plan.rounds} rounds of means over a second of steps, contenders in turn; min, max",
        "memory": "peak of tensors from the second step on, GiB, less what other contenders hold",
    }
    collect_in_pieces(
        args.output, "training", settings, collect(plan, "cuda", StepTimer()), (*_CASE, "contender"), targets
    )


if __name__ == "__main__":
    main()
