"""How much memory does training save that computes the rationals' values again, and what does that cost?

Contenders are a KAT that recomputes (ours), a KAT that saves the values, and timm's ViT. A step is that of
``training.py`` in bf16, in batches of 128.

  --sizes   tiny, small, base
  --ways    eager; graphs (torch.compile with CUDA graphs); batch: the largest batch of an eager step that fits in
            80 GiB, for size base only

A size takes two or three minutes, most of it compilation. The parts that run replace those in the result.
"""

import gc
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from ..parts.common import Call, Measure, Row, StepTimer, arguments, target
from ..parts.contenders import SAVED, SIZES, TOY, USUAL, Scale, check_device, compare
from ..parts.pieces import collect_in_pieces
from ..training import make_step

__all__ = ["Plan", "collect", "largest_batch", "targets"]

_CONTENDERS = ("ours", SAVED, "vit")
_WAYS = ("eager", "graphs", "batch")
_BATCH = 128
_PRECISION = "bf16"

_PEAK = 0.80
_IMAGES_PER_S = 0.985
_LARGEST_BATCH = 1.20
_LARGEST_BATCH_SIZE = "base"
_GIB = 80
_STEP_OF_BATCHES = 16
_MOST_IMAGES = 4096


@dataclass(frozen=True)
class Plan:
    """The parts to run."""

    sizes: Sequence[str] = SIZES
    ways: Sequence[str] = _WAYS
    scale: Scale = USUAL
    rounds: int = 10


def collect(plan: Plan, device: str, measure: Measure) -> Iterator[list[Row]]:
    """Measure every part of the plan, and yield lists of rows, one row per contender."""
    for size in plan.sizes:
        for way in plan.ways:
            print(size, way, file=sys.stderr, flush=True)
            if way != "batch":
                batch = min(_BATCH, plan.scale.most_images)
                makers = {
                    contender: partial(make_step, contender, size, way, _PRECISION, batch, device, **plan.scale.model)
                    for contender in _CONTENDERS
                }
                yield _with_ratio(compare({"size": size, "way": way}, batch, makers, measure, plan.rounds))
            elif size == _LARGEST_BATCH_SIZE:
                yield _largest_batches(size, device, plan.scale)


def _with_ratio(rows: list[Row]) -> list[Row]:
    """Add ``over_saved`` to each row: images per second over those of the KAT that saves the values."""
    saved = {row["contender"]: row["images_per_s"] for row in rows}[SAVED]
    return [{**row, "over_saved": round(row["images_per_s"] / saved, 4)} for row in rows]


def _largest_batches(size: str, device: str, scale: Scale) -> list[Row]:
    most = min(_MOST_IMAGES, scale.most_images)
    found = {}
    for contender in _CONTENDERS:
        print(contender, file=sys.stderr, flush=True)
        make = partial(make_step, contender, size, "eager", _PRECISION, device=device, **scale.model)
        found[contender] = largest_batch(make, most)
    return [
        {
            **{"size": size, "way": "batch", "contender": contender, "batch": batch},
            "batch_over_vit": round(batch / found["vit"], 4),
        }
        for contender, batch in found.items()
    ]


def largest_batch(make: Callable[[int], Call], most: int) -> int:
    """Return the largest batch, a multiple of 16 or ``most``, with training steps that fit in 80 GiB of a GPU.

    Args:
        make: makes a training step for a batch size.
        most: the largest batch to try.
    """
    if torch.cuda.is_available():
        share = _GIB * 2**30 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    sizes = [*range(_STEP_OF_BATCHES, most, _STEP_OF_BATCHES), most]
    fitting = bisect_left(sizes, True, key=lambda size: not _fits(make, size))
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0)
    return sizes[fitting - 1] if fitting else 0


def _fits(make: Callable[[int], Call], batch: int) -> bool:
    fits = True
    try:
        step = make(batch)
        for _ in range(2):  # the optimiser's state is there from the second one on
            step()
    except torch.cuda.OutOfMemoryError:
        fits = False
    step = None  # type: ignore[assignment]
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fits


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets: memory over a ViT's, speed over that of saved values, and the largest batch."""
    ours = {(row["way"], row["size"]): row for row in rows if row["contender"] == "ours"}
    found: list[Row] = []
    for way in ("eager", "graphs"):
        for size in SIZES:
            row, where = ours.get((way, size), {}), f"{size}, {way}"
            found.append(target(f"peak memory over ViT's, {where}", row.get("peak_over_vit"), _PEAK))
            found.append(
                target(f"images/s over saved values', {where}", row.get("over_saved"), _IMAGES_PER_S, at_least=True)
            )
    row, name = ours.get(("batch", _LARGEST_BATCH_SIZE), {}), f"largest batch in {_GIB} GiB over ViT's"
    found.append(target(f"{name}, {_LARGEST_BATCH_SIZE}", row.get("batch_over_vit"), _LARGEST_BATCH, at_least=True))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark, write the result and print it."""
    parts = {"sizes": SIZES, "ways": _WAYS}
    args = arguments("memory.recompute", __doc__, argv, parts=parts)
    plan = Plan(**{name: getattr(args, name) for name in parts})
    if args.quick:
        plan = replace(plan, scale=TOY, rounds=2)
    check_device(_CONTENDERS, quick=args.quick)
    torch.set_float32_matmul_precision("high")  # TF32
    settings = {
        "scale": asdict(plan.scale),
        "precision": _PRECISION,
        "timing": f"median over {plan.rounds} rounds of means over half a second, contenders in turn; min, max",
        "memory": "peak of tensors in the second step, GiB, less what other contenders hold",
        "batch": f"largest multiple of {_STEP_OF_BATCHES} whose second eager step fits in {_GIB} GiB",
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    collect_in_pieces(args.output, "recompute", settings, collect(plan, device, StepTimer()), ("size", "way"), targets)


if __name__ == "__main__":
    main()
