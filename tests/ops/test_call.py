"""The record of a call: who looks on, what kernels are for, and what they cannot read."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from rational_oracle import leaves
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

import flashkat
from flashkat.ops import Layers, add_norm_grkan, add_norm_rational, linear_rational, rational_reference
from flashkat.ops.call import Call, has_kernels, has_memory, look


class Watcher(TorchDispatchMode):
    """Sees the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_those_who_watch_see_the_operator_and_get_the_same(device):
    x, a, b = inputs = leaves(device, torch.float32)
    alone = flashkat.rational(x, a, b)
    alone = alone, *torch.autograd.grad(alone, inputs, torch.ones_like(alone))
    with Watcher() as watcher:
        watched = flashkat.rational(x, a, b)
        watched = watched, *torch.autograd.grad(watched, inputs, torch.ones_like(watched))
    assert {"flashkat::rational", "flashkat::rational_backward"} <= set(watcher.names)
    for one, other in zip(alone, watched, strict=True):
        assert torch.equal(one, other)


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
def test_kernels_are_for_what_fits(change, has):
    """Kernels look at nothing: they would read the memory behind what is too small."""
    tensors = {
        "x": torch.ones(2, 64),
        "bias": torch.ones(64),
        "numerator": torch.ones(1, 6),
        "denominator": torch.ones(8, 4),
    }
    with FakeTensorMode() as mode:
        x, bias, *coefficients = (mode.from_tensor(each).to("cuda") for each in (tensors | change).values())
        for plain in (True, False):
            call = Call(plain, False, None)
            assert has_kernels(call, x, x.shape[-1], (bias,), coefficients, (x.dtype,)) is has
            mixed = coefficients[0].cpu(), coefficients[1]
            assert not has_kernels(call, x, x.shape[-1], (bias,), mixed, (x.dtype,))


def test_kernels_are_for_sizes_that_are_not_numbers_yet(monkeypatch):
    """Tracers ask with symbols, which cannot be looked up."""
    monkeypatch.setattr("flashkat.ops.dispatch.is_triton", lambda device: True)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        symbolic = mode.from_tensor(torch.ones(48, 32), static_shapes=False).to("cuda")
        x, bias = symbolic.new_ones(2, symbolic.shape[1]), symbolic.new_ones(symbolic.shape[0])
        a, b = (torch.ones(size, device="cuda") for size in ((1, 6), (2, 4)))
        assert linear_rational(x, symbolic, bias, a, b).shape == (2, 48)


def test_transforms_of_torch_func_see_the_definition(device):
    """Where an operator's derivative would be zero or an error."""
    x, a, b = (tensor.detach() for tensor in leaves(device, torch.float64))
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


HALF_OF_A_BLOCK = (3, 16), (3, 16), (16,), (16,), (1, 6), (4, 4), (32, 16), (32,), (1, 6), (4, 4), (8, 32), (8,)


def half_of_a_block(x, branch, *layers):
    """All larger operators, together and one after the other."""
    total, first = add_norm_rational(x, branch, *layers[:4])
    return total, linear_rational(first, *layers[4:8]), *add_norm_grkan(x, branch, Layers(*layers))


