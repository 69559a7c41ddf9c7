"""How long does the host take to issue a call?

Tensors are so small that the device always waits for the host. The benchmark times a forward and backward pass through
autograd, and a forward pass without gradients.

A time is that of one call in a chain of 24, as many as a KAT has. A single call would mostly show how long autograd
takes to wake its thread. The floor is an operator in Python that allocates its results and launches nothing.
"""

import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import flashkat
from flashkat.nn.starts import starting_coefficients

from .parts.common import Call, HostTimer, Measure, Row, alternate, arguments, finish, require_gpu, target

__all__ = ["collect", "targets"]

_SHAPE = (1, 1, 192)
_GROUPS = 8
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_CHAIN = 24
_OVER_GELU = 2.0


def collect(device: str, measure: Measure, rounds: int) -> list[Row]:
    """Time every contender on the host: a row per dtype, kind of call and contender."""
    rows: list[Row] = []
    for dtype in _DTYPES:
        for what, calls in _calls(dtype, device).items():
            print(dtype, what, file=sys.stderr, flush=True)
            with torch.set_grad_enabled(what == "forward and backward"):
                times = alternate(calls, measure, rounds)
            for name, time in times.items():
                per_call = {key: round(value / _CHAIN, 3) for key, value in time.items()}
                rows.append({"dtype": dtype, "what": what, "contender": name, **per_call})
    return rows


def _calls(dtype: str, device: str) -> dict[str, dict[str, Call]]:
    from .parts import baselines

    x = torch.randn(_SHAPE, device=device).to(_DTYPES[dtype]).requires_grad_()
    grad = torch.randn(_SHAPE, device=device).to(_DTYPES[dtype])
    start = [c.float().to(device) for c in starting_coefficients("swish")]
    # Each call has its own coefficients, as each layer of a model does.
    coefficients = [
        (start[0].repeat(1, 1).requires_grad_(), start[1].repeat(_GROUPS, 1).requires_grad_()) for _ in range(_CHAIN)
    ]
    functions: dict[str, Callable[..., Tensor]] = {
        "ours": flashkat.rational,
        "gelu": lambda y, a, b: F.gelu(y),
        "flashkat paper": baselines.flashkat,
        "kat": baselines.kat,
        "nothing": _Nothing.apply,
    }

    def chain(function: Callable[..., Tensor]) -> Tensor:
        y = x
        for a, b in coefficients:
            y = function(y, a, b)
        return y

    def pair(name: str) -> Call:
        leaves = [x] if name == "gelu" else [x, *(tensor for both in coefficients for tensor in both)]
        return lambda: torch.autograd.grad(chain(functions[name]), leaves, grad)

    def forward(name: str) -> Call:
        return lambda: chain(functions[name])

    return {
        "forward and backward": {name: pair(name) for name in functions},
        "forward alone": {name: forward(name) for name in functions},
    }


class _Nothing(torch.autograd.Function):
    """An operator that allocates its results and computes nothing."""

    @staticmethod
    def forward(ctx, x, a, b):
        ctx.save_for_backward(x, a, b)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad):
        x, a, b = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(a), torch.empty_like(b)


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets: forward and backward take at most twice as long as GELU's."""
    pairs = {(r["dtype"], r["contender"]): r["median_us"] for r in rows if r["what"] == "forward and backward"}
    dtypes = [dtype for dtype, contender in pairs if contender == "ours"]
    name = "host time of forward and backward over GELU's"
    return [target(f"{name}, {dtype}", pairs[dtype, "ours"] / pairs[dtype, "gelu"], _OVER_GELU) for dtype in dtypes]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark, write the result and print it."""
    args = arguments("host_time", "Host time of a call, against GELU and others.", argv)
    require_gpu()
    repeats, rounds = (20, 3) if args.quick else (50, 9)
    rows = collect("cuda", HostTimer(repeats), rounds)
    settings = {
        "shape": _SHAPE,
        "groups": _GROUPS,
        "timing": f"median over {rounds} rounds of medians of {repeats} chains, contenders in turn; min, max",
        "chain": _CHAIN,
    }
    finish(args.output, "host_time", settings, rows, targets(rows))


if __name__ == "__main__":
    main()
