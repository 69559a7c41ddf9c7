"""How long do the kernels take, and what share of the device's copy bandwidth do they reach?

A time covers everything that a call launches on the device. The backward pass computes all three gradients. The
contenders of a case take turns with a large copy, whose bandwidth is the reference.

The bytes are the fewest that the operation can move. Those are x and y forward, and grad, x and grad_x backward.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

from flashkat.nn.starts import starting_coefficients
from flashkat.ops import rational_reference

from .parts.common import GpuTimer, Measure, Row, alternate, arguments, finish, require_gpu, requirement, target

__all__ = ["FULL", "Plan", "collect", "targets"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}

# The targets by width: time over GELU's, and share of the copy's bandwidth.
_GELU_RATIO = {
    "forward": {192: 1.10, 384: 1.10, 768: 1.05, 1536: 1.05, 3072: 1.05},
    "backward": {192: 1.30, 384: 1.30, 768: 1.12, 1536: 1.08, 3072: 1.08},
}
_OF_COPY = {
    "forward": {768: 0.80, 1536: 0.87, 3072: 0.92},
    "backward": {768: 0.80, 1536: 0.87, 3072: 0.90},
}
_NCHW_GELU_RATIO = {"forward": 1.05, "backward": 1.08}
_AUTOCAST_OVER_LIMIT = 1.15
_VARIANT_OVER_DEFAULT = 1.5
_OUTLIER = 10_000.0


@dataclass(frozen=True)
class Plan:
    """The sizes to run."""

    tokens: tuple[int, int] = (128, 197)
    widths: tuple[int, ...] = (192, 384, 768, 1536, 3072)
    dtypes: tuple[str, ...] = ("bf16", "fp16", "fp32")
    baseline_dtypes: tuple[str, ...] = ("bf16", "fp32")
    baseline_widths: tuple[int, ...] = (192, 768, 3072)
    autocast_widths: tuple[int, ...] = (1536, 3072)
    variant_width: int = 1536
    odd_width: int = 1560  # 8 groups of 195
    nchw: tuple[int, int, int, int] = (128, 256, 56, 56)
    copy_elements: int = 128 * 197 * 3072
    rounds: int = 5


FULL = Plan()
QUICK = replace(FULL, widths=(768,), dtypes=("bf16",), autocast_widths=(1536,), rounds=2)


@dataclass(frozen=True)
class Problem:
    """A call of the operator.

    Attributes:
        shape: shape of x.
        dtype: dtype of x.
        out_dtype: dtype of y.
        dim: dimension of the channels.
        groups: number of denominators.
        numerator_rows: number of numerators.
        m: coefficients of a numerator.
        n: coefficients of a denominator.
        outliers: the part of x that takes the overflow-safe path: "none", one "number" or one "channel".
    """

    shape: tuple[int, ...]
    dtype: str
    out_dtype: str
    dim: int = -1
    groups: int = 8
    numerator_rows: int = 1
    m: int = 6
    n: int = 4
    outliers: str = "none"

    def bytes(self, direction: str) -> int:
        elements = 1
        for size in self.shape:
            elements *= size
        x, y = _BYTES[self.dtype], _BYTES[self.out_dtype]
        return elements * (x + y if direction == "forward" else y + 2 * x)


class Tensors:
    """The tensors of a problem: random inputs, the coefficients of swish, and an output to copy to."""

    def __init__(self, problem: Problem, device: str) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(dtype: str) -> Tensor:
            return torch.randn(problem.shape, dtype=DTYPES[dtype], device=device, generator=generator)

        self.x, self.grad = normal(problem.dtype), normal(problem.out_dtype)
        if problem.outliers == "number":
            self.x.view(-1)[self.x.numel() // 2] = _OUTLIER
        elif problem.outliers == "channel":
            self.x.select(problem.dim, self.x.shape[problem.dim] // 2).fill_(_OUTLIER)
        self.out = torch.empty_like(self.grad)
        a, b = starting_coefficients("swish", problem.m, problem.n)
        self.a = a.float().to(device).repeat(problem.numerator_rows, 1)
        self.b = b.float().to(device).repeat(problem.groups, 1)


@dataclass(frozen=True)
class Contender:
    """A call to time, with its name and problem."""

    name: str
    problem: Problem
    call: Callable[[], object]


def collect(plan: Plan, device: str, measure: Measure) -> list[Row]:
    """Time every case of the plan: a row per case, direction and contender."""
    rows: list[Row] = []
    for case, contenders in _cases(plan, device):
        for direction in ("forward", "backward"):
            print(case, direction, file=sys.stderr, flush=True)
            rows += _time(case, direction, contenders(direction), plan, device, measure)
    return rows


def _cases(plan: Plan, device: str) -> Iterator[tuple[str, Callable[[str], list[Contender]]]]:
    for dtype in plan.dtypes:
        for width in plan.widths:
            problem = Problem((*plan.tokens, width), dtype, dtype)
            with_baselines = dtype in plan.baseline_dtypes and width in plan.baseline_widths
            rivals = [_gelu, _copy, *(_BASELINES if with_baselines else ())]
            yield "default", _contenders(_shared_and_not(problem), rivals, device)
    for width in plan.autocast_widths:
        for dtype in (dtype for dtype in plan.dtypes if dtype != "fp32"):
            problem = Problem((*plan.tokens, width), "fp32", dtype)
            yield "autocast", _contenders(_shared_and_not(problem), [_copy], device)
    for dtype in plan.dtypes:
        default = Problem((*plan.tokens, plan.variant_width), dtype, dtype)
        outliers = [replace(default, outliers=which) for which in ("none", "number", "channel")]
        images = Problem(plan.nchw, dtype, dtype, dim=1)
        yield "variants", _contenders(_variants(default, plan), [_gelu], device)
        yield "outliers", _contenders(outliers, [], device)
        yield "nchw", _contenders(_shared_and_not(images), [_gelu, _copy], device)


def _shared_and_not(problem: Problem) -> list[Problem]:
    """Return the problem with one numerator for all groups, and with one for each."""
    return [problem, replace(problem, numerator_rows=problem.groups)]


def _variants(default: Problem, plan: Plan) -> list[Problem]:
    """Return the default, then other numbers of groups, an odd width per group, and other degrees."""
    odd = replace(default, shape=(*plan.tokens, plan.odd_width))
    groups = [replace(default, groups=groups) for groups in (1, 2, 16, plan.variant_width)]
    shared = [*groups, odd, *(replace(default, m=m, n=n) for m, n in ((4, 2), (8, 6)))]
    return [default, *shared, *(replace(each, numerator_rows=each.groups) for each in shared if each.groups > 1)]


Rival = Callable[[str, Problem, Tensors], Iterator[Contender]]


def _contenders(problems: Sequence[Problem], rivals: Sequence[Rival], device: str) -> Callable[[str], list[Contender]]:
    """Return a function that makes the contenders of a direction: ours for each problem, the rivals for the first."""

    def make(direction: str) -> list[Contender]:
        contenders = []
        for problem in problems:
            tensors = Tensors(problem, device)
            contenders.append(_ours(direction, problem, tensors))
            if problem is problems[0]:
                contenders += [contender for rival in rivals for contender in rival(direction, problem, tensors)]
        return contenders

    return make


def _ours(direction: str, problem: Problem, t: Tensors) -> Contender:
    out_dtype = DTYPES[problem.out_dtype]
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: torch.ops.flashkat.rational(t.x, t.a, t.b, problem.dim, out_dtype),
        "backward": lambda: torch.ops.flashkat.rational_backward(t.grad, t.x, t.a, t.b, problem.dim),
    }
    return Contender("ours", problem, calls[direction])


def _gelu(direction: str, problem: Problem, t: Tensors) -> Iterator[Contender]:
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: F.gelu(t.x),
        "backward": lambda: torch.ops.aten.gelu_backward(t.grad, t.x),
    }
    yield Contender("gelu", problem, calls[direction])


def _copy(direction: str, problem: Problem, t: Tensors) -> Iterator[Contender]:
    if direction == "forward":
        yield Contender("copy", problem, lambda: t.out.copy_(t.x))


def _formula(name: str, function: Callable[..., Tensor]) -> Rival:
    """Return a rival that runs the definition under autograd, as in training."""

    def contenders(direction: str, problem: Problem, t: Tensors) -> Iterator[Contender]:
        leaves = [tensor.detach().requires_grad_() for tensor in (t.x, t.a, t.b)]
        if direction == "forward":
            yield Contender(name, problem, lambda: function(*leaves))
        else:
            y = function(*leaves)
            yield Contender(name, problem, lambda: torch.autograd.grad(y, leaves, t.grad, retain_graph=True))

    return contenders


def _compiled(direction: str, problem: Problem, t: Tensors) -> Iterator[Contender]:
    torch._dynamo.reset()  # compile for exactly this shape, not for all shapes seen so far
    # With donated buffers the compiled backward pass can run only once.
    with torch._functorch.config.patch(donated_buffer=False):
        function = torch.compile(rational_reference, dynamic=False)
        contenders = list(_formula("formula, compiled", function)(direction, problem, t))
        for contender in contenders:
            contender.call()
    yield from contenders


def _published(direction: str, problem: Problem, t: Tensors) -> Iterator[Contender]:
    from .parts import baselines

    if direction == "forward":
        yield Contender("flashkat paper", problem, lambda: baselines.flashkat_forward(t.x, t.a, t.b))
        yield Contender("kat", problem, lambda: baselines.kat_forward(t.x, t.a, t.b))
    else:
        x = t.x.float()  # the published forward pass saves this copy
        yield Contender("flashkat paper", problem, lambda: baselines.flashkat_backward(t.grad, x, t.a, t.b))
        yield Contender("kat", problem, lambda: baselines.kat_backward(t.grad, x, t.a, t.b))


_BASELINES: tuple[Rival, ...] = (_published, _formula("formula, eager", rational_reference), _compiled)


def _time(
    case: str, direction: str, contenders: list[Contender], plan: Plan, device: str, measure: Measure
) -> list[Row]:
    dtype = contenders[0].problem.dtype
    source = torch.randn(plan.copy_elements, device=device).to(DTYPES[dtype])
    destination = torch.empty_like(source)
    calls: dict[str, Callable[[], object]] = {str(index): each.call for index, each in enumerate(contenders)}
    times = alternate({**calls, "large copy": lambda: destination.copy_(source)}, measure, plan.rounds)
    copy_gb_per_s = 2 * source.nbytes / times["large copy"]["median_us"] / 1e3
    rows = []
    for index, contender in enumerate(contenders):
        time = times[str(index)]
        size = contender.problem.bytes(direction)
        gb_per_s = size / time["median_us"] / 1e3
        rows.append(
            {
                "case": case,
                "direction": direction,
                "contender": contender.name,
                **asdict(contender.problem),
                **time,
                "bytes": size,
                "gb_per_s": round(gb_per_s, 2),
                "copy_gb_per_s": round(copy_gb_per_s, 2),
                "of_copy": round(gb_per_s / copy_gb_per_s, 4),
            }
        )
    return rows


def graph_is_right(device: str = "cuda") -> bool:
    """Return whether a CUDA graph of both passes replays the same bits as plain calls, on a small tensor."""
    t = Tensors(Problem((2, 197, 192), "bf16", "bf16"), device)

    def run() -> list[Tensor]:
        y = torch.ops.flashkat.rational(t.x, t.a, t.b, -1, None)
        return [y, *torch.ops.flashkat.rational_backward(t.grad, t.x, t.a, t.b, -1)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    t.x.copy_(t.x.flip(0) * 0.5)
    t.grad.copy_(t.grad.flip(0) * 2)
    for tensor in captured:
        tensor.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    return all(torch.equal(c, e) for c, e in zip(captured, run(), strict=True))


# Targets


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets of all rows."""
    found: list[Row] = []
    for row in rows:
        if row["contender"] == "ours":
            found += _TARGETS[row["case"]](row, [each for each in rows if each["direction"] == row["direction"]])
    return found


