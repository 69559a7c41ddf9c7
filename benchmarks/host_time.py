"""How long does the host take to issue a call?

On tensors so small that the device always waits for the host: a forward and backward pass through autograd, and a
forward pass alone without gradients. The KAT models have 24 of these a pass, and a small batch is bound by them.
"""

import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import flashkat
from flashkat.coefficients import starting_coefficients

from .common import Call, HostTimer, Measure, Row, alternate, arguments, finish, require_gpu, target

__all__ = ["collect", "targets"]

_SHAPE = (1, 1, 192)
_GROUPS = 8
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_OVER_GELU = 2.0


def collect(device: str, measure: Measure, rounds: int) -> list[Row]:
    """Host time of every contender: a row per dtype, what was called and contender."""
    rows = []
    for dtype in _DTYPES:
        for what, calls in _calls(dtype, device).items():
            print(dtype, what, file=sys.stderr, flush=True)
            with torch.set_grad_enabled(what == "forward and backward"):
                times = alternate(calls, measure, rounds)
            rows += [{"dtype": dtype, "what": what, "contender": name, **time} for name, time in times.items()]
    return rows


def _calls(dtype: str, device: str) -> dict[str, dict[str, Call]]:
    from . import baselines  # Triton is imported only by what needs it

    x = torch.randn(_SHAPE, device=device).to(_DTYPES[dtype]).requires_grad_()
    grad = torch.randn(_SHAPE, device=device).to(_DTYPES[dtype])
    a, b = (c.float().to(device) for c in starting_coefficients("swish"))
    a, b = a.repeat(1, 1).requires_grad_(), b.repeat(_GROUPS, 1).requires_grad_()
    functions: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "ours": (flashkat.rational, (x, a, b)),
        "gelu": (F.gelu, (x,)),
        "flashkat paper": (baselines.flashkat, (x, a, b)),
        "kat": (baselines.kat, (x, a, b)),
    }

    def pair(function: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> Call:
        return lambda: torch.autograd.grad(function(*leaves), leaves, grad)

    def forward(function: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> Call:
        return lambda: function(*leaves)

    return {
        "forward and backward": {name: pair(*function) for name, function in functions.items()},
        "forward alone": {name: forward(*function) for name, function in functions.items()},
    }


def targets(rows: list[Row]) -> list[Row]:
    """A pair of calls takes no more than twice GELU's."""
    pairs = {(r["dtype"], r["contender"]): r["median_us"] for r in rows if r["what"] == "forward and backward"}
    dtypes = [dtype for dtype, contender in pairs if contender == "ours"]
    name = "host time of forward and backward over GELU's"
    return [target(f"{name}, {dtype}", pairs[dtype, "ours"] / pairs[dtype, "gelu"], _OVER_GELU) for dtype in dtypes]


def main(argv: Sequence[str] | None = None) -> None:
    """Run, write and print."""
    args = arguments("host_time", "Host time of a call, against GELU and others.", argv)
    require_gpu()
    repeats, rounds = (200, 3) if args.quick else (1000, 9)
    rows = collect("cuda", HostTimer(repeats), rounds)
    settings = {
        "shape": _SHAPE,
        "groups": _GROUPS,
        "timing": f"median over {rounds} rounds of medians of {repeats} calls, contenders in turn; min, max",
    }
    finish(args.output, "host_time", settings, rows, targets(rows))


if __name__ == "__main__":
    main()
