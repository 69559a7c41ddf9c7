"""How far from the exact value are the gradients of the coefficients, and are they the same bits every run?

The set-up follows the table of rounding errors in the FlashKAT paper (Raffel & Chen, AAAI 2026). The tensor x is
float32 (128, 197, 768), and everything is drawn from N(0, 1). The errors are the mean absolute error and the variance
of the error against float64. The *floor* is the error of float32 terms summed exactly. The terms are g x^i / Q and
-g P / Q^2 |x|^j.

The drawn coefficients change the size of the sums and their errors by up to a factor of five. So an error is the
median over draws. The result also has the mean and the maximum.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from flashkat.ops import rational_reference

from .parts.common import Row, arguments, finish, require_gpu, requirement, target

__all__ = ["FULL", "Plan", "coefficient_sums", "collect", "targets"]

_GROUPS, _M, _N = 8, 6, 4
_LARGEST_ERROR = 7e-5
_OVER_FLOOR = 1.2
_RUNS = 5
_CHUNK_ROWS = 4096

Sums = tuple[Tensor, Tensor]
Contender = Callable[[Tensor, Tensor, Tensor, Tensor], Sums]


@dataclass(frozen=True)
class Plan:
    """The sizes to run. All contenders run at the first batch size, and those in ``growing`` at every one."""

    batches: tuple[int, ...] = (128, 256, 512, 1024)
    tokens: int = 197
    width: int = 768
    seeds: int = 15
    growing: tuple[str, ...] = ("ours", "flashkat paper", "floor")


FULL = Plan()
QUICK = replace(FULL, batches=(128,), seeds=2)


def coefficient_sums(grad: Tensor, x: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype) -> Sums:
    """Compute the gradients of a (G, m) and b (G, n), with terms in ``dtype`` and sums in float64.

    This is written from the formulas, independently of the operator. It works in chunks of rows, so that any size
    fits in memory.
    """
    groups = len(b)
    a, b = a.to(dtype)[:, None], b.to(dtype)[:, None]
    sums = torch.zeros(groups, a.shape[-1] + b.shape[-1], dtype=torch.float64, device=x.device)
    rows = (tensor.reshape(-1, groups, x.shape[-1] // groups).split(_CHUNK_ROWS) for tensor in (grad, x))
    for g, v in zip(*rows, strict=True):
        g, v = g.to(dtype), v.to(dtype)
        p, q = torch.zeros_like(v), torch.zeros_like(v)
        for coefficient in a.flip(-1).unbind(-1):
            p = p * v + coefficient
        for coefficient in b.flip(-1).unbind(-1):
            q = (q + coefficient.abs()) * v.abs()
        q = q + 1
        term = g / q
        terms = [term := term * v if i else term for i in range(a.shape[-1])]
        term = -(g / q) * (p / q)
        terms += [term := term * v.abs() for _ in range(b.shape[-1])]
        sums += torch.stack([term.double().sum((0, 2)) for term in terms], dim=-1)
    signs = torch.where(b[:, 0] < 0, -1.0, 1.0)
    return sums[:, : a.shape[-1]], sums[:, a.shape[-1] :] * signs


def _ours(grad: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Sums:
    _, grad_a, grad_b = torch.ops.flashkat.rational_backward(grad, x, a, b, -1)
    return grad_a, grad_b


def _flashkat(grad: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Sums:
    from .parts import baselines

    return baselines.flashkat_backward(grad, x, a, b)[1:]


def _kat(grad: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Sums:
    from .parts import baselines

    return baselines.kat_backward(grad, x, a, b)[1:]


def _formula(grad: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Sums:
    a, b = (tensor.detach().requires_grad_() for tensor in (a, b))
    grad_a, grad_b = torch.autograd.grad(rational_reference(x, a, b), (a, b), grad)
    return grad_a, grad_b


def _floor(grad: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Sums:
    return coefficient_sums(grad, x, a, b, torch.float32)


CONTENDERS: dict[str, Contender] = {
    "ours": _ours,
    "flashkat paper": _flashkat,
    "kat": _kat,
    "formula, eager": _formula,
    "floor": _floor,
}


def collect(plan: Plan, device: str) -> list[Row]:
    """Measure the errors over all seeds: a row per batch size and contender."""
    rows = []
    for batch in plan.batches:
        print(f"batch {batch}", file=sys.stderr, flush=True)
        names = [name for name in CONTENDERS if batch == plan.batches[0] or name in plan.growing]
        errors: dict[str, list[Sums]] = {name: [] for name in names}
        repeatable = {}
        for seed in range(plan.seeds):
            tensors = _tensors(plan, batch, seed, device)
            exact = coefficient_sums(*tensors, torch.float64)
            for name in names:
                found = CONTENDERS[name](*tensors)
                errors[name].append((found[0].double() - exact[0], found[1].double() - exact[1]))
                if seed == 0:
                    repeatable[name] = all(_same_bits(found, CONTENDERS[name](*tensors)) for _ in range(_RUNS - 1))
        for name in names:
            row: Row = {"batch": batch, "contender": name}
            for index, gradient in enumerate(("da", "db")):
                means = [float(error[index].abs().mean()) for error in errors[name]]
                variances = [float(error[index].var()) for error in errors[name]]
                row[f"{gradient}_error"] = _rounded(statistics.median(means))
                row[f"{gradient}_error_mean"] = _rounded(statistics.mean(means))
                row[f"{gradient}_error_max"] = _rounded(max(means))
                row[f"{gradient}_variance"] = _rounded(statistics.median(variances))
            rows.append({**row, "same_bits": repeatable[name]})
    return rows


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _tensors(plan: Plan, batch: int, seed: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    shape = batch, plan.tokens, plan.width
    return normal(*shape), normal(*shape), normal(_GROUPS, _M), normal(_GROUPS, _N)


def _same_bits(left: Sums, right: Sums) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets: small errors, close to the floor, and the same bits in every run."""
    batch = min(row["batch"] for row in rows)
    ours, floor = (
        next(row for row in rows if row["batch"] == batch and row["contender"] == name) for name in ("ours", "floor")
    )
    found = []
    for gradient in ("da", "db"):
        error = ours[f"{gradient}_error"]
        found.append(target(f"mean absolute error of {gradient}", error, _LARGEST_ERROR))
        found.append(target(f"error of {gradient} over the floor's", error / floor[f"{gradient}_error"], _OVER_FLOOR))
    same = all(row["same_bits"] for row in rows if row["contender"] == "ours")
    return [*found, requirement(f"the same bits in {_RUNS} runs", same)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark, write the result and print it."""
    args = arguments("rounding", "Rounding errors of the coefficients' gradients, against float64.", argv)
    require_gpu()
    plan = QUICK if args.quick else FULL
    rows = collect(plan, "cuda")
    settings = {
        **asdict(plan),
        "inputs": f"float32; grad, x, a ({_GROUPS}, {_M}) and b ({_GROUPS}, {_N}) ~ N(0, 1)",
        "error": "mean absolute error and variance of the error over coefficients, median over seeds (mean, max)",
        "same_bits": f"{_RUNS} runs of the first seed",
    }
    finish(args.output, "rounding", settings, rows, targets(rows))


if __name__ == "__main__":
    main()
