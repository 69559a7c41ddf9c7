"""Does the memory of a long training stay flat, and its speed too?

KAT-Tiny trains through ``flashkat train`` on fake data. Each epoch of 100 steps ends with an evaluation of the weights
and of their average, and with a checkpoint. Meanwhile the benchmark samples the memory of the GPU and of the process.

A slope is that of a least-squares line over the epochs, without the first quarter, in which compilation takes memory.
"""

import argparse
from collections.abc import Callable, Sequence

from ..parts.common import Row, arguments, finish, require_gpu, show, target
from ..parts.trainings import CONTENDERS, RECIPE, Sample, launch, train

__all__ = ["Train", "collect", "slope", "targets"]

_STEPS = 100  # of an epoch
_LEFT_OUT = 0.25
_SAMPLE_S = 0.25
_PER = 1000  # slopes are for so many steps
_MIB = 16.0  # half of the blocks that PyTorch's allocator asks for
_SPEED = 0.01

Train = Callable[[int], tuple[list[dict[str, float]], list[Sample]]]


def collect(steps: int, train: Train) -> list[Row]:
    """Train once, and return what changed over the training.

    Args:
        steps: steps of the training.
        train: trains so many epochs. It returns the numbers of each epoch, and samples of memory.
    """
    epochs, samples = train(max(4, steps // _STEPS))
    done = len(epochs) * _STEPS
    kept = epochs[int(_LEFT_OUT * len(epochs)) :]
    later = [sample for sample in samples if sample.epochs >= _LEFT_OUT * len(epochs)]
    measures: dict[str, list[tuple[float, float]]] = {
        "images/s": [(_STEPS * epoch["epoch"], epoch["images_per_second"]) for epoch in kept],
        "peak memory of tensors, MiB": [(_STEPS * epoch["epoch"], 1024 * epoch["peak_memory_gib"]) for epoch in kept],
        "memory of the GPU, MiB": [(_STEPS * each.epochs, each.gpu_mib) for each in later if each.gpu_mib is not None],
        "memory of the process, MiB": [(_STEPS * each.epochs, each.host_mib) for each in later],
    }
    return [
        {
            "what": what,
            "steps": done,
            "first": round(points[0][1], 1),
            "last": round(points[-1][1], 1),
            f"slope per {_PER} steps": round(_PER * slope(points), 3),
            "points": len(points),
        }
        for what, points in measures.items()
        if len(points) > 1
    ]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line through points (x, y)."""
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets: memory does not grow, and speed does not fall."""
    slopes = {row["what"]: row[f"slope per {_PER} steps"] for row in rows}
    first = {row["what"]: row["first"] for row in rows}
    memory = ("peak memory of tensors, MiB", "memory of the GPU, MiB", "memory of the process, MiB")
    found = [target(f"{what}: growth per {_PER} steps", slopes.get(what), _MIB) for what in memory]
    speed = "images/s"
    loss = -slopes[speed] / first[speed] if speed in slopes else None
    return [*found, target(f"share of images/s lost per {_PER} steps", loss, _SPEED)]


def _train(extra: Sequence[str], batch: int, epochs: int) -> tuple[list[dict[str, float]], list[Sample]]:
    flags = ["--fake-data", "--model", CONTENDERS["ours"].format("tiny"), *RECIPE, *extra, "-b", f"{batch}"]
    flags += ["--epochs", f"{epochs}", "--train-num-samples", f"{batch * _STEPS}", "--val-num-samples", f"{4 * batch}"]
    return train(flags, launch(1), _SAMPLE_S)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="default: %(default)s")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, write the result and print it."""
    args = arguments("memory.growth", __doc__ or "", argv, _add_flags)
    require_gpu()
    batch, extra = (8, ["--img-size", "32"]) if args.quick else (128, [])
    rows = collect(args.steps, lambda epochs: _train(extra, batch, epochs))
    settings = {"flags": " ".join((*RECIPE, *extra)), "batch": batch, "steps_per_epoch": _STEPS, "left_out": _LEFT_OUT}
    show("growth", rows)
    finish(args.output, "growth", settings, rows, targets(rows))


if __name__ == "__main__":
    main()