def _default_targets(row: Row, rows: list[Row]) -> Iterator[Row]:
    direction, width = row["direction"], row["shape"][-1]
    if width in _GELU_RATIO[direction]:
        name = f"time over GELU's, {_describe(row)}"
        yield target(name, row["median_us"] / _gelu_time(row, rows), _GELU_RATIO[direction][width])
    if width in _OF_COPY[direction]:
        name = f"share of copy bandwidth, {_describe(row)}"
        yield target(name, row["of_copy"], _OF_COPY[direction][width], at_least=True)


def _autocast_targets(row: Row, rows: list[Row]) -> Iterator[Row]:
    name = f"time over bytes / copy bandwidth, autocast {_describe(row)}"
    yield target(name, 1 / row["of_copy"], _AUTOCAST_OVER_LIMIT)


def _variant_targets(row: Row, rows: list[Row]) -> Iterator[Row]:
    default = next(
        each for each in rows if (each["case"], each["contender"], each["dtype"]) == ("variants", "ours", row["dtype"])
    )
    if row is not default:
        at_equal_bytes = (row["median_us"] / row["bytes"]) / (default["median_us"] / default["bytes"])
        yield target(f"time over the default's, {_describe(row)}", at_equal_bytes, _VARIANT_OVER_DEFAULT)


