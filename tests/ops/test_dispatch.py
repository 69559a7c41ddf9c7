"""Every path of the operator against float64 and exact arithmetic, on inputs that provoke it."""

import math
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_close, exact, exact_scalar
from torch._subclasses import FakeTensorMode

from flashkat.nn.starts import FUNCTIONS, starting_coefficients
from flashkat.ops import dispatch
from flashkat.ops.cpu import native

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Rounding steps that the arithmetic may add to each term: Horner, division, and the tree of a sum.
FACTOR = 24


def _run(path, g, x, a, b, dim):
    g, x, a, b = (tensor.to(path.device) for tensor in (g, x, a, b))
    value = path.implementation.forward(x, a, b, dim, x.dtype)
    return dict(
        zip(
            ("value", "grad_x", "grad_numerator", "grad_denominator"),
            (value, *path.implementation.backward(g, x, a, b, dim)),
            strict=True,
        )
    )


def _check(path, g, x, a, b, dim):
    truths = exact(g, x, a, b, dim)
    for name, found in _run(path, g, x, a, b, dim).items():
        truth = truths[name]
        # One more step of the output dtype where the interpreter does not round to nearest.
        truth.terms = (
            truth.terms
            + (path.steps(found.dtype) - 1) * 2.0**24 / FACTOR * torch.finfo(found.dtype).eps * truth.value.abs()
        )
        assert_close(found, truth, FACTOR, name)


@st.composite
def layouts(draw):
    """A tensor's shape with D channels at ``dim``, and how to lay it out in memory."""
    groups = draw(st.integers(1, 5))
    width = draw(st.integers(1, 7))
    before = draw(st.lists(st.integers(0, 5), max_size=3))
    after = draw(st.lists(st.integers(0, 5), max_size=2))
    layout = draw(st.sampled_from(["contiguous", "permuted", "sliced", "expanded", "flipped order"]))
    return groups, [*before, groups * width, *after], len(before), layout


def _arrange(values, layout):
    """The same values under other strides, or (expanded) values repeated with stride 0."""
    if layout == "permuted" and values.ndim > 1:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        padded = torch.full([2 * size + 1 for size in values.shape], float("nan"), dtype=values.dtype)
        window = padded[tuple(slice(1, None, 2) for _ in values.shape)]
        return window.copy_(values)
    if layout == "expanded":
        return values[:1].expand_as(values)
    if layout == "flipped order" and values.ndim > 2:
        order = [*range(1, values.ndim), 0]
        return values.permute(order).contiguous().permute([values.ndim - 1, *range(values.ndim - 1)])
    return values


@given(
    layout=layouts(),
    grad_layout=st.sampled_from(["contiguous", "permuted", "sliced", "expanded"]),
    m=st.integers(1, 8),
    n=st.integers(0, 7),
    shared=st.sampled_from([(True, False), (False, True), (True, True), (False, False)]),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-6, 0.1, 1.0, 3.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_matches_float64_for_any_shape_layout_and_degree(path, layout, grad_layout, m, n, shared, dtype, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    groups, shape, dim, x_layout = layout
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
    g = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    a = torch.randn(1 if shared[0] else groups, m, generator=generator)
    b = torch.randn(1 if shared[1] else groups, n, generator=generator)
    _check(path, _arrange(g, grad_layout), _arrange(x, x_layout), a, b, dim)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [-1, 1])
def test_matches_float64_across_many_tiles(path, dtype, dim):
    """More positions and channels than a tile holds, both ragged at the end."""
    generator = torch.Generator().manual_seed(7)
    # The interpreter's tiles are as large, and each takes it long.
    batch, groups = (2, 3) if path.interpreted else (3, 9)
    x = torch.randn(batch, 15 * groups, 61, generator=generator, dtype=torch.float64).movedim(1, dim).to(dtype)
    g = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype)
    a, b = torch.randn(1, 6, generator=generator), torch.randn(groups, 4, generator=generator)
    _check(path, g, x, a, b, dim)


def test_coefficients_of_any_dtype_are_read_exactly(path):
    generator = torch.Generator().manual_seed(3)
    x, g = torch.randn(2, 5, 8, generator=generator).unbind(0)
    for dtype in DTYPES:
        a, b = (torch.randn(4, k, generator=generator).to(dtype) for k in (5, 3))
        found = _run(path, g, x, a, b, -1)
        assert_close(found["value"], exact(g, x, a, b, -1)["value"], FACTOR, "value")
        assert found["grad_numerator"].dtype == dtype
        assert found["grad_denominator"].dtype == dtype


