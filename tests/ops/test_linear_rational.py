"""A linear layer, the rational and a linear layer, against float64, eager and compiled."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from oracle import distance
from torch._dynamo.backends.common import aot_autograd

from flashkat.ops import linear_rational, linear_rational_linear, rational_reference

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
UNIT = {torch.float64: 1e-13, F32: 2e-6, F16: 1e-3, BF16: 1e-2}


def normal(generator, *size, dtype=F32, device="cpu"):
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).to(device)


def make(device, dtype=F32, groups=4):
    generator = torch.Generator().manual_seed(1)
    sizes = (3, 5, 16), (64, 16), (64,), (1, 6), (groups, 4)
    leaves = [normal(generator, *size, dtype=dtype, device=device).requires_grad_() for size in sizes]
    return leaves, normal(generator, 3, 5, 64, dtype=dtype, device=device)


def plain(x, weight, bias, numerator, denominator):
    return rational_reference(F.linear(x, weight, bias), numerator, denominator)


@pytest.mark.parametrize("dtype", [torch.float64, F32, BF16, F16])
@pytest.mark.parametrize("groups", [4, 64])  # of 64 groups none holds a vector
def test_is_a_linear_layer_and_the_rational(device, dtype, groups):
    leaves, grad = make(device, dtype, groups)
    out = linear_rational(*leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = plain(*exact)
    assert out.dtype == dtype
    assert distance(out, truth.detach()) <= 10 * UNIT[dtype]
    truths = torch.autograd.grad(truth, exact, grad.double())
    for found, wanted in zip(torch.autograd.grad(out, leaves, grad), truths, strict=True):
        assert distance(found, wanted) <= 50 * UNIT[dtype]


def test_without_a_bias(device):
    (x, weight, _, a, b), _ = make(device)
    assert distance(linear_rational(x, weight, None, a, b), plain(x, weight, None, a, b).detach().double()) < 1e-5


def test_autocast_decides_the_dtype(device):
    leaves, grad = make(device)
    with torch.autocast(device, BF16):
        out = linear_rational(*leaves)
    assert out.dtype == BF16
    grads = torch.autograd.grad(out, leaves, grad.to(BF16))
    assert [each.dtype for each in grads] == [F32] * 5


def test_second_derivatives(device):
    leaves, grad = make(device)

    def penalty(function):
        first = torch.autograd.grad(function(*leaves), leaves, grad, create_graph=True)
        return torch.autograd.grad(sum((each**2).sum() for each in first), leaves)

    for found, truth in zip(penalty(linear_rational), penalty(plain), strict=True):
        assert distance(found, truth.double()) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("name", ["linear_rational", "linear_rational_linear"])
def test_compiled_calls_agree(mode, name):
    leaves, grad = make("cuda") if name == "linear_rational" else make_longer("cuda")
    function = {"linear_rational": linear_rational, "linear_rational_linear": linear_rational_linear}[name]

    def step(function):
        with torch.autocast("cuda", BF16):
            out = function(*leaves)
        return out, *torch.autograd.grad(out, leaves, grad.to(BF16))

    eager, compiled = step(function), torch.compile(function, fullgraph=True, mode=mode)
    for _ in range(3):
        found = [each.clone() for each in step(compiled)]
    for one, other in zip(found, eager, strict=True):
        assert distance(one, other.double()) < 2e-2


# --- with a second linear layer ---------------------------------------------------------------------------------------


@pytest.fixture
def fused(monkeypatch):
    """The kernels wherever they can run."""
    pytest.importorskip("triton")
    monkeypatch.setattr(importlib.import_module("flashkat.ops.linear_rational"), "fuses", lambda x: True)


def make_longer(device, dtype=F32, groups=4):
    leaves, _ = make(device, dtype, groups)
    generator = torch.Generator().manual_seed(2)
    last = [normal(generator, *size, dtype=dtype, device=device) / 8 for size in ((24, 64), (24,))]
    grad = normal(generator, 3, 5, 24, dtype=dtype, device=device)
    return [*leaves, *(each.requires_grad_() for each in last)], grad


def parts(*leaves):
    return F.linear(linear_rational(*leaves[:5]), *leaves[5:])


def defined(*leaves):
    return F.linear(plain(*leaves[:5]), *leaves[5:])


def assert_exact(leaves, grad, found, unit, function=defined):
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = function(*wide)
    truths = truth.detach(), *torch.autograd.grad(truth, wide, grad.double())
    for one, other in zip(found, truths, strict=True):
        assert distance(one, other) <= 50 * unit


@pytest.mark.parametrize("dtype", [torch.float64, F32, BF16, F16])
def test_is_followed_by_a_linear_layer(device, dtype):
    leaves, grad = make_longer(device, dtype)
    out = linear_rational_linear(*leaves)
    found = out, *torch.autograd.grad(out, leaves, grad)
    assert [each.dtype for each in found] == [dtype] * 8
    assert_exact(leaves, grad, found, UNIT[dtype])


def saved_by(function, leaves):
    """The numbers of elements of what is saved, beside the arguments."""
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: packed.append(each) or each, lambda each: each):
        function(*leaves)
    known = {leaf.data_ptr() for leaf in leaves}
    return [each.numel() for each in packed if each.data_ptr() not in known]


def test_the_value_between_is_recomputed(fused, device):
    """It is not saved, and no bit changes."""
    leaves, grad = make_longer(device)
    out, other = linear_rational_linear(*leaves), parts(*leaves)
    assert torch.equal(out, other)
    assert all(map(torch.equal, *(torch.autograd.grad(each, leaves, grad) for each in (out, other))))
    assert saved_by(linear_rational_linear, leaves).count(15 * 64) == 1
    assert saved_by(parts, leaves).count(15 * 64) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [None, BF16, F16])
def test_recomputation_changes_no_bit(autocast):
    generator = torch.Generator().manual_seed(3)
    sizes = (37, 197, 192), (768, 192), (768,), (1, 6), (8, 4), (192, 768), (192,)
    leaves = [(normal(generator, *size, device="cuda") / 4).requires_grad_() for size in sizes]
    grad = normal(generator, 37, 197, 192, dtype=autocast or F32, device="cuda")
    found = []
    for function in (linear_rational_linear, parts):
        with torch.autocast("cuda", autocast or BF16, enabled=autocast is not None):
            out = function(*leaves)
        found.append((out, *torch.autograd.grad(out, leaves, grad)))
    assert [each.dtype for each in found[0]] == [autocast or F32, *[F32] * 7]
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("frozen", [(5,), (0, 1), (6,), (2, 3, 4)])
def test_frozen_parts_have_no_gradient(fused, device, frozen):
    leaves, grad = make_longer(device)
    for index in frozen:
        leaves[index].requires_grad_(False)
    linear_rational_linear(*leaves).backward(grad)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truths = torch.autograd.grad(defined(*wide), wide, grad.double())
    for index, (leaf, truth) in enumerate(zip(leaves, truths, strict=True)):
        assert (leaf.grad is None) == (index in frozen)
        assert leaf.grad is None or distance(leaf.grad, truth) < 1e-4


def test_the_result_may_be_changed_in_place(fused, device):
    leaves, grad = make_longer(device)
    out = linear_rational_linear(*leaves)
    out.mul_(2)
    assert_exact(leaves, 2 * grad, (out / 2, *torch.autograd.grad(out, leaves, grad)), UNIT[F32])


def test_second_derivatives_with_a_linear_layer(fused, device):
    leaves, grad = make_longer(device)

    def penalty(function):
        first = torch.autograd.grad(function(*leaves), leaves, grad, create_graph=True)
        return torch.autograd.grad(sum((each**2).sum() for each in first), leaves, materialize_grads=True)

    for found, truth in zip(penalty(linear_rational_linear), penalty(defined), strict=True):
        assert distance(found, truth.double()) < 1e-3 if truth.any() else not found.any()


def test_many_gradients_and_tangents(fused, device):
    leaves, grad = make_longer(device)
    batch = torch.stack([grad, 2 * grad])
    found = torch.autograd.grad(linear_rational_linear(*leaves), leaves, batch, is_grads_batched=True)
    for one, other in zip(found, torch.autograd.grad(parts(*leaves), leaves, grad), strict=True):
        torch.testing.assert_close(one[0], other, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(one[1], 2 * one[0])
    plain_leaves = [leaf.detach() for leaf in leaves]
    _, expected = torch.func.jvp(defined, tuple(plain_leaves), tuple(plain_leaves))
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(leaf, leaf.detach()) for leaf in leaves]
        tangent = torch.autograd.forward_ad.unpack_dual(linear_rational_linear(*duals)).tangent
    torch.testing.assert_close(tangent, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("change", [{5: (24, 32)}, {6: (5,)}, {5: (24,)}, {1: (64, 8)}])
def test_pytorch_says_what_does_not_fit(fused, device, change):
    leaves, _ = make_longer(device)
    for index, size in change.items():
        leaves[index] = torch.ones(size, device=device, requires_grad=True)
    with pytest.raises(RuntimeError):
        linear_rational_linear(*leaves)


def test_nothing_gives_nothing(fused, device):
    leaves, grad = make_longer(device)
    leaves[0] = leaves[0].detach()[:0].requires_grad_()
    out = linear_rational_linear(*leaves)
    assert out.shape == (0, 5, 24)
    assert not any(each.any() for each in torch.autograd.grad(out, leaves, grad[:0]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="its tensors are on the CPU")
def test_compilers_see_the_products(fused):
    leaves, grad = make_longer("cpu")
    torch.compiler.reset()
    seen = []

    def note(graph, _):
        seen.append([str(node.target) for node in graph.graph.nodes])
        return make_boxed_func(graph.forward)

    compiled = torch.compile(linear_rational_linear, fullgraph=True, backend=aot_autograd(fw_compiler=note))
    out = compiled(*leaves)
    found = out, *torch.autograd.grad(out, leaves, grad)
    forward, backward = seen
    assert {"flashkat.bias_rational.default", "aten.addmm.default"} <= set(forward)
    assert [name for name in backward if "flashkat" in name] == ["flashkat.bias_rational_backward.default"]
    assert_exact(leaves, grad, found, UNIT[F32])
