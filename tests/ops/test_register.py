"""The registration with PyTorch: opcheck, compilers, export, fake tensors, and the formula for small tensors."""

import importlib
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, exact
from rational_oracle import CASES, leaves
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter

import flashkat
from flashkat.ops import add_norm_rational, rational_reference
from flashkat.ops import register as module
from flashkat.ops.triton import settings

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


def test_opcheck(device):
    for case in CASES:
        # A degree is a loop's length, and each step of it takes long to trace with sizes that are symbols.
        inputs = leaves(device, torch.float32, **{"m": 3, "n": 2, **case})
        dim = case.get("dim", -1)
        torch.library.opcheck(torch.ops.flashkat.rational, (*inputs, dim))
        torch.library.opcheck(torch.ops.flashkat.rational, (*inputs, dim, torch.bfloat16))
        grad = torch.randn_like(inputs[0], requires_grad=True)
        torch.library.opcheck(torch.ops.flashkat.rational_backward, (grad, *inputs, dim))


def test_opcheck_on_permuted_and_sliced_input(device):
    _, a, b = leaves(device, torch.float32)
    base = torch.randn(8, 6, 5, device=device)
    for x in (base.permute(1, 2, 0), base.permute(2, 1, 0)[:, ::2], base[:, :1, :1].expand(8, 6, 5).permute(1, 2, 0)):
        torch.library.opcheck(torch.ops.flashkat.rational, (x.detach().requires_grad_(), a, b, -1))


NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_COMPILER)])
@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_whole_and_equals_eager(device, backend, autocast):
    torch._dynamo.reset()
    x, a, b = leaves(device, torch.float32)

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
    _, a, b = leaves(device, torch.float32)
    counter = CompileCounter()
    compiled = torch.compile(flashkat.rational, fullgraph=True, backend=counter, dynamic=True)
    for batch in (2, 3, 7, 64):
        x = torch.randn(batch, 5, 8, device=device)
        torch.testing.assert_close(compiled(x, a, b), flashkat.rational(x, a, b))
    assert counter.frame_count == 1


def test_exports_with_a_dynamic_batch(device):
    x, a, b = leaves(device, torch.float32)

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
    _, a, b = leaves(device, torch.float32)
    real = flashkat.rational(x, a, b, dim=2)
    meta = flashkat.rational(x.to("meta"), a.to("meta"), b.to("meta"), dim=2)
    assert (meta.shape, meta.stride(), meta.dtype) == (real.shape, real.stride(), real.dtype)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = flashkat.rational(*(mode.from_tensor(t) for t in (x, a, b)), dim=2)
    assert (fake.shape, fake.stride(), fake.device) == (real.shape, real.stride(), real.device)


@pytest.fixture
def fast_gpu(monkeypatch):
    """Compile as for a GPU with kernels and fast float64."""
    monkeypatch.setattr(module, "is_triton", lambda device: True)
    monkeypatch.setattr(module, "has_fast_float64", lambda device: True)
    torch.compiler.reset()


@pytest.fixture
def compile_whole(device, fast_gpu):
    """Compile as for that GPU, and note what operators are left."""

    def run(function, *args):
        names = []

        def note(graph, _):
            names.extend(str(node.target) for node in graph.graph.nodes)
            return graph.forward

        found = torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=note))(*args)
        assert not any("flashkat" in name or "triton" in name for name in names)
        if device == "cuda":
            found = torch.compile(function, fullgraph=True)(*args)
        return found

    return run


def in_order(tensor, order):
    """The same numbers, in memory in an order of dimensions."""
    return tensor.permute(order).contiguous().permute([order.index(dim) for dim in range(tensor.ndim)])


def normal(generator, *size, dtype=F32, device="cpu"):
    return torch.randn(*size, generator=generator, dtype=F64).to(dtype).to(device)