def _nchw_targets(row: Row, rows: list[Row]) -> Iterator[Row]:
    limit = _NCHW_GELU_RATIO[row["direction"]]
    yield target(f"time over GELU's, NCHW {_describe(row)}", row["median_us"] / _gelu_time(row, rows), limit)


_TARGETS: dict[str, Callable[[Row, list[Row]], Iterator[Row]]] = {
    "default": _default_targets,
    "autocast": _autocast_targets,
    "variants": _variant_targets,
    "nchw": _nchw_targets,
    "outliers": lambda row, rows: iter(()),  # reported without a target
}


def _gelu_time(row: Row, rows: list[Row]) -> float:
    same = ("case", "shape", "dtype")
    return next(r["median_us"] for r in rows if r["contender"] == "gelu" and all(r[k] == row[k] for k in same))


def _describe(row: Row) -> str:
    dtype = row["dtype"] if row["dtype"] == row["out_dtype"] else f"{row['dtype']} to {row['out_dtype']}"
    shape = "x".join(map(str, row["shape"])) if row["dim"] != -1 else f"D={row['shape'][-1]}"
    rows = f"G={row['groups']}, G_a={row['numerator_rows']}"
    return f"{row['direction']}, {shape}, {dtype}, {rows}, m={row['m']}, n={row['n']}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark, write the result and print it."""
    args = arguments("kernels", "Times of the kernels, forward and backward, against GELU, a copy and others.", argv)
    require_gpu()
    plan = QUICK if args.quick else FULL
    graph = requirement("CUDA graph of a (2, 197, 192) forward and backward replays the right bits", graph_is_right())
    rows = collect(plan, "cuda", GpuTimer())
    settings = {
        **asdict(plan),
        "timing": "median over rounds of medians of up to 40 calls (8 ms), L2 flushed, contenders in turn; min, max",
        "copy_bandwidth": "bytes read and written over time, of copy_elements of the dtype of x, timed in turn",
        "inputs": "x and grad ~ N(0, 1), coefficients of swish",
    }
    finish(args.output, "kernels", settings, rows, [*targets(rows), graph])


if __name__ == "__main__":
    main()