def test_zeros_and_sign_changes_take_the_documented_derivative(path):
    """s(0) = +1: with b = 0 (the identity's start) the denominator has a gradient, and F'(0) exists."""
    x = torch.tensor([[0.0, -0.0, 1.0, -2.0]])
    a, b = torch.tensor([[0.5, 1.0, 0.25]]), torch.tensor([[0.0, -0.0]])
    g = torch.ones_like(x)
    _check(path, g, x, a, b, -1)
    assert (_run(path, g, x, a, b, -1)["grad_denominator"] != 0).all()


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (2, 3, 0)])
def test_empty_tensors_give_empty_results_and_zero_gradients(path, shape):
    x = torch.empty(shape)
    found = _run(path, x, x, torch.ones(1, 6), torch.ones(4, 4), -1)
    assert found["value"].shape == found["grad_x"].shape == x.shape
    assert found["grad_numerator"].shape == (1, 6)
    assert found["grad_denominator"].shape == (4, 4)
    assert not found["grad_numerator"].any()
    assert not found["grad_denominator"].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "layout", "dim", "groups"),
    [
        ((300, 48), "contiguous", -1, 8),
        ((3, 11, 40), "sliced", -1, 8),  # groups of 5
        ((2, 24, 7, 9), "contiguous", 1, 8),
        ((2, 24, 7, 9), "permuted", 1, 3),
        ((32, 24), "contiguous", -1, 24),
    ],
)
def test_same_input_gives_the_same_bits(path, dtype, shape, layout, dim, groups):
    if path.interpreted:
        pytest.skip("the interpreter adds in one order")
    generator = torch.Generator().manual_seed(1)
    x, g = (_arrange(torch.randn(shape, generator=generator).to(dtype), layout) for _ in range(2))
    x[0] *= 100
    a, b = torch.randn(1, 6, generator=generator), torch.randn(groups, 4, generator=generator)
    first, second = (_run(path, g, x, a, b, dim) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


def _powers_of_two(dtype, subnormal, step=3):
    """Both signs of powers of two over the whole exponent range, the largest value and zeros included."""
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * (info.eps if subnormal else 1)
    low, high = math.frexp(smallest)[1] - 1, math.frexp(info.max)[1] - 1
    sizes = [2.0**e for e in range(low, high, 37 if dtype == torch.float64 else step)] + [info.max, 0.0]
    return torch.tensor([sign * size for size in sizes for sign in (1, -1)], dtype=torch.float64).to(dtype)


def _within(found, truth, terms, dtype, ulps, floor=0.0, factor=8):
    """Whether a float is the exact value to within some ulps of its dtype plus cancellation, or overflows rightly."""
    if math.isnan(found):
        return False
    info = torch.finfo(dtype)
    allowed = (
        ulps * Fraction(info.eps) * abs(truth)
        + Fraction(factor) * Fraction(2.0**-53 if dtype == torch.float64 else 2.0**-24) * terms
        + 2 * Fraction(info.smallest_normal) * Fraction(info.eps)
        + Fraction(floor)
    )
    if math.isinf(found):
        return abs(truth) + allowed >= Fraction(info.max) and (found > 0) == (truth > 0)
    return abs(Fraction(found) - truth) <= allowed


STARTS = {name: tuple(c.float().tolist() for c in starting_coefficients(name)) for name in FUNCTIONS if name != "silu"}
WILD = {
    "random": ([0.3, -1.2, 0.7, 0.1, -0.4, 0.9], [0.5, -1.5, 0.2, -0.8]),
    "leading zeros": ([0.0, 2.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]),
    "huge": ([3e38, -1e38, 2e38], [3e38, 1e38]),
    "tiny": ([1e-38, 1e-40, -1e-45, 1e-38], [1e-45, 1e-38]),
    "far apart": ([1e-30, 1e30, -1e-30, 1e20], [1e-35, 1e30, 1e-20]),
    "polynomial": ([1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], []),
    "reciprocal": ([1.0], [0.0, 1.0, 0.0, 1e-10, 0.0, 1.0, 2.0]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coefficients", [*STARTS.items(), *WILD.items()], ids=lambda item: item[0])
def test_finite_in_finite_out_over_the_whole_range(path, coefficients, dtype):
    """The exact value's neighbourhood or the infinity it overflows to, never NaN, for values and slopes."""
    if path.interpreted and coefficients[0] in STARTS.keys() - {"swish"}:
        pytest.skip("slow; the next test has them")
    _check_whole_range(path, coefficients, dtype)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the kernels themselves")
@pytest.mark.parametrize("path", [("triton", "cpu")], ids=["triton-interpreted"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coefficients", STARTS.items(), ids=lambda item: item[0])
def test_every_start_is_finite_where_triton_is_interpreted(path, coefficients, dtype):
    _check_whole_range(path, coefficients, dtype)


def _check_whole_range(path, coefficients, dtype):
    name, (numerator, denominator) = coefficients
    # Exact values of all exponents take a while; those of 16 bits are tested one by one elsewhere.
    every = dtype == torch.float32 and name in ("swish", "random")
    x = _powers_of_two(dtype, path.handles_subnormal(dtype), step=1 if every else 3)
    a, b = torch.tensor([numerator]), torch.tensor([denominator]).reshape(1, -1)
    # The compiled path takes a wild value's group the careful way, others what is next to it, whatever the groups.
    dim = 0 if path.implementation is native else -1
    rows = b.expand(len(x) if dim == 0 else 1, -1).contiguous()
    if path.interpreted:  # in few tiles, each of which takes it long
        found = _run(path, torch.ones_like(x)[None], x[None], a, rows, 0)
    else:
        found = _run(path, torch.ones_like(x)[:, None], x[:, None], a, rows, dim)
    floor = 0.0 if path.handles_subnormal(dtype) else torch.finfo(dtype).smallest_normal
    ulps = 4 * path.steps(dtype) if dtype in (torch.float32, torch.float64) else path.steps(dtype)
    for value, slope, point in zip(found["value"].flatten(), found["grad_x"].flatten(), x, strict=True):
        truth = exact_scalar(point.item(), a[0].tolist(), b[0].tolist(), shares=False)
        assert _within(value.item(), truth["value"], truth["value_terms"], dtype, ulps, floor, 4), (point, value)
        assert _within(slope.item(), truth["slope"], truth["slope_terms"], dtype, ulps, floor, 4), (point, slope)


@pytest.mark.parametrize("dtype", DTYPES)
def test_coefficient_gradients_of_huge_inputs_are_right_or_rightly_infinite(path, dtype):
    a, b = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.5]]), torch.tensor([[0.0, 0.3, 0.0, 1e-3]])
    every = _powers_of_two(dtype, path.handles_subnormal(dtype))[:: 15 if path.interpreted else 5]
    # Each alone, or a group each where a call takes long: those of moderate size and all.
    for x in [every[every.abs() < 100], every] if path.interpreted else every.split(1):
        found = _run(path, torch.ones_like(x)[None], x[None], a.expand(len(x), -1), b.expand(len(x), -1), -1)
        for point, da, db in zip(x, found["grad_numerator"], found["grad_denominator"], strict=True):
            truth = exact_scalar(point.item(), a[0].tolist(), b[0].tolist())
            for i, value in enumerate(da):
                assert _within(value.item(), truth[f"da{i}"], abs(truth[f"da{i}"]), torch.float32, 4), (point, i)
            for j, value in enumerate(db):
                assert _within(value.item(), truth[f"db{j}"], truth[f"db{j}_terms"], torch.float32, 4), (point, j)


def test_overflowing_gradients_that_cancel_are_not_nan(path):
    x = torch.tensor([[1e30], [-1e30], [1e30], [-1e30]])
    a, b = torch.tensor([[0.0, 1.0, 0.0, 0.0]]), torch.zeros(1, 4)
    found = _run(path, torch.ones_like(x), x, a, b, -1)
    assert not any(tensor.isnan().any() for tensor in found.values())
    assert found["grad_numerator"][0].tolist() == [4.0, 0.0, math.inf, 0.0]


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_gradients_of_any_size_scale_the_result(path, size):
    generator = torch.Generator().manual_seed(5)
    x, g = torch.randn(2, 64, 16, generator=generator).unbind(0)
    a, b = torch.randn(1, 6, generator=generator), torch.randn(4, 4, generator=generator)
    _check(path, g * size, x, a, b, -1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [1.0, 1e30])
def test_bad_input_stays_visible(path, bad, size):
    """A NaN or infinity is not laundered into a finite number, on either way through the kernels."""
    x = torch.full((4, 8), size)
    x[2, 3] = bad
    found = _run(path, torch.ones_like(x), x, torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.5, 0.5]]), -1)
    assert found["value"][2, 3].isnan()
    assert found["value"].isfinite().sum() == x.numel() - 1


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_result_keeps_the_memory_format(path, memory_format):
    x = torch.randn(2, 8, 3, 5).to(memory_format=memory_format)
    found = _run(path, x, x, torch.ones(1, 6), torch.ones(4, 4), 1)
    assert found["value"].stride() == x.stride()
    assert found["grad_x"].stride() == x.stride()


