"""Launches: what is compiled once is used again where it fits, and Triton's internals only where they are known."""

import pytest
import torch
from oracle import assert_close, exact
from rational_oracle import leaves

import flashkat

pytest.importorskip("triton")
from flashkat.ops.triton import launcher


@pytest.mark.gpu
def test_launches_that_are_used_again_fit_what_they_get():
    """Alignment and dtypes change between calls of one shape, in every order."""
    generator = torch.Generator("cuda").manual_seed(0)
    memory = torch.randn(2, 64 * 48 + 1, device="cuda", generator=generator)
    coefficients = torch.randn(8, 6, device="cuda", generator=generator), torch.randn(8, 4, device="cuda")
    for _ in range(2):
        for start in (0, 1):
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                for coefficient_dtype in (torch.float32, torch.bfloat16, torch.float64):
                    x, g = memory.to(dtype)[:, start : start + 64 * 48].reshape(2, 64, 48)
                    a, b = (tensor.to(coefficient_dtype) for tensor in coefficients)
                    x, a, b = (tensor.requires_grad_() for tensor in (x, a, b))
                    y = flashkat.rational(x, a, b)
                    found = y, *torch.autograd.grad(y, (x, a, b), g)
                    truths = exact(g, x.detach(), a.detach(), b.detach(), -1).values()
                    for tensor, truth in zip(found, truths, strict=True):
                        tensor = tensor.detach()
                        if dtype != torch.float64 and tensor.dtype == torch.float64:
                            tensor = tensor.float()  # as the arithmetic was
                        assert_close(tensor, truth, 24, f"{start} {dtype} {coefficient_dtype}")


@pytest.mark.gpu
def test_cuda_graph_replay():
    x, a, b = leaves("cuda", torch.float32, shape=(2, 197, 192), groups=8)

    def step():
        return [*torch.autograd.grad(flashkat.rational(x, a, b).sum(), (x, a, b))]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.normal_()
    graph.replay()
    for found, expected in zip(captured, step(), strict=True):
        assert torch.equal(found, expected)


class Kernel:
    """Notes the calls of a kernel, and those of what it is compiled to."""

    function = packed_metadata = None

    def __init__(self):
        self.calls = []

    def __getitem__(self, grid):
        return lambda *args, **options: self.calls.append(("compile", grid)) or self

    def run(self, *args):
        self.calls.append(("run", args[:3], args[-2:]))


@pytest.fixture
def kernel(monkeypatch):
    class Driver:
        active = type("active", (), {"get_current_stream": staticmethod(lambda device: 0)})

    monkeypatch.setattr(launcher, "driver", Driver)
    return Kernel()


def aligned(shift=0):
    memory = torch.zeros(64)
    start = -memory.data_ptr() % 16 // 4
    return memory[start + shift : start + shift + 8]


def test_is_compiled_once_for_aligned_memory(kernel):
    launch = launcher.Launch(kernel, (2, 3), (7,), {"M": 6})
    launch(aligned(), aligned())
    launch(aligned(), aligned())
    launch(aligned(), aligned(1))
    launch(aligned(), aligned())
    assert kernel.calls == [
        ("compile", (2, 3, 1)),
        ("run", (2, 3, 1), (7, 6)),
        ("compile", (2, 3, 1)),
        ("run", (2, 3, 1), (7, 6)),
    ]


def test_an_unknown_triton_compiles_by_its_front_door(kernel, monkeypatch):
    assert launcher._knows_triton("3.6.0")
    assert launcher._knows_triton("3.8.0+git1234")
    with pytest.warns(UserWarning, match=r"triton 3\.99\.0 is newer .* longer to launch"):
        monkeypatch.setattr(launcher, "_KNOWS_TRITON", launcher._knows_triton("3.99.0"))
    launch = launcher.Launch(kernel, (2, 3), (7,), {"M": 6})
    for _ in range(2):
        launch(aligned(), aligned())
    assert kernel.calls == [("compile", (2, 3, 1))] * 2


@pytest.mark.parametrize(("runs", "most"), [(1, 1), (7, 3), (100, 32), (5, 8), (132 * 4 + 1, 132)])
def test_programs_have_the_same_number_of_runs_or_one_less(runs, most):
    programs = launcher.evenly(runs, most)
    assert 1 <= programs <= most
    shares = [len(range(program, runs, programs)) for program in range(programs)]
    assert max(shares) - min(shares) <= 1
    assert max(shares) == -(-runs // most)


def test_the_current_device_is_left_alone(device):
    device = torch.empty(0, device=device).device
    with launcher.on(device):
        assert device.type == "cpu" or torch.cuda.current_device() == device.index
