"""How long does the operator take on a CPU, next to GELU?

The operator runs forward and backward through autograd, with all three gradients. Contenders take turns in one
process:

- ``torch.nn.functional.gelu`` with its one gradient;
- the path of PyTorch's operators, which is taken without the compiled library. It is called without autograd.
"""

import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import flashkat
from flashkat.ops.aten import windows as aten
from flashkat.ops.dispatch import choose_path

from .parts.common import Call, HostTimer, Measure, Row, alternate, arguments, finish, target

__all__ = ["collect", "targets"]

_THREADS = 2
_GROUPS = 8
_TARGET = "fp32 (8, 197, 768)"
_OVER_GELU = 1.5
_CASES: dict[str, tuple[tuple[int, ...], int, torch.dtype]] = {
    _TARGET: ((8, 197, 768), -1, torch.float32),
    "bf16 (8, 197, 768)": ((8, 197, 768), -1, torch.bfloat16),
    "fp16 (8, 197, 768)": ((8, 197, 768), -1, torch.float16),
    "fp64 (8, 197, 768)": ((8, 197, 768), -1, torch.float64),
    "fp32 (8, 768, 14, 14), dim 1": ((8, 768, 14, 14), 1, torch.float32),
    "fp32 (32, 197, 768)": ((32, 197, 768), -1, torch.float32),
    "fp32 (64, 17, 64)": ((64, 17, 64), -1, torch.float32),
}


def collect(measure: Measure, rounds: int) -> list[Row]:
    """Time every case, and return a row for each: medians in milliseconds, forward and with the backward pass."""
    rows = []
    for name, (shape, dim, dtype) in _CASES.items():
        print(name, file=sys.stderr, flush=True)
        times = alternate(_calls(shape, dim, dtype), measure, rounds)
        row: Row = {"case": name}
        for what in ("forward", "both"):
            gelu, ours, plain = (times[f"{name} {what}"]["median_us"] / 1e3 for name in ("gelu", "ours", "aten"))
            row |= {f"gelu {what} ms": gelu, f"ours {what} ms": ours, f"aten {what} ms": plain}
            row |= {f"{what} ratio": round(ours / gelu, 2), f"aten {what} ratio": round(plain / gelu, 2)}
        rows.append(row)
    return rows


def _calls(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> dict[str, Call]:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    a = torch.randn(1, 6, generator=generator).requires_grad_()
    b = torch.randn(_GROUPS, 4, generator=generator).requires_grad_()
    x.requires_grad_()

    def both(function: Callable[[], Tensor], *leaves: Tensor) -> Call:
        return lambda: torch.autograd.grad(function(), leaves, grad)

    def gelu() -> Tensor:
        return F.gelu(x)

    def ours() -> Tensor:
        return flashkat.rational(x, a, b, dim=dim)

    def plain() -> Tensor:
        return aten.forward(x, a, b, dim, dtype)

    def plain_both() -> None:
        plain()
        aten.backward(grad, x, a, b, dim)

    return {
        "gelu forward": gelu,
        "ours forward": ours,
        "aten forward": torch.no_grad()(plain),
        "gelu both": both(gelu, x),
        "ours both": both(ours, x, a, b),
        "aten both": torch.no_grad()(plain_both),
    }


def targets(rows: list[Row]) -> list[Row]:
    """Return the target: forward and backward take at most one and a half times as long as GELU's."""
    (ratio,) = (row["both ratio"] for row in rows if row["case"] == _TARGET)
    return [target(f"forward and backward over GELU's, {_TARGET}", ratio, _OVER_GELU)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark, write the result and print it."""
    args = arguments("cpu", "The CPU path against GELU.", argv)
    torch.set_num_threads(_THREADS)
    repeats, rounds = (3, 3) if args.quick else (11, 9)
    rows = collect(HostTimer(repeats), rounds)
    settings = {
        "groups": _GROUPS,
        "path": choose_path(torch.device("cpu")).reason,
        "timing": f"median over {rounds} rounds of medians of {repeats} calls, contenders in turn",
    }
    finish(args.output, "cpu", settings, rows, targets(rows))


if __name__ == "__main__":
    main()
