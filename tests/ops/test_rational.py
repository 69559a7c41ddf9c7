"""The operator as PyTorch sees it: derivatives, autocast, compilers, export, errors."""

import shutil

import pytest
import torch
from oracle import assert_close, exact
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

import flashkat
from flashkat.ops import rational_reference


def _inputs(device, dtype=torch.float64, shape=(3, 5, 8), groups=4, m=6, n=4, dim=-1, shared=(True, False)):
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    a = torch.randn(1 if shared[0] else groups, m, generator=generator, dtype=torch.float64)
    b = torch.randn(1 if shared[1] else groups, n, generator=generator, dtype=torch.float64)
    return [tensor.to(device, dtype).requires_grad_() for tensor in (x, a, b)]


CASES = [
    {},
    {"shape": (2, 8, 3), "dim": 1, "shared": (False, True)},
    {"shape": (4,), "m": 1, "n": 0, "shared": (False, False)},
    {"shape": (2, 4), "m": 3, "n": 2, "shared": (True, True), "groups": 1},
]


@pytest.mark.parametrize("case", CASES)
def test_first_and_second_derivatives(device, case):
    inputs = _inputs(device, **case)
    dim = case.get("dim", -1)

    def function(x, a, b):
        return flashkat.rational(x, a, b, dim=dim)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_third_derivative_equals_the_definitions(device):
    x, a, b = _inputs(device)

    def third(function):
        value = function(x, a, b)
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return value

    torch.testing.assert_close(third(flashkat.rational), third(rational_reference))