@pytest.mark.parametrize(
    ("dtype", "scale", "coefficients"),
    [
        (F32, 1, 1),
        (F32, 1e37, 1e37),
        (F32, 1e-37, 1e37),
        (F32, 1e37, 0),
        (BF16, 1, 1),
        (BF16, 1e37, 1e37),
        (F16, 1e4, 1),
    ],
)
@pytest.mark.parametrize(("shape", "dim"), [((3, 7, 24), -1), ((2, 24, 5), 1), ((24,), 0), ((0, 24), 1)])
def test_values(compile_whole, device, dtype, scale, coefficients, shape, dim):
    generator = torch.Generator().manual_seed(7)
    x = (scale * normal(generator, *shape)).to(dtype)
    a, b = normal(generator, 1, 6), coefficients * normal(generator, 4, 4)
    found = compile_whole(lambda *args: flashkat.rational(*args, dim=dim), *(t.to(device) for t in (x, a, b)))
    assert (found.dtype, found.shape) == (dtype, x.shape)
    assert_close(found.cpu(), exact(torch.zeros_like(x), x, a, b, dim)["value"], 1, "value")


def test_reciprocal():
    """For numbers of every size that a denominator may have."""
    generator = torch.Generator().manual_seed(7)
    mantissa = torch.cat([torch.ones(1, dtype=F64), 1 + torch.rand(1000, generator=generator, dtype=F64)])
    q = mantissa * 2.0 ** torch.arange(0, 1000, 9, dtype=F64)[:, None]
    error = module._reciprocal(q) * q - 1  # exact but for 2^-53
    assert 2.0**-52 < error.abs().max() < 2.0**-38
    assert module._reciprocal(torch.tensor([torch.nan, torch.inf], dtype=F64)).isnan().all()


def test_without_channels(compile_whole, device):
    x, a, b = (torch.zeros(*size, device=device, requires_grad=True) for size in ((3, 0, 5), (1, 6), (8, 4)))
    found = compile_whole(lambda *args: flashkat.rational(*args, dim=1).detach(), x, a, b)
    assert found.shape == x.shape
    reference = rational_reference(x, a, b, 1)
    assert reference.shape == x.shape
    reference.sum().backward()
    assert (x.grad.shape, a.grad.shape, b.grad.shape) == (x.shape, a.shape, b.shape)


def test_float64_coefficients_are_rounded_as_ever(compile_whole, device):
    x, a, b = torch.full((1, 8), 3.0), torch.full((1, 2), 1 / 3, dtype=F64), torch.full((1, 1), 1 / 7, dtype=F64)
    found = compile_whole(flashkat.rational, *(t.to(device) for t in (x, a, b)))
    truth = rational_reference(x.double(), a.float().double(), b.float().double())
    assert torch.equal(found.cpu(), truth.float())


