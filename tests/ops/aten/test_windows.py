"""What is particular to the path of PyTorch's own operators: its windows, its scratch, its threads."""

import pytest
import torch
from oracle import assert_close, exact
from processes import from_threads
from rational_oracle import with_gradient
from torch.profiler import ProfilerActivity, profile

from flashkat.ops.aten import windows as aten
from flashkat.ops.cpu import native

FACTOR = 24


def _run(g, x, a, b, dim):
    return aten.forward(x, a, b, dim, x.dtype), *aten.backward(g, x, a, b, dim)


def _check(*inputs):
    for found, (name, truth) in zip(_run(*inputs), exact(*inputs).items(), strict=True):
        assert_close(found, truth, FACTOR, name)


@pytest.fixture
def small_chunks(monkeypatch):
    """Windows of a few elements, so that a small tensor has many."""

    def shrink(elements):
        monkeypatch.setattr(aten, "_SMALLEST_CHUNK_ELEMENTS", elements)
        monkeypatch.setattr(aten, "_CHUNK_ELEMENTS_PER_THREAD", 0)
        monkeypatch.setattr(aten, "_SCALED_CHUNK_ELEMENTS", max(1, elements // 4))

    return shrink


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 8, 5), (197, 12, 1), (1000, 3, 1), (2, 5, 300), (1, 700, 1)])
@pytest.mark.parametrize("elements", [1, 2, 7, 64, 100, 2**20])
def test_windows_cover_every_element_once_and_keep_the_limit(shape, elements):
    count = torch.zeros(shape)
    for window in aten.windows(aten._whole(count), elements):
        count[window] += 1
        assert 1 <= count[window].numel() <= elements
        assert count[window].is_contiguous()
    assert (count == 1).all()


@pytest.mark.parametrize("elements", [1, 10, 64, 333])
@pytest.mark.parametrize(("shape", "dim"), [((67, 12), -1), ((3, 12, 29), 1), ((2, 12, 4, 4), 1), ((12,), 0)])
def test_results_do_not_depend_on_where_windows_end(small_chunks, shape, dim, elements):
    small_chunks(elements)
    _check(*with_gradient(shape, dim=dim))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_outlier_leaves_all_other_results_as_they_are(small_chunks, dtype):
    small_chunks(64)
    g, x, a, b, dim = with_gradient((64, 12), dtype=dtype)
    before = aten.forward(x, a, b, dim, dtype)
    x[17, 5] = 1e30
    after = aten.forward(x, a, b, dim, dtype)
    torch.testing.assert_close(after[18:], before[18:])
    assert after[17, 5].isfinite()
    assert all(tensor.isfinite().all() for tensor in aten.backward(g, x, a, b, dim)[:1])


def test_channels_last_in_memory_is_as_good_as_channels_first():
    g, x, a, b, dim = with_gradient((2, 12, 9, 5), dim=1)
    first = _run(g, x, a, b, dim)
    last = _run(*(t.to(memory_format=torch.channels_last) for t in (g, x)), a, b, dim)
    mixed = _run(g, x.to(memory_format=torch.channels_last), a, b, dim)
    for left, right, third in zip(first, last, mixed, strict=True):
        torch.testing.assert_close(left, right)
        torch.testing.assert_close(left, third)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_threads_gives_the_right_result_and_the_same_bits_again(threads, count):
    threads(count)
    inputs = with_gradient((520, 96))
    _check(*inputs)
    for left, right in zip(_run(*inputs), _run(*inputs), strict=True):
        assert torch.equal(left, right)


def test_several_threads_may_call_at_once():
    inputs = with_gradient((300, 96))
    expected = _run(*inputs)
    for results in from_threads(4, lambda: _run(*inputs)):
        for left, right in zip(expected, results, strict=True):
            torch.testing.assert_close(left, right)


def test_inputs_are_left_untouched():
    """Not even counted as changed, which autograd would refuse."""
    inputs = with_gradient((40, 12))
    _run(*inputs)
    assert [tensor._version for tensor in inputs[:4]] == [0] * 4


def test_inference_mode():
    _, x, a, b, dim = with_gradient((40, 12))
    expected = aten.forward(x, a, b, dim, x.dtype)
    with torch.inference_mode():
        assert torch.equal(aten.forward(x, a, b, dim, x.dtype), expected)


def _extra_memory(call, results):
    """The most bytes that ``call`` held at once, less those of its results."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak - results


@pytest.mark.parametrize(("shape", "dim"), [((8, 197, 768), -1), ((8, 768, 196), 1)])
def test_extra_memory_stays_under_half_of_x(shape, dim):
    g, x, a, b, dim = with_gradient(shape, dim=dim)
    size = x.numel() * x.element_size()
    assert 0 < _extra_memory(lambda: aten.forward(x, a, b, dim, x.dtype), size) < size / 2
    assert 0 < _extra_memory(lambda: aten.backward(g, x, a, b, dim), size) < size / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), [((8, 197, 768), -1), ((8, 768, 196), 1)])
def test_the_compiled_path_takes_much_less(native_library, shape, dim, dtype):
    g, x, a, b, dim = with_gradient(shape, dim=dim, dtype=dtype)
    size = x.numel() * x.element_size()
    assert 0 < _extra_memory(lambda: native.forward(x, a, b, dim, x.dtype), size) < size / 20
    assert 0 < _extra_memory(lambda: native.backward(g, x, a, b, dim), size) < size / 20


def test_sums_over_many_positions_stay_accurate():
    """The rounding errors of the sums are of the size of those of the terms that are summed."""
    generator = torch.Generator().manual_seed(2)
    x, g = torch.randn(2, 60000, 16, generator=generator).unbind(0)
    a, b = torch.tensor([[0.0, 1.0]]), torch.zeros(1, 1)
    _, found, _ = aten.backward(g, x, a, b, -1)
    truth = torch.stack([g.double().sum(), (g.double() * x).sum()])
    size = torch.stack([g.double().norm(), (g.double() * x).norm()])
    assert ((found[0].double() - truth).abs() < 2**-23 * (truth.abs() + 2 * size)).all()
