"""What is particular to the compiled path: threads, forks, blocks, rounding to 16 bits, and doing without it."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import assert_close, exact
from processes import from_threads
from rational_oracle import with_gradient

from flashkat.ops.aten import windows as aten
from flashkat.ops.cpu import native

FACTOR = 24
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def library(request):
    request.getfixturevalue("native_library")


def _run(g, x, a, b, dim):
    return native.forward(x, a, b, dim, x.dtype), *native.backward(g, x, a, b, dim)


def _check(*inputs):
    for found, (name, truth) in zip(_run(*inputs), exact(*inputs).items(), strict=True):
        assert_close(found, truth, FACTOR, name)


def _equal(left, right):
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("shape", "dim"), [((8, 197, 96), -1), ((3, 96, 37, 11), 1), ((2, 96, 1031), 1), ((700, 96), 1), ((700, 300), 1)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_many_blocks_and_ragged_ends(shape, dim, dtype):
    _check(*with_gradient(shape, dim=dim, dtype=dtype))


@pytest.mark.parametrize(("shape", "dim"), [((8, 197, 96), -1), ((4, 96, 400), 1)])
def test_the_number_of_threads_does_not_change_a_bit(threads, shape, dim):
    inputs = with_gradient(shape, dim=dim)
    threads(1)
    expected = _run(*inputs)
    for count in (2, 3, 5):
        threads(count)
        assert _equal(_run(*inputs), expected)


@pytest.mark.skipif(
    sys.platform != "linux" or "OpenMP" not in torch.__config__.parallel_info(), reason="PyTorch without GNU's OpenMP"
)
def test_finds_the_threads_that_pytorch_runs_on():
    assert native._openmp() is not None


def test_several_threads_may_call_at_once(threads):
    threads(2)
    inputs = with_gradient((8, 197, 96))
    expected = _run(*inputs)
    assert all(_equal(results, expected) for results in from_threads(4, lambda: _run(*inputs)))


def _in_child(connection, inputs):
    # As in a worker of PyTorch's data loaders: OpenMP's threads do not survive a fork.
    torch.set_num_threads(1)
    connection.send_bytes(_run(*inputs)[1].numpy().tobytes())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_on_one_thread_works(threads):
    threads(2)
    inputs = with_gradient((8, 197, 96))
    expected = _run(*inputs)[1].numpy().tobytes()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(sender, inputs), daemon=True)
    child.start()
    assert receiver.poll(60), "the child hangs"
    assert receiver.recv_bytes() == expected
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize(("shape", "dim", "place"), [((8, 197, 96), -1, (5, 100, 7)), ((4, 96, 400), 1, (2, 50, 399))])
@pytest.mark.parametrize("wild", [1e30, -3e38, float("nan")])
def test_one_outlier_leaves_other_blocks_as_they_are(shape, dim, place, wild):
    g, x, a, b, dim = with_gradient(shape, dim=dim)
    before = _run(g, x, a, b, dim)
    x[place] = wild
    after = _run(g, x, a, b, dim)
    same = [(one == other).double().mean() for one, other in zip(before[:2], after[:2], strict=True)]
    assert min(same) > 0.5
    for one, other in zip(before[:2], after[:2], strict=True):
        others = torch.ones(x.shape, dtype=torch.bool)
        others[place] = False
        torch.testing.assert_close(one[others], other[others])
    expected = aten.forward(x, a, b, dim, x.dtype), *aten.backward(g, x, a, b, dim)
    for found, truth in zip(after, expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_is_read_and_written_as_pytorch_does(dtype):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = every[every.isfinite()].reshape(1, -1)
    half, none = torch.tensor([[0.0, 0.5]]), torch.zeros(1, 0)
    assert torch.equal(native.forward(finite, half, none, -1, torch.float32), finite.float() / 2)
    # Halfway between two of them, next to that, and beyond the largest.
    near = torch.cat(
        [finite.float() * scale for scale in (1, 1 + 2**-9, 1 + 2**-12, 1 + 2**-8 + 2**-20, 1.002, 1.5)], 1
    )
    near = near.clamp(-3e38, 3e38)
    one = torch.tensor([[0.0, 1.0]])
    found = native.forward(near, one, none, -1, dtype)
    assert torch.equal(found.view(torch.int16), (near + 0.0).to(dtype).view(torch.int16))
    assert native.forward(torch.full((1, 1), torch.nan), one, none, -1, dtype).isnan().all()


def test_zeros_without_memory():
    _, x, a, b, dim = with_gradient((64, 16))
    empty = torch._efficientzerotensor(x.shape)
    assert torch.equal(native.forward(empty, a, b, dim, x.dtype), native.forward(0 * x, a, b, dim, x.dtype))


def test_more_coefficients_than_the_library_takes():
    _check(*with_gradient((40, 16), m=18, n=3))


def test_sums_are_nearly_as_accurate_as_the_terms():
    """The target: at most 1.2 times the error of the same float32 terms, summed exactly. Here: of a smaller sum."""
    generator = torch.Generator().manual_seed(2)
    x, g = torch.randn(2, 60000, 16, generator=generator).unbind(0)
    _, found, _ = native.backward(g, x, torch.tensor([[0.0, 1.0]]), torch.zeros(1, 1), -1)
    truth = torch.stack([g.double().sum(), (g.double() * x).sum()])
    size = torch.stack([g.double().norm(), (g.double() * x).norm()])
    assert ((found[0].double() - truth).abs() < 2**-23 * (truth.abs() + 2 * size)).all()


WITHOUT = """
import torch, flashkat
from flashkat.ops.dispatch import choose_path
path = choose_path(torch.device("cpu"))
assert path.name == "aten" and "compiler" in path.reason, path
flashkat.rational(torch.randn(4, 8), torch.ones(1, 6), torch.ones(4, 4)).sum()
"""


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the sources")
def test_a_build_without_a_compiler_succeeds_and_falls_back(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(tmp_path / "built")]
    subprocess.run(command, cwd=source, env={**os.environ, "CC": "false"}, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "built/flashkat/ops/cpu/native.py").exists()
    assert not list((tmp_path / "built").rglob("*.so"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "built")}
    subprocess.run([sys.executable, "-c", WITHOUT], env=environment, check=True, timeout=120)