class Watcher(TorchDispatchMode):
    """Sees the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_those_who_watch_see_the_operator_and_get_the_same(device):
    x, a, b = inputs = _inputs(device, torch.float32)
    alone = flashkat.rational(x, a, b)
    alone = alone, *torch.autograd.grad(alone, inputs, torch.ones_like(alone))
    with Watcher() as watcher:
        watched = flashkat.rational(x, a, b)
        watched = watched, *torch.autograd.grad(watched, inputs, torch.ones_like(watched))
    assert {"flashkat::rational", "flashkat::rational_backward"} <= set(watcher.names)
    for one, other in zip(alone, watched, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_second_derivatives_keep_dtypes(device, dtype):
    x, a, b = _inputs(device, torch.float32)
    x = x.detach().to(dtype).requires_grad_()
    (slope,) = torch.autograd.grad(flashkat.rational(x, a, b).sum(), x, create_graph=True)
    second = torch.autograd.grad(slope.float().sum(), (x, a, b))
    assert [tensor.dtype for tensor in second] == [dtype, torch.float32, torch.float32]


def test_only_what_needs_a_gradient_gets_one(device):
    x, a, b = _inputs(device, torch.float32)
    flashkat.rational(x.detach(), a, b.detach()).sum().backward()
    assert x.grad is None
    assert b.grad is None
    expected = exact(torch.ones_like(x).cpu(), x.detach().cpu(), a.detach().cpu(), b.detach().cpu(), -1)
    assert_close(a.grad.cpu(), expected["grad_numerator"], 24, "grad_numerator")


def test_second_backward_through_a_retained_graph_is_the_same(device):
    inputs = _inputs(device, torch.float32)
    value = flashkat.rational(*inputs).sum()
    first = torch.autograd.grad(value, inputs, retain_graph=True)
    second = torch.autograd.grad(value, inputs)
    assert all(torch.equal(f, s) for f, s in zip(first, second, strict=True))


def test_inference_mode_and_no_grad(device):
    inputs = _inputs(device, torch.float32)
    expected = flashkat.rational(*inputs)
    with torch.inference_mode():
        assert torch.equal(flashkat.rational(*inputs), expected)
    with torch.no_grad():
        assert not flashkat.rational(*inputs).requires_grad


def test_opcheck(device):
    for case in CASES:
        inputs = _inputs(device, torch.float32, **case)
        dim = case.get("dim", -1)
        torch.library.opcheck(torch.ops.flashkat.rational, (*inputs, dim))
        torch.library.opcheck(torch.ops.flashkat.rational, (*inputs, dim, torch.bfloat16))
        grad = torch.randn_like(inputs[0], requires_grad=True)
        torch.library.opcheck(torch.ops.flashkat.rational_backward, (grad, *inputs, dim))


def test_opcheck_on_permuted_and_sliced_input(device):
    _, a, b = _inputs(device, torch.float32)
    base = torch.randn(8, 6, 5, device=device)
    for x in (base.permute(1, 2, 0), base.permute(2, 1, 0)[:, ::2], base[:, :1, :1].expand(8, 6, 5).permute(1, 2, 0)):
        torch.library.opcheck(torch.ops.flashkat.rational, (x.detach().requires_grad_(), a, b, -1))


@pytest.mark.parametrize("x_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
def test_autocast_sets_the_output_dtype_and_nothing_else(device, x_dtype, autocast_dtype):
    x, a, b = _inputs(device, torch.float32)
    x = x.detach().to(x_dtype).requires_grad_()
    with torch.autocast(device, autocast_dtype):
        value = flashkat.rational(x, a, b)
    assert value.dtype == autocast_dtype
    plain = flashkat.rational(x, a, b)
    assert plain.dtype == x_dtype
    torch.testing.assert_close(
        value.double(), plain.double(), rtol=2 * max(torch.finfo(d).eps for d in (autocast_dtype, x_dtype)), atol=1e-6
    )
    grads = torch.autograd.grad(value.float().sum(), (x, a, b))
    assert [grad.dtype for grad in grads] == [x_dtype, torch.float32, torch.float32]


def test_autocast_switched_off_inside_is_respected(device):
    inputs = _inputs(device, torch.float32)
    with torch.autocast(device, torch.bfloat16), torch.autocast(device, enabled=False):
        assert flashkat.rational(*inputs).dtype == torch.float32


NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_COMPILER)])
@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_whole_and_equals_eager(device, backend, autocast):
    torch._dynamo.reset()
    x, a, b = _inputs(device, torch.float32)

    def function(x, a, b):
        # Powers of two, which no compiler can round otherwise than eager mode does.
        return flashkat.rational(x * 2, a, b) * 2

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        expected, found = function(x, a, b), compiled(x, a, b)
    assert found.dtype == expected.dtype
    if device == "cpu":
        assert torch.equal(found, expected)
    else:  # of small tensors by a formula of its own
        torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    expected_grads, found_grads = (torch.autograd.grad(value, (x, a, b), weights) for value in (expected, found))
    for e, f in zip(expected_grads, found_grads, strict=True):
        torch.testing.assert_close(f, e)


def test_new_batch_sizes_do_not_recompile(device):
    torch._dynamo.reset()
    _, a, b = _inputs(device, torch.float32)
    counter = CompileCounter()
    compiled = torch.compile(flashkat.rational, fullgraph=True, backend=counter, dynamic=True)
    for batch in (2, 3, 7, 64):
        x = torch.randn(batch, 5, 8, device=device)
        torch.testing.assert_close(compiled(x, a, b), flashkat.rational(x, a, b))
    assert counter.frame_count == 1


def test_exports_with_a_dynamic_batch(device):
    x, a, b = _inputs(device, torch.float32)

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Parameter(a.detach()), torch.nn.Parameter(b.detach())

        def forward(self, x):
            return flashkat.rational(x, self.a, self.b)

    program = torch.export.export(Module(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    other = torch.randn(7, *x.shape[1:], device=device)
    torch.testing.assert_close(program.module()(other), flashkat.rational(other, a, b))


def test_fake_and_meta_tensors_have_the_results_metadata(device):
    x = torch.randn(2, 3, 8, 4, device=device).to(memory_format=torch.channels_last)
    _, a, b = _inputs(device, torch.float32)
    real = flashkat.rational(x, a, b, dim=2)
    meta = flashkat.rational(x.to("meta"), a.to("meta"), b.to("meta"), dim=2)
    assert (meta.shape, meta.stride(), meta.dtype) == (real.shape, real.stride(), real.dtype)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = flashkat.rational(*(mode.from_tensor(t) for t in (x, a, b)), dim=2)
    assert (fake.shape, fake.stride(), fake.device) == (real.shape, real.stride(), real.device)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(2, 8, dtype=torch.int64)}, TypeError, ["x", "int64"]),
        ({"x": torch.ones(2, 8, dtype=torch.complex64)}, TypeError, ["x", "complex64"]),
        ({"x": torch.ones(2, 8, dtype=torch.bool)}, TypeError, ["x", "bool"]),
        ({"numerator": torch.ones(1, 6, dtype=torch.int32)}, TypeError, ["numerator", "int32"]),
        ({"x": torch.tensor(1.0)}, ValueError, ["dimension"]),
        ({"dim": 2}, ValueError, ["dim 2", "(2, 8)"]),
        ({"dim": -3}, ValueError, ["dim -3", "(2, 8)"]),
        ({"numerator": torch.ones(6)}, ValueError, ["(6,)", "(4, 4)"]),
        ({"numerator": torch.ones(1, 0)}, ValueError, ["(1, 0)", "(4, 4)"]),
        ({"numerator": torch.ones(2, 6)}, ValueError, ["(2, 6)", "(4, 4)"]),
        ({"denominator": torch.ones(0, 4)}, ValueError, ["(1, 6)", "(0, 4)"]),
        ({"denominator": torch.ones(3, 4)}, ValueError, ["8 channels", "3 groups"]),
        ({"numerator": torch.ones(0, 6), "denominator": torch.ones(0, 4)}, ValueError, ["(0, 6)", "(0, 4)"]),
        ({"x": torch.ones(2, 8).to(torch.float8_e4m3fn)}, TypeError, ["x", "float8"]),
        ({"denominator": torch.ones(4, 4).to(torch.float8_e5m2)}, TypeError, ["denominator", "float8"]),
        ({"x": torch.eye(8).to_sparse()}, TypeError, ["x", "sparse", "to_dense"]),
        ({"numerator": torch.ones(1, 6, device="meta")}, ValueError, ["cpu", "meta"]),
    ],
)
def test_bad_arguments_get_one_clear_sentence(change, error, words):
    arguments = {"x": torch.ones(2, 8), "numerator": torch.ones(1, 6), "denominator": torch.ones(4, 4)} | change
    with pytest.raises(error) as caught:
        flashkat.rational(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.gpu
def test_x_and_coefficients_on_different_devices():
    with pytest.raises(ValueError, match=r"cuda:0.*cpu"):
        flashkat.rational(torch.ones(2, 8, device="cuda"), torch.ones(1, 6), torch.ones(4, 4))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_a_gpu_that_is_not_the_current_one():
    inputs = _inputs("cuda:1", torch.float32)
    assert torch.cuda.current_device() == 0
    value = flashkat.rational(*inputs)
    value.sum().backward()
    assert value.device == torch.device("cuda:1")
    assert_close(value.cpu(), exact(inputs[0].cpu(), *(t.detach().cpu() for t in inputs), -1)["value"], 24, "value")


@pytest.mark.gpu
def test_gpu_takes_the_triton_path():
    from flashkat.ops.dispatch import choose_path

    assert choose_path(torch.device("cuda:0")).name == "triton"


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2**31 // 64 + 1000, 64), (40000, 64, 1000)])
def test_more_than_two_to_the_31_elements(shape):
    """Offsets beyond int32 and many rows: the end of the tensor is computed, and the sums count every element."""
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    x = torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_()
    a = torch.tensor([[0.0, 1.0, 0.5]], device="cuda", requires_grad=True)
    b = torch.rand(8, 2, device="cuda", requires_grad=True)
    x.requires_grad_()
    value = flashkat.rational(x, a, b, dim=1)
    value.backward(torch.ones((), device="cuda", dtype=torch.bfloat16).expand_as(value))
    tail = x.detach()[-3:]
    expected = exact(torch.ones_like(tail).cpu(), tail.cpu(), a.detach().cpu(), b.detach().cpu(), 1)
    assert_close(value.detach()[-3:].cpu(), expected["value"], 24, "value")
    assert_close(x.grad[-3:].cpu(), expected["grad_x"], 24, "grad_x")
    # da_1 = sum x / Q and so on have no closed form; da_0 + sums of a linear check do: with b = 0 da_0 counts.
    count = torch.autograd.grad(
        flashkat.rational(x, a, torch.zeros_like(b), dim=1), a, torch.ones_like(value).detach(), retain_graph=False
    )[0][0, 0]
    assert count == x.numel()


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
    x, a, b = _inputs("cuda", torch.float32, shape=(2, 197, 192), groups=8)

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


@pytest.mark.parametrize(
    ("change", "has"),
    [
        ({}, True),
        ({"numerator": torch.ones(8, 6)}, True),
        ({"numerator": torch.ones(4, 6)}, False),  # rows that are neither one nor the groups'
        ({"numerator": torch.ones(6)}, False),
        ({"numerator": torch.ones(1, 0)}, False),
        ({"denominator": torch.ones(8, 4, dtype=torch.int64)}, False),
        ({"denominator": torch.ones(8, 4).to(torch.float8_e5m2)}, False),
        ({"bias": torch.ones(1)}, False),
        ({"bias": torch.ones(64, dtype=torch.int64)}, False),
        ({"x": torch.ones(2, 60)}, False),  # groups of 7.5
        ({"x": torch.ones(2, 64, dtype=torch.float64)}, False),
        ({"bias": torch.ones(64, dtype=torch.float64)}, False),  # PyTorch adds no float64 to less
        ({"numerator": torch.ones(0, 6), "denominator": torch.ones(0, 4)}, False),
    ],
)
def test_kernels_are_for_what_fits(change, has, monkeypatch):
    """Kernels look at nothing: they would read the memory behind what is too small."""
    from torch._subclasses import FakeTensorMode

    from flashkat.ops.rational import has_kernels

    monkeypatch.setattr("flashkat.ops.rational.is_triton", lambda device: True)
    tensors = {
        "x": torch.ones(2, 64),
        "bias": torch.ones(64),
        "numerator": torch.ones(1, 6),
        "denominator": torch.ones(8, 4),
    }
    with FakeTensorMode() as mode:
        x, bias, *coefficients = (mode.from_tensor(each).to("cuda") for each in (tensors | change).values())
        for plain in (True, False):
            assert has_kernels(x, x.shape[-1], (bias,), coefficients, (x.dtype,), plain) is has
            mixed = coefficients[0].cpu(), coefficients[1]
            assert not has_kernels(x, x.shape[-1], (bias,), mixed, (x.dtype,), plain)


def test_kernels_are_for_sizes_that_are_not_numbers_yet(monkeypatch):
    """Tracers ask with symbols, which cannot be looked up."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from flashkat.ops import linear_rational

    monkeypatch.setattr("flashkat.ops.rational.is_triton", lambda device: True)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        symbolic = mode.from_tensor(torch.ones(48, 32), static_shapes=False).to("cuda")
        x, bias = symbolic.new_ones(2, symbolic.shape[1]), symbolic.new_ones(symbolic.shape[0])
        a, b = (torch.ones(size, device="cuda") for size in ((1, 6), (2, 4)))
        assert linear_rational(x, symbolic, bias, a, b).shape == (2, 48)


