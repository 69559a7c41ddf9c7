"""How many images a second does a KAT classify, next to timm's ViT of the same size?

Weights and images in bfloat16, as when a model is put to use, images on the device already, in large batches and one
by one. Contenders take turns. The command runs in pieces, as that of ``training.py``.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from .common import Call, Measure, Row, StepTimer, arguments, collect_in_pieces, require_gpu, target
from .contenders import CONTENDERS, SIZES, WAYS, compare, make_model, pairs

__all__ = ["BATCHES", "FULL", "Plan", "collect", "targets"]

BATCHES = (256, 1)
_DTYPE = torch.bfloat16
_TARGET, _IMAGES_PER_S = "compiled", 0.98
_CASE = ("batch", "size", "way")


@dataclass(frozen=True)
class Plan:
    """What to run."""

    sizes: Sequence[str] = SIZES
    ways: Sequence[str] = tuple(WAYS)
    contenders: Sequence[str] = CONTENDERS
    batches: Sequence[int] = BATCHES
    image_size: int = 224
    rounds: int = 5


FULL = Plan()


def collect(plan: Plan, device: str, measure: Measure) -> Iterator[list[Row]]:
    """Time every batch, size and way of the plan: lists of rows, one row per contender."""
    for size in plan.sizes:
        for way in plan.ways:
            for batch in plan.batches:
                print(size, way, batch, file=sys.stderr, flush=True)
                makers = {
                    contender: partial(_make_step, contender, size, way, batch, plan.image_size, device)
                    for contender in plan.contenders
                }
                yield compare({"size": size, "way": way}, batch, makers, measure, plan.rounds)


def _make_step(contender: str, size: str, way: str, batch: int, image_size: int, device: str) -> Call:
    forward = WAYS[way](make_model(contender, size, device, img_size=image_size).eval().to(_DTYPE))
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(batch, 3, image_size, image_size, device=device, generator=generator).to(_DTYPE)

    @torch.inference_mode()
    def step() -> None:
        forward(images)

    return step


def targets(rows: list[Row]) -> list[Row]:
    """Images per second of a KAT over a ViT that took turns with it, both compiled."""
    return [
        target(
            f"images/s over ViT's, {ours['size']}, {ours['way']}, batch {ours['batch']}",
            ours["images_per_s"] / vit["images_per_s"],
            _IMAGES_PER_S,
            at_least=True,
        )
        for ours, vit in pairs(rows, _CASE)
        if ours["way"] == _TARGET
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run, write and print."""
    args = arguments(
        "inference", "Inference of KATs and ViTs.", argv, sizes=SIZES, ways=tuple(WAYS), contenders=CONTENDERS
    )
    require_gpu()
    plan = replace(FULL, **{name: getattr(args, name) for name in ("sizes", "ways", "contenders")})
    plan = replace(plan, rounds=2) if args.quick else plan
    settings = {
        "batches": plan.batches,
        "image_size": plan.image_size,
        "dtype": "bf16 weights and images",
        "timing": f"median over {plan.rounds} rounds of means over a second of batches, contenders in turn; min, max",
    }
    collect_in_pieces(
        args.output, "inference", settings, collect(plan, "cuda", StepTimer()), (*_CASE, "contender"), targets
    )


if __name__ == "__main__":
    main()