@pytest.mark.parametrize("dtype", [None, BF16])
def test_with_bias(compile_whole, device, dtype):
    generator = torch.Generator().manual_seed(8)
    x, bias = normal(generator, 5, 3, 16, device=device), normal(generator, 16, device=device)
    a, b = normal(generator, 1, 6, device=device), normal(generator, 2, 4, device=device)
    found = compile_whole(torch.ops.flashkat.bias_rational.default, x, bias, a, b, dtype)
    truth = rational_reference((x + bias).double(), a.double(), b.double()).to(dtype or F32)
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2)])
@pytest.mark.parametrize(("dtypes", "dtype"), [((F32, F32), None), ((F32, BF16), BF16), ((F16, F16), None)])
def test_with_addition_and_layer_norm(compile_whole, device, dtypes, dtype, order):
    generator = torch.Generator().manual_seed(9)
    x, branch = (in_order(normal(generator, 5, 3, 16, dtype=each, device=device), order) for each in dtypes)
    weight, bias = (normal(generator, 16, device=device) for _ in range(2))
    a, b = normal(generator, 1, 6, device=device), normal(generator, 2, 4, device=device)
    args = x, branch, weight, bias, a, b, 1e-5, dtype
    total, out, mean, rstd = compile_whole(torch.ops.flashkat.add_norm_rational.default, *args)
    promoted = torch.promote_types(*dtypes)
    assert (total.dtype, out.dtype, mean.shape, rstd.shape) == (promoted, dtype or promoted, x.shape[:-1], x.shape[:-1])
    assert all(each.is_contiguous() for each in (total, out, mean, rstd))
    torch.testing.assert_close(total, x + branch)
    # A compiler normalises the sum before or after it is rounded.
    wide = total.double()
    near = {"rtol": 1e-2, "atol": 1e-2} if F16 in dtypes or BF16 in dtypes else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(mean.double(), wide.mean(-1), **near)
    torch.testing.assert_close(rstd.double(), (wide.var(-1, unbiased=False) + 1e-5).rsqrt(), **near)
    z = F.layer_norm(wide, (16,), weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(out.double(), rational_reference(z, a.double(), b.double()), **near)


def test_kernels_are_launched_for_all_else(monkeypatch):
    monkeypatch.setattr(module, "has_fast_float64", lambda device: device.type == "cpu")

    def is_fused(size=settings.FUSED_ELEMENTS, dtype=F32, m=7, n=6, device="cpu"):
        coefficients = SimpleNamespace(shape=(1, m)), SimpleNamespace(shape=(1, n))
        return module._is_fused(torch.empty(size, dtype=dtype, device=device), coefficients)

    assert is_fused()
    assert is_fused(dtype=BF16)
    for other in ({"size": settings.FUSED_ELEMENTS + 1}, {"dtype": F64}, {"m": 8}, {"n": 7}, {"device": "meta"}):
        assert not is_fused(**other)


def assert_steps_agree(function, loss, leaves):
    """Results and gradients, compiled and eager."""
    torch.compiler.reset()

    def step(call):
        results = call(*leaves)
        return results, torch.autograd.grad(loss(results), leaves)

    torch.testing.assert_close(step(torch.compile(function)), step(function))


@pytest.mark.gpu
def test_a_step_has_the_gradients_of_the_kernels():
    generator = torch.Generator().manual_seed(10)
    leaves = [normal(generator, *size, device="cuda").requires_grad_() for size in ((9, 64), (1, 6), (4, 4))]
    assert_steps_agree(flashkat.rational, lambda out: out.square().sum(), leaves)


@pytest.mark.gpu
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2)])
def test_a_step_with_layer_norm_has_the_gradients_of_the_kernels(order):
    generator = torch.Generator().manual_seed(11)
    sizes = ((5, 3, 64), (5, 3, 64), (64,), (64,), (1, 6), (4, 4))
    x, *others = (normal(generator, *size, device="cuda") for size in sizes)
    leaves = [each.requires_grad_() for each in (in_order(x, order), *others)]
    assert_steps_agree(add_norm_rational, lambda results: results[0].pow(3).sum() + results[1].square().sum(), leaves)


@pytest.mark.parametrize("name", ["add_norm_rational", "linear_rational"])
def test_the_larger_operators_compile_whole(compile_whole, monkeypatch, device, name):
    """Compilers see through the checks and take the formula of small tensors."""
    module = importlib.import_module(f"flashkat.ops.{name}")
    monkeypatch.setattr(module, "fuses", lambda x: True)
    generator = torch.Generator().manual_seed(12)
    sizes = {
        "add_norm_rational": ((3, 16), (3, 16), (16,), (16,), (1, 6), (2, 4)),
        "linear_rational": ((3, 8), (16, 8), (16,), (1, 6), (2, 4)),
    }[name]
    inputs = [normal(generator, *size, device=device) for size in sizes]
    found = compile_whole(getattr(module, name), *inputs)
    monkeypatch.undo()
    torch.testing.assert_close(found, getattr(module, name)(*inputs), rtol=1e-4, atol=1e-4)


# --- programs that run without this package ---------------------------------------------------------------------------