@pytest.fixture
def with_kernels(monkeypatch):
    """Let the larger operators take their kernels on any device, as on a GPU."""
    for name in ("add_norm_rational", "linear_rational", "add_norm_grkan"):
        monkeypatch.setattr(importlib.import_module(f"flashkat.ops.{name}"), "fuses", lambda x: True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_lazily_negated_tensors_of_the_rational(device, dtype):
    """Their memory has the opposite sign. Complex numbers make such gradients."""
    inputs = [each.detach().requires_grad_() for each in leaves(device, dtype)]
    lazy = [torch._neg_view(-each.detach()).requires_grad_() for each in inputs]
    outs = [flashkat.rational(*each, dim=2) for each in (inputs, lazy)]
    assert torch.equal(*outs)
    grad = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    grads = [
        torch.autograd.grad(out, each, g)
        for out, each, g in zip(outs, (inputs, lazy), (grad, torch._neg_view(-grad)), strict=True)
    ]
    assert all(map(torch.equal, *grads))


def test_lazily_negated_tensors_of_the_larger_operators(device, with_kernels):
    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(6)
    inputs = [torch.randn(size, generator=generator).to(device).requires_grad_() for size in HALF_OF_A_BLOCK]
    lazy = [torch._neg_view(-each.detach()).requires_grad_() for each in inputs]
    outs = half_of_a_block(*inputs), half_of_a_block(*lazy)
    assert all(map(torch.equal, *outs))
    for one, other in zip(*outs, strict=True):
        grad = torch.randn(one.shape, generator=generator).to(device)
        used = [torch.autograd.grad(one, inputs, grad, retain_graph=True, materialize_grads=True)]
        used += [torch.autograd.grad(other, lazy, torch._neg_view(-grad), retain_graph=True, materialize_grads=True)]
        used += [torch.autograd.grad(one, inputs, torch._neg_view(-grad), retain_graph=True, materialize_grads=True)]
        torch.testing.assert_close(used[0], used[1])
        torch.testing.assert_close(used[0], used[2], rtol=0, atol=0)


def test_hooks_of_saved_tensors_may_change_strides(device, with_kernels):
    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(6)
    inputs = [torch.randn(size, generator=generator).to(device).requires_grad_() for size in HALF_OF_A_BLOCK]

    def transposed(tensor):
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    grads = []
    for unpack in (lambda tensor: tensor, transposed):
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
            outs = half_of_a_block(*inputs)
        grads.append(torch.autograd.grad(sum(out.square().sum() for out in outs), inputs))
    # Other strides take another path, which adds in another order.
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("wants_gradients", [False, True])
def test_forward_mode_takes_no_kernel_that_has_no_tangent(device, monkeypatch, wants_gradients):
    generator = torch.Generator().manual_seed(6)
    inputs, directions = (
        [torch.randn(size, generator=generator).to(device) for size in HALF_OF_A_BLOCK] for _ in range(2)
    )
    values, expected = torch.func.jvp(half_of_a_block, tuple(inputs), tuple(directions))
    for name in ("add_norm_rational", "linear_rational", "add_norm_grkan"):  # as on a GPU
        monkeypatch.setattr(importlib.import_module(f"flashkat.ops.{name}"), "fuses", lambda x: True)
    with torch.set_grad_enabled(wants_gradients), forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(each.requires_grad_(wants_gradients), direction)
            for each, direction in zip(inputs, directions, strict=True)
        ]
        found = [forward_ad.unpack_dual(result) for result in half_of_a_block(*duals)]
    torch.testing.assert_close([each.primal for each in found], list(values), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close([each.tangent for each in found], list(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [torch.no_grad, torch.enable_grad])
def test_a_tangent_of_coefficients_alone_is_seen(device, grad):
    x, a, b = (each.detach() for each in leaves(device, torch.float32))
    expected = torch.func.jvp(lambda a: rational_reference(x, a, b), (a,), (a,))[1]
    with grad(), forward_ad.dual_level():
        found = forward_ad.unpack_dual(flashkat.rational(x, forward_ad.make_dual(a, a), b))
    torch.testing.assert_close(found.tangent, expected, rtol=1e-4, atol=1e-4)


def test_forward_mode_under_autocast(device):
    x, a, b = (each.detach() for each in leaves(device, torch.float32))
    with forward_ad.dual_level(), torch.autocast(device, torch.bfloat16):
        found = forward_ad.unpack_dual(flashkat.rational(forward_ad.make_dual(x, x), a, b))
    assert found.primal.dtype == found.tangent.dtype == torch.bfloat16


def test_many_gradients_at_once(device):
    inputs = leaves(device, torch.float64)
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


def test_a_plain_call(device):
    inputs = leaves(device, torch.float32)
    assert look(*inputs) == Call(True, False, None)
    assert look(*(each.detach() for each in inputs)).plain
    with torch.autocast(device, torch.bfloat16):
        assert look(*inputs) == Call(True, False, torch.bfloat16)
        assert look(inputs[0].to("meta")).autocast is None


class Subclass(torch.Tensor):
    pass


def test_no_plain_call(device):
    x, a, b = (each.detach() for each in leaves(device, torch.float32))
    assert not look(x.to("meta"), a, b).plain
    assert not look(x, a.as_subclass(Subclass), b).plain
    with Watcher():
        assert not look(x, a, b).plain
    with FakeTensorMode() as mode:
        assert not look(mode.from_tensor(x), a, b).plain
    seen = []
    torch.func.vmap(lambda x: seen.append(look(x, a, b)) or x)(x)
    assert seen == [Call(False, True, None)]
    compiled = torch.compile(lambda x: x + look(x, a, b).plain, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), x)


class Recorder:
    """No tensor, but it says what is to be done with it."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function, types, args, kwargs


def test_a_class_with_a_torch_function_decides_what_a_call_does(device):
    x, a, b = leaves(device, torch.float32)
    stranger = Recorder()
    found = flashkat.rational(stranger, a, b, dim=1, channels=8)
    assert found == (flashkat.rational, (Recorder, torch.Tensor), (stranger, a, b), {"dim": 1, "channels": 8})
    assert flashkat.rational(x, stranger, b)[2] == (x, stranger, b)
    assert look(x, a, stranger) == Call(False, False, None, overridden=True)


def test_a_subclass_without_one_of_its_own_keeps_its_type(device):
    x, a, b = leaves(device, torch.float32)
    found = flashkat.rational(x.as_subclass(Subclass), a, b)
    assert type(found) is Subclass
    assert torch.equal(found, flashkat.rational(x, a, b))
    with torch.autocast(device, torch.bfloat16):
        assert flashkat.rational(x.as_subclass(Subclass), a, b).dtype == torch.bfloat16


def two_operators(x, branch, weight, a, b):
    scale = weight[0]
    total, first = add_norm_rational(x, branch, scale, scale, a, b)
    return total, linear_rational(first, weight, scale, a, b)


def test_torch_fx_keeps_the_operators_rational_as_a_leaf(device):
    generator = torch.Generator().manual_seed(5)
    sizes = ((3, 16), (3, 16), (16, 16), (1, 6), (4, 4))
    inputs = [torch.randn(size, generator=generator).to(device) for size in sizes]
    traced = torch.fx.symbolic_trace(two_operators)
    assert [node.target for node in traced.graph.nodes].count(flashkat.rational) == 2
    assert F.layer_norm in {node.target for node in traced.graph.nodes}
    torch.testing.assert_close(traced(*inputs), two_operators(*inputs))


def test_no_fused_kernels_for_a_class_that_decides_itself(monkeypatch):
    for name in ("linear_rational", "add_norm_rational"):
        monkeypatch.setattr(importlib.import_module(f"flashkat.ops.{name}"), "fuses", lambda x: True)
    x, square = torch.ones(2, 16), torch.eye(16)
    a, b = torch.ones(1, 6), torch.ones(4, 4)
    inputs = x, x, square, a, b
    expected = [F.layer_norm(x + x, (16,), square[0], square[0])]
    expected += [flashkat.rational(flashkat.rational(expected[0], a, b) + square[0], a, b)]
    found = two_operators(*(each.as_subclass(Subclass) for each in inputs))
    assert {type(each) for each in found} == {Subclass}
    torch.testing.assert_close(found[1].as_subclass(torch.Tensor), expected[1])


def test_what_has_no_memory(device):
    x = torch.ones(3, device=device)
    assert has_memory(x, None, x[:0], torch.nn.Parameter(x), x.to("meta"))
    seen = []
    torch.func.vmap(lambda each: seen.append(has_memory(x, each)) or each)(x)
    torch.func.grad(lambda each: seen.append(has_memory(each)) or each.sum())(x)
    assert seen == [False, False]
