"""How many images a second does a KAT classify, next to timm's ViT of the same size?

Weights and images are in bfloat16. Images of 224 pixels are on the device already, in batches of 256 and one by one.

"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from .parts.common import Call, Measure, Row, StepTimer, arguments, target
from .parts.contenders import CONTENDERS, LEGEND, SIZES, TOY, USUAL, WAYS, Scale, check_device, compare, make_model
from .parts.pieces import collect_in_pieces

__all__ = ["BATCHES", "Plan", "collect", "targets"]

BATCHES = (256, 1)
_DTYPE = torch.bfloat16
_TARGET, _IMAGES_PER_S = "compiled", 0.98
_CASE = ("batch", "size", "way")


@dataclass(frozen=True)
class Plan:
    """The cases to run."""

    sizes: Sequence[str] = SIZES
    ways: Sequence[str] = tuple(WAYS)
    contenders: Sequence[str] = CONTENDERS
    scale: Scale = USUAL
    rounds: int = 10


def collect(plan: Plan, device: str, measure: Measure) -> Iterator[list[Row]]:
    """Time every batch, size and way of the plan, and yield lists of rows, one row per contender."""
    for size in plan.sizes:
        for way in plan.ways:
            for batch in (min(batch, plan.scale.most_images) for batch in BATCHES):
                print(size, way, batch, file=sys.stderr, flush=True)
                makers = {
                    contender: partial(_make_step, contender, size, way, batch, device, plan.scale.model)
                    for contender in plan.contenders
                }
                yield compare({"size": size, "way": way}, batch, makers, measure, plan.rounds)


def _make_step(contender: str, size: str, way: str, batch: int, device: str, model_args: Mapping[str, Any]) -> Call:
    forward = WAYS[way](make_model(contender, size, device, **model_args).eval().to(_DTYPE))
    generator = torch.Generator(device).manual_seed(0)
    side = model_args["img_size"]
    images = torch.randn(batch, 3, side, side, device=device, generator=generator).to(_DTYPE)

    @torch.inference_mode()
    def step() -> None:
        forward(images)

    return step


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets: a compiled KAT's images per second over a compiled ViT's, for every batch and size."""
    found = {(r["batch"], r["size"]): r["over_vit"] for r in rows if (r["contender"], r["way"]) == ("ours", _TARGET)}
    return [
        target(f"images/s over ViT's, {size}, batch {batch}", found.get((batch, size)), _IMAGES_PER_S, at_least=True)
        for size in SIZES
        for batch in BATCHES
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark, write the result and print it."""
    parts = {"sizes": SIZES, "ways": tuple(WAYS), "contenders": CONTENDERS}
    args = arguments("inference", f"{__doc__}{LEGEND}", argv, parts=parts)
    plan = Plan(**{name: getattr(args, name) for name in parts})
    if args.quick:
        plan = replace(plan, scale=TOY, rounds=2)
    check_device(plan.contenders, quick=args.quick)
    settings = {
        "batches": BATCHES,
        "scale": asdict(plan.scale),
        "dtype": "bf16 weights and images",
        "timing": f"median over {plan.rounds} rounds of means over half a second, contenders in turn; min, max",
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    collect_in_pieces(args.output, "inference", settings, collect(plan, device, StepTimer()), _CASE, targets)


if __name__ == "__main__":
    main()