def test_transforms_of_torch_func_see_the_definition(device):
    """Where an operator's derivative would be zero or an error."""
    x, a, b = (tensor.detach() for tensor in _inputs(device, torch.float64))
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device)

    def ours(x, a, b):
        return flashkat.rational(x, a, b, dim=2)

    def definition(x, a, b):
        return rational_reference(x, a, b, dim=2)

    for transform in (
        lambda f: torch.func.jvp(f, (x, a, b), (v, a, b)),
        lambda f: torch.func.grad(lambda *args: (f(*args) * v).sum(), argnums=(0, 1, 2))(x, a, b),
        lambda f: torch.func.vmap(f, (None, 0, None))(x, torch.stack([a, 2 * a]), b),
        lambda f: torch.func.jacfwd(torch.func.grad(lambda a: f(x, a, b).square().sum()))(a),
    ):
        torch.testing.assert_close(transform(ours), transform(definition))
    with torch.autocast(device, torch.bfloat16):
        assert torch.func.vmap(ours, (0, None, None))(x.float()[None], a, b).dtype == torch.bfloat16


def test_many_gradients_at_once(device):
    inputs = _inputs(device, torch.float64)
    y = flashkat.rational(*inputs, dim=2)
    grads = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device)
    for higher in (False, True):
        found = torch.autograd.grad(y, inputs, grads, is_grads_batched=True, create_graph=higher, retain_graph=True)
        each = [torch.autograd.grad(y, inputs, grad, retain_graph=True) for grad in grads]
        for many, ones in zip(found, zip(*each, strict=True), strict=True):
            torch.testing.assert_close(many, torch.stack(ones))
            assert many.requires_grad is higher
    jacobian = torch.autograd.functional.jacobian
    act = flashkat.GroupRational(8, 4, start="gelu", dtype=torch.float64, device=device)
    x = torch.randn(8, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(device)
    torch.testing.assert_close(jacobian(act, x, vectorize=True), jacobian(act, x))


@pytest.mark.gpu
def test_many_gradients_at_once_of_the_larger_operators():
    from flashkat.ops import add_norm_rational, linear_rational

    generator = torch.Generator("cuda").manual_seed(4)
    sizes = (2, 64), (64, 64), (64,), (1, 6), (8, 4)
    leaves = [torch.randn(size, device="cuda", generator=generator).requires_grad_() for size in sizes]
    x, square, one, a, b = leaves
    grads = torch.randn(3, 2, 64, device="cuda", generator=generator)
    for y in (linear_rational(x, square, one, a, b), add_norm_rational(x, x, one, one, a, b)[1]):
        found = torch.autograd.grad(y, (x, one, a, b), grads, is_grads_batched=True, retain_graph=True)
        each = [torch.autograd.grad(y, (x, one, a, b), grad, retain_graph=True) for grad in grads]
        for many, ones in zip(found, zip(*each, strict=True), strict=True):
            torch.testing.assert_close(many, torch.stack(ones), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_transforms_see_through_the_larger_operators():
    from flashkat.ops import add_norm_rational, linear_rational

    x, square, one = (torch.randn(size, device="cuda") for size in ((2, 64), (64, 64), (64,)))
    a, b = torch.randn(1, 6, device="cuda"), torch.randn(8, 4, device="cuda")
    for function in (
        lambda x: linear_rational(x, square, one, a, b),
        lambda x: add_norm_rational(x, x, one, one, a, b)[1],
    ):
        _, tangent = torch.func.jvp(function, (x,), (square[:2],))
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf), leaf, torch.ones_like(x))
        torch.testing.assert_close(tangent.sum(), (gradient * square[:2]).sum(), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_the_doors_of_the_larger_operators_say_what_is_wrong():
    from flashkat.ops import add_norm_rational, linear_rational

    x, square, one = (torch.ones(size, device="cuda") for size in ((2, 64), (64, 64), (64,)))
    wrong, denominator = torch.ones(4, 6, device="cuda"), torch.ones(8, 4, device="cuda")
    fitting = torch.ones(1, 6, device="cuda")
    for call in (
        lambda *coefficients: linear_rational(x, square, one, *coefficients),
        lambda *coefficients: add_norm_rational(x, x, one, one, *coefficients),
    ):
        call(fitting, denominator)
        with pytest.raises(ValueError, match="as many rows as there are groups"):
            call(wrong, denominator)
        with pytest.raises(ValueError, match="move both to one device"):
            call(fitting.cpu(), denominator)
    with pytest.raises(RuntimeError):
        linear_rational(x, square, torch.ones(2, device="cuda"), fitting, denominator)
    with pytest.raises(RuntimeError):
        add_norm_rational(x, x, one, one[:1], fitting, denominator)
