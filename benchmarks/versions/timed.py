"""Time the version of flashkat that Python finds: kernels, calls on the host, and training steps.

``python -m benchmarks.versions.timed FOLDER PART...`` prints the microseconds of each case as JSON. It fails if Python
finds flashkat in another folder. It uses only names that all versions have.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import flashkat

from ..parts.common import Call, GpuTimer, HostTimer, Measure, StepTimer

__all__ = ["PARTS", "host", "kernels", "steps"]

_WIDTHS = (192, 768, 3072)
_ROWS = 128 * 197
_GROUPS = 8
_CHAIN = 24
_SIZES = ("tiny", "small", "base")
_BATCH = 128
_ROUNDS = 5


def kernels(
    device: str = "cuda", rows: int = _ROWS, widths: tuple[int, ...] = _WIDTHS, measure: Measure | None = None
) -> dict[str, float]:
    """Time the rational on the GPU, forward and backward, in bfloat16."""
    measure, found = measure or GpuTimer(), {}
    for width in widths:
        x, a, b = _inputs(device, rows, width)
        out = flashkat.rational(x, a, b)
        grad = torch.randn_like(out)
        frozen = [tensor.detach() for tensor in (x, a, b)]
        backward = partial(torch.autograd.grad, out, [x, a, b], grad, retain_graph=True)
        found[f"forward, {width} channels"] = _least(measure, partial(flashkat.rational, *frozen))
        found[f"backward, {width} channels"] = _least(measure, backward)
    return found


def host(device: str = "cuda", measure: Measure | None = None) -> dict[str, float]:
    """Time a forward and a backward call on the host, one of a chain, in bfloat16 and float32."""
    found = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        chain = partial(_chain, *_inputs(device, 1, _WIDTHS[0], dtype))
        found[f"a call on the host, {name}"] = _least(measure or HostTimer(50), chain) / _CHAIN
    return found


def _chain(x: Tensor, a: Tensor, b: Tensor) -> None:
    y = x
    for _ in range(_CHAIN):
        y = flashkat.rational(y, a, b)
    torch.autograd.grad(y, [x, a, b], torch.ones_like(y))


def steps(
    device: str = "cuda",
    sizes: tuple[str, ...] = _SIZES,
    batch: int = _BATCH,
    mode: str = "reduce-overhead",
    measure: Measure | None = None,
    **model_args: int,
) -> dict[str, float]:
    """Time training steps with CUDA graphs under autocast to bfloat16."""
    torch.set_float32_matmul_precision("high")
    found = {}
    for size in sizes:
        call = _step(f"kat_{size}_patch16_224", device, batch, mode, model_args)
        for _ in range(4):  # compile, record, replay
            call()
        found[f"training step, {size}"] = _least(measure or StepTimer(), call)
    return found


PARTS: dict[str, Callable[..., dict[str, float]]] = {"kernels": kernels, "host": host, "steps": steps}
"""What to time, by name."""


def _inputs(device: str, rows: int, width: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """Return x (rows, width) and coefficients of degrees 5 and 4, all with gradients."""
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(rows, width, device=device, generator=generator).to(dtype)
    a = torch.randn(1, 6, device=device, generator=generator)
    b = torch.randn(_GROUPS, 4, device=device, generator=generator)
    return x.requires_grad_(), a.requires_grad_(), b.requires_grad_()


def _step(name: str, device: str, batch: int, mode: str, model_args: dict[str, int]) -> Call:
    model = timm.create_model(name, **model_args).to(device).train()
    forward = torch.compile(model, dynamic=False, mode=mode) if mode else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    side = model_args.get("img_size", 224)
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(1000, (batch,), device=device)

    def call() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def _least(measure: Measure, call: Call) -> float:
    return min(measure(call) for _ in range(_ROUNDS))


def main(folder: str, *parts: str) -> None:
    """Time the parts and print the result."""
    place = Path(flashkat.__file__).resolve()
    if not place.is_relative_to(Path(folder).resolve()):
        raise SystemExit(f"flashkat was imported from {place.parent}, not from {folder}")
    print(json.dumps({name: time for part in parts for name, time in PARTS[part]().items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
