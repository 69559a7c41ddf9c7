"""Launches: what is compiled once is used again where it fits, and Triton's internals only where they are known."""

from types import SimpleNamespace

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

    arg_names = ("x_ptr", "y_ptr", "rows", "stride", "eps", "M")
    function, packed_metadata = 99, (4, 1, 256)
    kinds = ("*fp32", "*bf16", "i32", "constexpr", "fp32", "constexpr")

    def __init__(self, **metadata):
        simple = {"num_ctas": 1, "global_scratch_size": 0, "profile_scratch_size": 0}
        simple |= {"launch_cooperative_grid": False}
        self.calls = []
        self.metadata = SimpleNamespace(**simple | metadata)
        self.src = SimpleNamespace(signature=dict(zip(self.arg_names, self.kinds, strict=True)))

    def __getitem__(self, grid):
        return lambda *args, **options: self.calls.append(("compile", grid)) or self

    def run(self, *args):
        self.calls.append(("run", args[:3], args[-4:]))

    def start(self, *args):
        self.calls.append(("start", *args))


def start_with(monkeypatch, kernel, start, **options):
    class Driver:
        active = SimpleNamespace(get_current_stream=lambda device: 7)

    monkeypatch.setattr(launcher, "driver", Driver)
    monkeypatch.setattr(launcher, "kernel_launcher", lambda: start)
    return launcher.Launch(kernel, (2, 3), (5, 1, 0.5), {"M": 6}, **options)


def aligned(shift=0):
    memory = torch.zeros(64)
    start = -memory.data_ptr() % 16 // 4
    return memory[start + shift : start + shift + 8]


COMPILE, RUN = ("compile", (2, 3, 1)), ("run", (2, 3, 1), (5, 1, 0.5, 6))


def test_is_compiled_once_for_aligned_memory(monkeypatch):
    kernel = Kernel()
    launch = start_with(monkeypatch, kernel, None)
    launch(aligned(), aligned())
    launch(aligned(), aligned())
    launch(aligned(), aligned(1))
    launch(aligned(), aligned())
    assert kernel.calls == [COMPILE, RUN, COMPILE, RUN]


def test_pytorch_starts_what_is_compiled(monkeypatch):
    """It takes a letter for each argument that is no constant, two pointers to nothing, and the stream last."""
    kernel, x, y = Kernel(), aligned(), aligned()
    launch = start_with(monkeypatch, kernel, kernel.start)
    launch(x, y)
    launch(y, x)
    arguments = y.data_ptr(), x.data_ptr(), 5, 0.5, None, None
    assert kernel.calls == [COMPILE, ("start", 99, 2, 3, 1, 4, 256, "OOifOO", arguments, 7)]


@pytest.mark.parametrize(
    ("metadata", "options"),
    [({}, {"options": {"launch_pdl": True}}), ({"num_ctas": 2}, {}), ({"global_scratch_size": 8}, {})],
)
def test_triton_starts_what_pytorch_cannot(monkeypatch, metadata, options):
    kernel = Kernel(**metadata)
    launch = start_with(monkeypatch, kernel, kernel.start, **options)
    for _ in range(2):
        launch(aligned(), aligned())
    assert kernel.calls == [COMPILE, RUN]


@pytest.mark.parametrize("is_capturing", [False, True])
def test_small_kernels_start_early_in_cuda_graphs_alone(monkeypatch, is_capturing):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: is_capturing)
    kernel = Kernel()
    launch = start_with(monkeypatch, kernel, kernel.start, options={"launch_pdl": True}, small=True)
    for _ in range(2):
        launch(aligned(), aligned())
    assert [call[0] for call in kernel.calls] == ["compile", "run" if is_capturing else "start"]


def test_an_unknown_triton_compiles_by_its_front_door(monkeypatch):
    assert launcher._knows_triton("3.6.0")
    assert launcher._knows_triton("3.9.0+git1234")
    with pytest.warns(UserWarning, match=r"triton 3\.99\.0 is newer .* longer to launch"):
        monkeypatch.setattr(launcher, "_KNOWS_TRITON", launcher._knows_triton("3.99.0"))
    kernel = Kernel()
    launch = start_with(monkeypatch, kernel, kernel.start)
    for _ in range(2):
        launch(aligned(), aligned())
    assert kernel.calls == [COMPILE] * 2


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
