"""How do time and bandwidth grow from 2^16 to 2^30 elements, and is the largest tensor still right?

The tensor x is bf16 with 1,024 channels, and all groups share one numerator. Every size is checked, as a tensor too
large for a launch grid or a 32-bit offset gives wrong results. Values and grad_x of the last rows are compared with
the definition, and the coefficients' gradients with sums in float64.
"""

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flashkat.nn.starts import starting_coefficients
from flashkat.ops import rational_reference

from .parts.common import Call, GpuTimer, Measure, Row, alternate, arguments, finish, require_gpu, requirement
from .rounding import coefficient_sums

__all__ = ["collect", "targets"]

_CHANNELS, _GROUPS = 1024, 8
_DTYPE = torch.bfloat16
_COMPARED_ROWS = 64
_VALUE_TOLERANCE = 2**-7  # relative to the largest: one rounding to bfloat16, in either direction
_SUM_TOLERANCE = 1e-4  # relative to the norm


def collect(exponents: Sequence[int], device: str, measure: Measure, rounds: int) -> list[Row]:
    """Time every size: a row per number of elements, direction and contender."""
    rows: list[Row] = []
    for exponent in exponents:
        print(f"2^{exponent} elements", file=sys.stderr, flush=True)
        x, grad, a, b = _tensors(2**exponent, device)
        right = _is_right(x, grad, a, b)
        for direction, contenders in _calls(x, grad, a, b).items():
            size = x.nbytes * (2 if direction == "forward" else 3)
            for name, time in alternate(contenders, measure, rounds).items():
                row: Row = {"elements": 2**exponent, "direction": direction, "contender": name, **time, "bytes": size}
                row["gb_per_s"] = round(size / time["median_us"] / 1e3, 2)
                rows.append({**row, "right": right[direction] if name == "ours" else None})
    return rows


def _calls(x: Tensor, grad: Tensor, a: Tensor, b: Tensor) -> dict[str, dict[str, Call]]:
    copy = torch.empty_like(x)
    return {
        "forward": {
            "ours": lambda: torch.ops.flashkat.rational(x, a, b, -1, None),
            "gelu": lambda: F.gelu(x),
            "copy": lambda: copy.copy_(x),
        },
        "backward": {
            "ours": lambda: torch.ops.flashkat.rational_backward(grad, x, a, b, -1),
            "gelu": lambda: torch.ops.aten.gelu_backward(grad, x),
        },
    }


def _tensors(elements: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shape = elements // _CHANNELS, _CHANNELS
    x, grad = (torch.randn(shape, dtype=_DTYPE, device=device, generator=generator) for _ in range(2))
    a, b = (c.float().to(device) for c in starting_coefficients("swish"))
    return x, grad, a.repeat(1, 1), b.repeat(_GROUPS, 1)


def _is_right(x: Tensor, grad: Tensor, a: Tensor, b: Tensor) -> dict[str, bool]:
    last = x[-_COMPARED_ROWS:].double().requires_grad_()
    y = rational_reference(last, a.double(), b.double())
    (expected_x,) = torch.autograd.grad(y, last, grad[-_COMPARED_ROWS:].double())
    forward = _close(torch.ops.flashkat.rational(x, a, b, -1, None)[-_COMPARED_ROWS:], y.detach(), _VALUE_TOLERANCE)
    grad_x, grad_a, grad_b = torch.ops.flashkat.rational_backward(grad, x, a, b, -1)
    expected_a, expected_b = coefficient_sums(grad, x, a.expand(_GROUPS, -1), b, torch.float64)
    backward = (
        _close(grad_x[-_COMPARED_ROWS:], expected_x, _VALUE_TOLERANCE)
        and _close(grad_a, expected_a.sum(0, keepdim=True), _SUM_TOLERANCE)
        and _close(grad_b, expected_b, _SUM_TOLERANCE)
    )
    return {"forward": forward, "backward": backward}


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((found.double() - expected).norm() <= tolerance * expected.norm())


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets: the results of every size are right."""
    ours = [row for row in rows if row["contender"] == "ours"]
    return [
        requirement(f"{row['direction']} of 2^{row['elements'].bit_length() - 1} elements is right", row["right"])
        for row in ours
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark, write the result and print it."""
    args = arguments("scaling", "Time and bandwidth from 2^16 to 2^30 elements.", argv)
    require_gpu()
    exponents = range(16, 31, 7) if args.quick else range(16, 31, 2)
    rounds = 2 if args.quick else 5
    rows = collect(exponents, "cuda", GpuTimer(), rounds)
    settings = {
        "channels": _CHANNELS,
        "groups": _GROUPS,
        "dtype": "bf16",
        "timing": "median over rounds of medians of up to 40 calls (8 ms), L2 flushed, contenders in turn; min, max",
        "right": f"last {_COMPARED_ROWS} rows within {_VALUE_TOLERANCE} of exact ones, sums within {_SUM_TOLERANCE}",
    }
    finish(args.output, "scaling", settings, rows, targets(rows))


if __name__ == "__main__":
    main()
