"""Every finite 16-bit value and every float32 power of two, through every start and many coefficients, in float64."""

import pytest
import torch
from torch import Tensor

from flashkat.nn.starts import FUNCTIONS, starting_coefficients

HALVES = [torch.bfloat16, torch.float16]
COUNT = {torch.bfloat16: 65280, torch.float16: 63488}
EPS32 = 2.0**-24
# What may be lost where terms cancel, in units of 2^-24 of their sizes.
CANCELLATION = 4
# A term of db in float32 passes through two products with 1 / Q, two polynomials and up to five products.
STEPS_OF_A_TERM = 8


def _every_value(dtype: torch.dtype) -> Tensor:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    values = values[values.isfinite()]
    assert len(values) == COUNT[dtype]
    return values


def _coefficients(count: int) -> list[tuple[str, Tensor, Tensor]]:
    starts = [(name, *(c.float()[None] for c in starting_coefficients(name))) for name in FUNCTIONS]
    generator = torch.Generator().manual_seed(7)
    return starts + [
        (f"random {i}", torch.randn(1, 6, generator=generator), torch.randn(1, 4, generator=generator))
        for i in range(count)
    ]


def _ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of ``dtype`` at float64 values."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(value.abs().clamp(min=info.smallest_normal))[1] - 1
    return torch.ldexp(torch.full_like(value, info.eps), exponent)


def _assert_within(found: Tensor, value: Tensor, terms: Tensor, ulps: int, factor: float, what: str) -> None:
    allowed = ulps * _ulp(value, found.dtype) + factor * EPS32 * terms
    wrong = ~((found.double() - value).abs() <= allowed)
    overflows = found.isinf() & (found.sign() == value.sign()) & (value.abs() + allowed > torch.finfo(found.dtype).max)
    wrong &= ~overflows
    assert not wrong.any(), f"{what}: {int(wrong.sum())} wrong, first {found[wrong][0]} for {value[wrong][0]}"


def _exact(x: Tensor, g: Tensor, numerator: Tensor, denominator: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Value, slope and every element's terms of da and db (s(b) included), each with the size of what was added."""
    x, g, a, b = x.double(), g.double(), numerator[0].double().tolist(), denominator[0].double().tolist()
    s = torch.where(x < 0, -1.0, 1.0)
    zero = torch.zeros_like(x)
    # A float64 power takes as long as twenty products.
    xs = [x**i for i in range(max(len(a), len(b) + 1))]
    us = [power.abs() for power in xs]
    q = sum((abs(c) * us[j + 1] for j, c in enumerate(b)), zero + 1)
    t = sum(((j + 1) * abs(c) * us[j] for j, c in enumerate(b)), zero) / q
    y = sum((c * xs[i] for i, c in enumerate(a)), zero) / q
    size = sum((abs(c) * us[i] for i, c in enumerate(a)), zero) / q
    dp = sum((i * c * xs[i - 1] for i, c in enumerate(a) if i), zero) / q
    dp_size = sum((i * abs(c) * us[i - 1] for i, c in enumerate(a) if i), zero) / q
    truth = {"value": (y, size), "grad_x": (g * (dp - s * t * y), g.abs() * (dp_size + t * size))}
    for i in range(len(a)):
        term = g * (xs[i] / q)
        truth[f"da_{i}"] = (term, term.abs())
    for j, c in enumerate(b):
        share = us[j + 1] / q * (-1 if c < 0 else 1)
        truth[f"db_{j + 1}"] = (-g * y * share, g.abs() * size * share.abs())
    return truth


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("largest", [2.0**10, torch.inf], ids=["moderate values", "all values"])
@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_every_value(path, dtype, largest, count):
    """Values, slopes, and with a group per element every element's terms: within a step of what is exact, never NaN."""
    if path.interpreted:
        pytest.skip("takes hours; test_dispatch.py has the powers of two")
    x = _every_value(dtype)
    x = x[x.abs() <= largest]
    x = x[: len(x) // 8 * 8].to(path.device)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(dtype).to(path.device)
    for name, a, b in _coefficients(count):
        a, b = a.to(path.device), b.to(path.device)
        truth = _exact(x, g, a, b)

        rows, grad_rows = x.view(-1, 8), g.view(-1, 8)
        found = {"value": path.implementation.forward(rows, a, b, -1, dtype)}
        found["grad_x"] = path.implementation.backward(grad_rows, rows, a, b, -1)[0]
        for what, tensor in found.items():
            _assert_within(tensor.flatten(), *truth[what], 1, CANCELLATION, f"{what}, {name}")

        apart = path.implementation.backward(g[None], x[None], a.expand(len(x), -1), b.expand(len(x), -1), -1)
        _assert_within(apart[0][0], *truth["grad_x"], 1, CANCELLATION, f"grad_x, a group per element, {name}")
        for what, sums in (("da_", apart[1].T), ("db_", apart[2].T)):
            for index, tensor in enumerate(sums, start=int(what == "db_")):
                _assert_within(
                    tensor, *truth[f"{what}{index}"], STEPS_OF_A_TERM, CANCELLATION, f"{what}{index}, {name}"
                )


@pytest.mark.parametrize("largest", [2.0**8, torch.inf], ids=["moderate values", "all values"])
def test_every_float32_power_of_two(path, largest):
    """Values and slopes to within four steps, never NaN; a group for each set of coefficients."""
    if path.interpreted and largest == torch.inf:
        pytest.skip("takes minutes; test_dispatch.py has some of them")
    exponents = torch.arange(-149 if path.handles_subnormal(torch.float32) else -126, 128, dtype=torch.float64)
    sizes = torch.cat([2.0**exponents, torch.tensor([0.0, torch.finfo(torch.float32).max], dtype=torch.float64)])
    x = torch.cat([sizes, -sizes]).float()
    x = x[x.abs() <= largest]
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    sets = _coefficients(100)
    a, b = (torch.cat(coefficients) for coefficients in zip(*(rest for _, *rest in sets), strict=True))
    truths = [_exact(x, g, a[k : k + 1], b[k : k + 1]) for k in range(len(sets))]

    columns, grad_columns = (each[:, None].expand(-1, len(sets)).contiguous().to(path.device) for each in (x, g))
    a, b = a.to(path.device), b.to(path.device)
    value = path.implementation.forward(columns, a, b, -1, torch.float32).cpu()
    grad_x = path.implementation.backward(grad_columns, columns, a, b, -1)[0].cpu()
    for k, (name, *_) in enumerate(sets):
        _assert_within(value[:, k], *truths[k]["value"], 4, CANCELLATION, f"value, {name}")
        _assert_within(grad_x[:, k], *truths[k]["grad_x"], 4, CANCELLATION, f"grad_x, {name}")