def test_output_dtype_is_the_one_asked_for(path):
    x = torch.randn(4, 8, device=path.device)
    a, b = torch.randn(1, 6, device=path.device), torch.randn(4, 4, device=path.device)
    wide = path.implementation.forward(x, a, b, -1, torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        narrow = path.implementation.forward(x, a, b, -1, dtype)
        assert narrow.dtype == dtype
        torch.testing.assert_close(narrow.float(), wide, rtol=torch.finfo(dtype).eps, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), [((3, 5, 140), 28), ((17, 6), 6), ((2, 50, 26), 13), ((4, 33), 11)])
def test_groups_whose_width_is_no_multiple_of_a_vector(path, shape, groups, dtype):
    generator = torch.Generator().manual_seed(len(shape) + groups)
    g, x = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    a, b = (torch.randn(rows, count, generator=generator) for rows, count in ((1, 6), (groups, 4)))
    _check(path, g, x, a, b, -1)


@pytest.mark.gpu
def test_gpu_takes_the_triton_path():
    assert dispatch.choose_path(torch.device("cuda:0")).name == "triton"


@pytest.fixture
def choose(monkeypatch):
    """Choose a path for a device, and forget it."""
    dispatch.choose_path.cache_clear()
    yield lambda kind: dispatch.choose_path(torch.device(kind))
    dispatch.choose_path.cache_clear()


