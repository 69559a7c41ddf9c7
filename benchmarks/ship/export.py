"""How fast are exported KATs on a CPU: ONNX Runtime and AOTInductor against eager PyTorch, next to timm's ViT?

Each program takes one image on two threads. Contenders take turns in one process:

- the model in eager PyTorch;
- its ``.pt2`` as AOTInductor compiles it;
- its ``.onnx`` in ONNX Runtime.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import flashkat
from flashkat.tools.export.onnx_file import load_onnx
from flashkat.tools.export.program import load_package

from ..parts.common import Call, HostTimer, Measure, Row, alternate, arguments, finish, target

__all__ = ["collect", "targets"]

_THREADS = 2
_MODELS = {"KAT-T": "kat_tiny_patch16_224", "ViT-T": "vit_tiny_patch16_224"}
_WAYS = ("eager", "aoti", "onnx")
_OVER_EAGER = 1.0
_QUICK: dict[str, Any] = {"img_size": 32, "depth": 1, "embed_dim": 48}


def collect(measure: Measure, rounds: int, sizes: dict[str, Any], ways: Sequence[str] = _WAYS) -> list[Row]:
    """Time every model in every way, and return a row for each: medians in milliseconds for one image.

    Args:
        measure: returns the microseconds of a call.
        rounds: measurements of each contender.
        sizes: more arguments of the models.
        ways: which of "eager", "aoti" and "onnx".
    """
    calls: dict[str, Call] = {}
    differences: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for label, name in _MODELS.items():
            torch.manual_seed(0)
            model = timm.create_model(name, **sizes).eval()
            for way in ways:
                print(f"{label}, {way}", file=sys.stderr, flush=True)
                case = f"{label} {way}"
                calls[case], differences[case] = _contender(model, way, Path(folder))
        times = alternate(calls, measure, rounds)
    return [
        {
            "model": case.partition(" ")[0],
            "way": case.partition(" ")[2],
            "ms": round(found["median_us"] / 1e3, 2),
            "min ms": round(found["min_us"] / 1e3, 2),
            "difference": differences[case],
        }
        for case, found in times.items()
    ]


def _contender(model: nn.Module, way: str, folder: Path) -> tuple[Call, float]:
    size = model.patch_embed.img_size  # type: ignore[union-attr]
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))  # type: ignore[misc]
    if way == "eager":
        return torch.inference_mode()(lambda: model(images)), 0.0
    path = folder / ("model.onnx" if way == "onnx" else "model_aoti.pt2")
    difference = flashkat.export(model, images, path)
    run = load_onnx(path)[0] if way == "onnx" else load_package(path, True)
    return lambda: run(images), difference


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets: an exported KAT-T takes no longer than eager PyTorch."""
    times = {(row["model"], row["way"]): row["ms"] for row in rows}
    eager = times["KAT-T", "eager"]
    return [
        target(f"KAT-T, {way} over eager", times["KAT-T", way] / eager, _OVER_EAGER)
        for way in _WAYS[1:]
        if ("KAT-T", way) in times
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark, write the result and print it."""
    args = arguments("ship.export", "Exported KATs on a CPU.", argv, parts={"way": _WAYS})
    torch.set_num_threads(_THREADS)
    repeats, rounds = (2, 2) if args.quick else (5, 15)
    rows = collect(HostTimer(repeats), rounds, _QUICK if args.quick else {}, args.way)
    settings = {
        "images": 1,
        "timing": f"median over {rounds} rounds of medians of {repeats} calls, contenders in turn, on a shared machine",
    }
    finish(args.output, "export", settings, rows, targets(rows))


if __name__ == "__main__":
    main()