HUGE = [0.0, 1e-40, -1.0, 2.5, -1e8, 1e20, -1e30, 3.4e38]


@pytest.mark.parametrize("dtype", [F32, F16, BF16, F64])
@pytest.mark.parametrize("case", CASES)
def test_the_decomposition_equals_the_operator(case, dtype):
    x, a, b = (each.detach() for each in leaves("cpu", dtype, **case))
    dim = case.get("dim", -1)
    found = module.decomposed(x, a, b, dim)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.ops.flashkat.rational(x, a, b, dim))
    assert module.decomposed(x, a, b, dim, BF16).dtype == BF16


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_the_decomposition_does_not_overflow(dtype):
    x = torch.tensor(HUGE).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)[:, None]
    for a, b in (([0, 1, 0, 0, 0, 0], [0] * 4), ([1, -2, 3, -4, 5, -6], [1, 0, 2, -1e-3]), ([0] * 5 + [1e-30], [0, 1])):
        numerator, denominator = torch.tensor([a]).float(), torch.tensor([b]).float()
        found = module.decomposed(x, numerator, denominator, -1)
        assert not found.isnan().any()
        torch.testing.assert_close(found, flashkat.rational(x, numerator, denominator))


def operators_of(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_decompositions_leave_pytorchs_own_operators(device):
    program = torch.export.export(flashkat.GRKAN(16, 32).to(device), (torch.randn(3, 16, device=device),))
    assert any("flashkat" in name for name in operators_of(program))
    names = operators_of(program.run_decompositions(dict(module.DECOMPOSITIONS)))
    assert not any("flashkat" in name for name in names)
    assert not any("where" in name for name in names)  # slow in ONNX Runtime


def test_coefficients_of_zero_learn_in_a_program():
    layer = flashkat.GRKAN(16, 32)  # its first rational starts as the identity
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    program = torch.export.export(layer, (x,)).run_decompositions(dict(module.DECOMPOSITIONS)).module()
    for model in (layer, program):
        model(x).square().sum().backward()
    grads = dict(program.named_parameters())
    for name, parameter in layer.named_parameters():
        assert parameter.grad.norm() > 0
        torch.testing.assert_close(grads[name].grad, parameter.grad)


def test_fused_operators_have_decompositions():
    x, branch, weight, bias = (torch.randn(*shape) for shape in ((3, 16), (3, 16), (16,), (16,)))
    a, b = torch.randn(1, 6), torch.randn(8, 4)
    table = {str(operator): function for operator, function in module.DECOMPOSITIONS.items()}
    found = table["flashkat.bias_rational.default"](x, bias, a, b)
    torch.testing.assert_close(found, flashkat.rational(x + bias, a, b))
    total, found, *_ = table["flashkat.add_norm_rational.default"](x, branch, weight, bias, a, b, 1e-5)
    torch.testing.assert_close(total, x + branch)
    torch.testing.assert_close(found, add_norm_rational(x, branch, weight, bias, a, b)[1])
    zeros = torch.zeros_like(b).requires_grad_()
    for name, inputs in (("bias_rational", (x, bias)), ("add_norm_rational", (x, branch, weight, bias))):
        rest = (a, zeros, 1e-5) if name == "add_norm_rational" else (a, zeros)
        results = table[f"flashkat.{name}.default"](*inputs, *rest)
        value = results[1] if name == "add_norm_rational" else results
        assert torch.autograd.grad(value.sum(), zeros)[0].norm() > 0


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_exporters_take_the_activation(dynamo, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    act = flashkat.GroupRational(16, start="gelu").eval()
    x = torch.tensor(HUGE * 2).expand(2, 16).contiguous()
    torch.onnx.export(act, (x,), tmp_path / "act.onnx", dynamo=dynamo, **({"verbose": False} if dynamo else {}))
    session = onnxruntime.InferenceSession(tmp_path / "act.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), act(x).detach())