def test_a_cpu_takes_compiled_code_where_there_is_some(choose, monkeypatch, native_library):
    assert (choose("cpu").name, choose("cpu").implementation) == ("native", native)
    dispatch.choose_path.cache_clear()
    monkeypatch.setattr(native, "load", lambda: (None, "no compiler"))
    assert choose("cpu").name == "aten"
    assert "no compiler" in choose("cpu").reason


def test_other_devices_take_pytorchs_operators_in_silence(choose, recwarn):
    assert choose("meta").name == choose("xpu").name == "aten"
    assert not recwarn


@pytest.mark.parametrize(("has_triton", "capability"), [(False, (9, 0)), (True, (7, 5)), (True, (9, 0))])
def test_a_gpu_says_once_why_it_does_without_kernels(choose, monkeypatch, recwarn, has_triton, capability):
    pytest.importorskip("triton")
    if not has_triton:
        monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for _ in range(2):
        found = choose("cuda:0")
    if has_triton and capability >= (8, 0):
        assert (found.name, len(recwarn)) == ("triton", 0)
        assert found.implementation is dispatch.triton_module("rational")
    else:
        assert (found.name, len(recwarn)) == ("aten", 1)
        assert ("not installed" if not has_triton else "7.5") in str(recwarn[0].message)


def test_nothing_fuses_on_a_cpu(monkeypatch):
    monkeypatch.setattr(dispatch, "is_triton", lambda device: True)
    assert not dispatch.fuses(torch.ones(2))
    with FakeTensorMode():
        assert dispatch.fuses(torch.ones(2, device="cuda"))


@pytest.mark.parametrize(("capability", "fast"), [((8, 0), True), ((8, 6), False), ((9, 0), True), ((12, 0), False)])
def test_fast_float64(monkeypatch, capability, fast):
    dispatch.has_fast_float64.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert dispatch.has_fast_float64(torch.device("cuda:0")) is fast
    assert not dispatch.has_fast_float64(torch.device("cpu"))
    dispatch.has_fast_float64.cache_clear()
