"""The second half of a block as one node of autograd, against float64 and against its pieces."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from oracle import distance
from torch._dynamo.backends.common import aot_autograd

from flashkat.ops import Layers, add_norm_grkan, add_norm_rational, linear_rational, rational_reference
from flashkat.ops.triton import settings

pytest.importorskip("triton")

# The package gives the function this name.
grkan_op = importlib.import_module("flashkat.ops.add_norm_grkan")
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"  # where there is no GPU, Triton interprets
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
NAMES = ("x", "branch", "scale", "shift", "a1", "b1", "weight1", "bias1", "a2", "b2", "weight2", "bias2")
UNIT = {F64: 1e-12, F32: 5e-6, F16: 2e-3, BF16: 1e-2}


@pytest.fixture
def plans(monkeypatch):
    """The kernels wherever they can run, and what was launched."""
    made, plan = [], grkan_op._plan

    def note(*args):
        made.append(plan(*args))
        return made[-1]

    monkeypatch.setattr(grkan_op, "fuses", lambda x: True)
    monkeypatch.setattr(grkan_op, "_plan", note)
    plan.cache_clear()
    yield made
    plan.cache_clear()


def make(shape=(3, 5, 16), hidden=64, outputs=None, rows=(1, 2), dtype=F32, inputs=(F32, F32), m=6, n=4, device=DEVICE):
    """x, branch and layers, and gradients of sum and result."""
    generator = torch.Generator().manual_seed(2)
    channels, outputs = shape[-1], outputs or shape[-1]

    def normal(*size, dtype=dtype, scale=1.0):
        return (scale * torch.randn(*size, generator=generator, dtype=F64)).to(dtype).to(device)

    leaves = [normal(*shape, dtype=each) for each in inputs]
    leaves += [normal(channels), normal(channels), normal(rows[0], m), normal(rows[1], n)]
    leaves += [normal(hidden, channels, scale=channels**-0.5), normal(hidden), normal(rows[0], m), normal(rows[1], n)]
    leaves += [normal(outputs, hidden, scale=hidden**-0.5), normal(outputs)]
    grads = normal(*shape, dtype=torch.promote_types(*inputs)), normal(*shape[:-1], outputs, dtype=F32)
    return [leaf.requires_grad_() for leaf in leaves], grads


def exact(leaves, grads, eps=1e-5):
    """The results and the gradients in float64."""
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    x, branch, scale, shift, a1, b1, weight1, bias1, a2, b2, weight2, bias2 = wide
    first = rational_reference(F.layer_norm(x + branch, scale.shape, scale, shift, eps), a1, b1)
    out = F.linear(rational_reference(F.linear(first, weight1, bias1), a2, b2), weight2, bias2)
    return (x + branch, out), torch.autograd.grad((x + branch, out), wide, [grad.double() for grad in grads])


def call(leaves, dtype=None, eps=1e-5, recompute=True):
    with torch.autocast(DEVICE, dtype or BF16, enabled=dtype is not None):
        return add_norm_grkan(*leaves[:2], Layers(*leaves[2:]), eps, recompute)


def pieces(leaves, dtype=None):
    with torch.autocast(DEVICE, dtype or BF16, enabled=dtype is not None):
        total, first = add_norm_rational(*leaves[:6])
        return total, F.linear(linear_rational(first, *leaves[6:10]), *leaves[10:])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shape": (7, 64), "hidden": 32, "outputs": 24, "rows": (4, 4)},
        {"shape": (2, 3, 5, 16), "rows": (1, 1)},  # both shared
        {"shape": (9, 24), "hidden": 40, "rows": (2, 1)},
        {"shape": (1, 16), "hidden": 16, "m": 3, "n": 2},
        {"shape": (9, 96), "hidden": 192, "rows": (1, 8)},
    ],
)
def test_matches_float64(plans, options):
    leaves, grads = make(**options)
    results = call(leaves)
    found = torch.autograd.grad(results, leaves, grads, retain_graph=True)
    again = torch.autograd.grad(results, leaves, grads)
    assert len(plans) == 1
    assert plans[0] is not None
    truth, truths = exact(leaves, grads)
    for one, other in zip(results, truth, strict=True):
        assert (one.shape, one.dtype) == (other.shape, F32)
        assert distance(one, other) < UNIT[F32]
    for name, one, other, same in zip(NAMES, found, truths, again, strict=True):
        assert distance(one, other) < 10 * UNIT[F32], name
        assert torch.equal(one, same), name


_INPUTS = ((F32, BF16), (F32, F16), (BF16, BF16), (F16, F16), (F32, F32))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "inputs", "autocast"),
    [(F32, inputs, autocast) for inputs in _INPUTS for autocast in (BF16, F16)]
    + [(dtype, (x, dtype), dtype) for dtype in (BF16, F16) for x in (F32, dtype)]
    # No kernel casts weights of 16 bits to the other dtype of 16 bits.
    + [(BF16, (F32, BF16), F16), (F16, (F32, F16), BF16)]
    # Without autocast linear layers take one dtype.
    + [(dtype, (dtype, dtype), None) for dtype in (F32, BF16, F16)],
)
def test_matches_float64_in_all_dtypes(plans, autocast, inputs, dtype):
    leaves, grads = make((5, 19, 192), 768, rows=(1, 8), dtype=dtype, inputs=inputs)
    inner = autocast or dtype
    grads = [grads[0], grads[1].to(inner)]
    found, by_pieces = (
        (*results, *torch.autograd.grad(results, leaves, grads))
        for results in (call(leaves, autocast), pieces(leaves, autocast))
    )
    assert (plans[0] is not None) == (dtype in (F32, inner))
    assert [each.dtype for each in found] == [torch.promote_types(*inputs), inner, *(leaf.dtype for leaf in leaves)]
    truth, truths = exact(leaves, grads)
    names = "sum", "result", *NAMES
    for name, one, other, wanted in zip(names, found, by_pieces, (*truth, *truths), strict=True):
        assert distance(one, wanted) < 2 * distance(other, wanted) + max(UNIT[inner], UNIT[one.dtype]), name


@pytest.mark.gpu
def test_gradients_of_wide_weights_are_rounded_less(plans):
    """Than those of the pieces, which are bfloat16 before they are float32."""
    leaves, grads = make((64, 192), 768, rows=(1, 8), inputs=(F32, BF16), device="cuda")
    weights = [leaves[NAMES.index(name)] for name in ("weight2", "bias2")]
    found = torch.autograd.grad(call(leaves, BF16)[1], weights, grads[1].to(BF16))
    with torch.autocast("cuda", BF16):
        _, first = add_norm_rational(*leaves[:6])
        second = linear_rational(first, *leaves[6:10])
        rounded = torch.autograd.grad(F.linear(second, *weights), weights, grads[1].to(BF16))
    grad = grads[1].to(BF16).double()
    for one, other, truth in zip(found, rounded, (grad.t() @ second.double(), grad.sum(0)), strict=True):
        assert distance(one, truth) < 1e-5
        assert distance(other, truth) > 1e-4


@pytest.mark.gpu
def test_needs_no_more_memory_than_its_pieces(plans):
    leaves, grads = make((16384, 192), 768, rows=(1, 8), inputs=(F32, BF16), device="cuda")

    def peak(function):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.backward(function(leaves, BF16), [grads[0], grads[1].to(BF16)])
        for leaf in leaves:
            leaf.grad = None
        return torch.cuda.max_memory_allocated() - before

    peak(pieces)  # cuBLAS's workspace
    without = peak(lambda *args: call(*args, recompute=False))
    assert without <= peak(pieces)
    assert peak(call) <= without + leaves[0].numel() * 4 * 2  # beside both gradients, the value


def saved_by(function):
    """The numbers of elements of what a call saves, without what it takes as it is."""
    packed = {}

    def pack(tensor):
        packed[tensor.data_ptr()] = tensor
        return tensor

    leaves, _ = make((4, 5, 16), 64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = function(leaves)
    known = {each.data_ptr() for each in (*leaves, *results)}
    return sorted(each.numel() for pointer, each in packed.items() if pointer not in known)


def test_values_of_the_rationals_are_not_saved(plans):
    rows = [20, 20]  # mean and standard deviation
    assert saved_by(call) == [*rows, 20 * 64]
    assert saved_by(lambda leaves: call(leaves, recompute=False)) == [*rows, 20 * 16, 20 * 64, 20 * 64]


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"shape": (7, 64), "hidden": 32, "outputs": 24, "rows": (4, 4)}, marks=pytest.mark.slow),
        pytest.param({"shape": (37, 197, 192), "hidden": 768, "rows": (1, 8), "inputs": (F32, BF16)}, id="autocast"),
    ],
)
def test_recomputation_changes_no_bit(plans, options):
    autocast = BF16 if "inputs" in options else None
    if autocast and not HAS_GPU:
        pytest.skip("needs a CUDA GPU")
    leaves, grads = make(**options)
    grads = [grads[0], grads[1].to(autocast or F32)]
    found = []
    for recompute in (False, True):
        results = call(leaves, autocast, recompute=recompute)
        found.append((*results, *torch.autograd.grad(results, leaves, grads)))
    assert all(map(torch.equal, *found))


@pytest.fixture
def graphs(monkeypatch):
    """Compile as where there are kernels, and note each graph: its operators, and the sizes of its results."""
    for name in ("add_norm_grkan", "add_norm_rational", "linear_rational"):
        monkeypatch.setattr(importlib.import_module(f"flashkat.ops.{name}"), "fuses", lambda x: True)
    torch.compiler.reset()
    seen = []

    def note(graph, _):
        *_, last = graph.graph.nodes
        values = [each.meta["val"] for each in last.args[0] if hasattr(each, "meta")]
        sizes = [each.numel() for each in values if isinstance(each, torch.Tensor)]
        seen.append(({str(node.target) for node in graph.graph.nodes}, sizes))
        return make_boxed_func(graph.forward)

    yield aot_autograd(fw_compiler=note), seen
    torch.compiler.reset()


def kernels_on_cpus():
    return pytest.mark.skipif(HAS_GPU, reason="its tensors are on the CPU")


@kernels_on_cpus()
@pytest.mark.parametrize("dtype", [BF16, pytest.param(None, marks=pytest.mark.slow)])
def test_compiled_code_saves_no_values_of_the_rationals(graphs, dtype):
    backend, seen = graphs
    leaves, grads = make((4, 5, 16), 64)
    compiled = torch.compile(call, backend=backend, fullgraph=True)
    results = compiled(leaves, dtype)
    found = torch.autograd.grad(results, leaves, [grads[0], grads[1].to(results[1].dtype)])
    (operators, sizes), (backward_operators, _) = seen
    # Compilers see the products.
    assert {"aten.mm.default", "aten.addmm.default", "flashkat.bias_rational.default"} <= operators
    assert {"aten.mm.default", "flashkat.bias_rational_backward.default"} <= backward_operators
    assert sizes.count(20 * 64) == 1
    assert sizes.count(20 * 16) == 2 + 1  # sum and result, and the saved sum
    _, truths = exact(leaves, grads)
    for name, one, truth in zip(NAMES, found, truths, strict=True):
        assert distance(one, truth) < (0.1 if dtype else 10 * UNIT[F32]), name


@kernels_on_cpus()
@pytest.mark.parametrize("how", ["frozen", "saved", "without gradients"])
def test_other_compiled_code_takes_the_pieces(graphs, how):
    backend, seen = graphs
    leaves, _ = make()
    if how == "frozen":
        leaves[NAMES.index("weight2")].requires_grad_(False)
    compiled = torch.compile(call, backend=backend, fullgraph=True)
    with torch.set_grad_enabled(how != "without gradients"):
        results = compiled(leaves, recompute=how != "saved")
        torch.testing.assert_close(list(results), list(pieces(leaves)))
    (_, sizes), *_ = seen
    assert sizes.count(15 * 64) == {"frozen": 1, "saved": 2, "without gradients": 0}[how]


@kernels_on_cpus()
@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_take_the_pieces(graphs, strict):
    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ParameterList(leaf.detach() for leaf in make()[0][2:])

        def forward(self, x, branch):
            return add_norm_grkan(x, branch, Layers(*self.layers))

    x, branch = (leaf.detach() for leaf in make()[0][:2])
    program = torch.export.export(Half(), (x, branch), strict=strict)
    names = [str(node.target) for node in program.graph.nodes if "flashkat" in str(node.target)]
    assert names == ["flashkat.add_norm_rational.default", "flashkat.bias_rational.default"]


@pytest.mark.slow
@kernels_on_cpus()
def test_compiled_code_of_any_batch_size(graphs):
    backend, seen = graphs
    compiled = torch.compile(call, backend=backend, fullgraph=True, dynamic=True)
    for rows in (3, 5, 8):
        leaves, grads = make((rows, 16))
        found = torch.autograd.grad(compiled(leaves), leaves, grads)
        for one, truth in zip(found, exact(leaves, grads)[1], strict=True):
            assert distance(one, truth) < 10 * UNIT[F32]
    assert len(seen) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("shape", [(5, 19, 192), (64, 197, 192)])  # the formula of small tensors, and kernels
def test_compiled_recomputation_agrees(mode, shape):
    leaves, grads = make(shape, 768, rows=(1, 8), inputs=(F32, BF16))
    grads = [grads[0], grads[1].to(BF16)]
    torch.compiler.reset()

    def step(function, recompute):
        results = function(leaves, BF16, recompute=recompute)
        found = *results, *torch.autograd.grad(results, leaves, grads)
        return [each.clone() for each in found]

    compiled = torch.compile(call, fullgraph=True, mode=mode)
    for _ in range(3):
        found, saved = (step(compiled, recompute) for recompute in (True, False))
    truth, truths = exact(leaves, grads)
    for name, one, other, wanted in zip(("sum", "result", *NAMES), found, saved, (*truth, *truths), strict=True):
        assert one.dtype == other.dtype
        assert distance(one, wanted) < 2 * distance(other, wanted) + UNIT[BF16], name


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [None, "eager"])
def test_a_deep_model_takes_less_memory(mode):
    """By the values of all layers but those that the first backward pass needs at once.

    CUDA graphs share a pool that both cases fill. ``benchmarks.memory.recompute`` measures each in a model of its own.
    """
    depth, (leaves, grads) = 6, make((64, 197, 384), 1536, rows=(1, 8), inputs=(F32, BF16))
    torch.compiler.reset()

    def function(leaves, recompute):
        x, branch = leaves[:2]
        for _ in range(depth):
            x, branch = call([x, branch, *leaves[2:]], BF16, recompute=recompute)
        return x, branch

    run = function if mode == "eager" else torch.compile(function, fullgraph=True, mode=mode)

    def peak(recompute):
        for _ in range(2):  # the first run compiles
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            torch.autograd.grad(run(leaves, recompute), leaves, [grads[0], grads[1].to(BF16)])
        return torch.cuda.max_memory_allocated() - before

    less, more = peak(True), peak(False)
    assert more - less > 0.6 * depth * 5 * leaves[0].numel() * 2, (less, more)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_is_its_pieces_on_any_device(device, dtype):
    leaves, grads = make(dtype=dtype, inputs=(dtype, dtype), device=device)
    results = call(leaves)
    truth, truths = exact(leaves, grads)
    found = torch.autograd.grad(results, leaves, [grad.to(dtype) for grad in grads])
    for name, one, other in zip((*NAMES, "sum", "result"), (*found, *results), (*truths, *truth), strict=True):
        assert one.dtype == dtype
        assert distance(one, other) < 10 * UNIT[dtype], name


def test_gradients_of_one_result_alone(plans):
    leaves, grads = make()
    total, out = call(leaves)
    some = [leaves[NAMES.index(name)] for name in ("x", "branch")]
    for found in torch.autograd.grad(total, some, grads[0], retain_graph=True):
        torch.testing.assert_close(found, grads[0])
    unused = torch.autograd.grad(total, leaves[2:], grads[0], retain_graph=True, allow_unused=True)
    assert unused == (None,) * 10
    zero = torch.zeros_like(grads[0])
    truths = exact(leaves, (zero, grads[1]))[1]
    for found, truth in zip(torch.autograd.grad(out, leaves, grads[1]), truths, strict=True):
        assert distance(found, truth) < 10 * UNIT[F32]


def test_results_may_be_changed_in_place(plans):
    leaves, grads = make()
    total, out = call(leaves)
    out.mul_(2)
    found = torch.autograd.grad((total, out), leaves, grads)
    for one, truth in zip(found, exact(leaves, (grads[0], 2 * grads[1]))[1], strict=True):
        assert distance(one, truth) < 10 * UNIT[F32]


@pytest.mark.parametrize("frozen", [("weight1", "weight2"), ("branch",), ("scale",), NAMES[2:], NAMES])
def test_frozen_parts_are_left_to_the_pieces(plans, frozen):
    """Which save and compute only what the others need."""
    leaves, grads = make()
    for name in frozen:
        leaves[NAMES.index(name)].requires_grad_(False)
    results = call(leaves)
    assert plans == []
    if frozen == NAMES:
        assert not any(each.requires_grad for each in results)
        return
    torch.autograd.backward(results, list(grads))
    _, truths = exact(leaves, grads)
    for name, leaf, truth in zip(NAMES, leaves, truths, strict=True):
        assert (leaf.grad is None) == (name in frozen)
        assert leaf.grad is None or distance(leaf.grad, truth) < 10 * UNIT[F32]


def test_without_a_gradient_of_x(plans):
    """As in the first block of a model whose embedding is frozen."""
    leaves, grads = make()
    leaves[0].requires_grad_(False)
    found = torch.autograd.grad(call(leaves), leaves[1:], grads)
    assert plans[0] is not None
    for one, truth in zip(found, exact(leaves, grads)[1][1:], strict=True):
        assert distance(one, truth) < 10 * UNIT[F32]


@pytest.mark.parametrize("dtype", [BF16, pytest.param(F16, marks=pytest.mark.gpu)])
def test_a_backward_pass_within_autocast(plans, dtype):
    """Of a forward pass without: its kernels are for float32."""
    leaves, grads = make()
    results = call(leaves)
    with torch.autocast(DEVICE, dtype):
        found = torch.autograd.grad(results, leaves, grads, retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(results, leaves, grads), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_a_backward_pass_within_another_autocast(plans, dtype):
    leaves, grads = make(inputs=(F32, BF16))
    results = call(leaves, BF16)
    grads = [grads[0], grads[1].to(BF16)]
    with torch.autocast(DEVICE, dtype):
        found = torch.autograd.grad(results, leaves, grads, retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(results, leaves, grads), strict=True):
        assert torch.equal(one, other)


def test_each_parameter_is_saved_once(plans):
    leaves, _ = make()
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: packed.append(each) or each, lambda each: each):
        call(leaves)
    parameters = {leaf.data_ptr() for leaf in leaves[2:]}
    saved = [each.data_ptr() for each in packed if each.data_ptr() in parameters]
    assert len(saved) == len(set(saved)) == len(parameters)


def test_a_second_backward_pass_needs_to_be_asked_for(plans):
    leaves, grads = make()
    results = call(leaves)
    torch.autograd.backward(results, list(grads))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.backward(results, list(grads))


def test_tensors_of_any_strides(plans):
    leaves, grads = make()
    apart = [torch.stack([leaf.detach(), leaf.detach() + 1], -1)[..., 0].requires_grad_() for leaf in leaves]
    strided = [torch.stack([grad, grad], -1)[..., 0] for grad in grads]
    dense, found = call(leaves), call(apart)
    assert all(map(torch.equal, dense, found))
    for one, other in zip(
        torch.autograd.grad(dense, leaves, grads), torch.autograd.grad(found, apart, strided), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_second_derivatives(plans):
    leaves, grads = make()

    def penalty(results):
        first = torch.autograd.grad(results, leaves, grads, create_graph=True)
        return torch.autograd.grad(sum((each**2).sum() for each in first), leaves, materialize_grads=True)

    x, branch, scale, shift, a1, b1, weight1, bias1, a2, b2, weight2, bias2 = leaves
    first = rational_reference(F.layer_norm(x + branch, scale.shape, scale, shift), a1, b1)
    out = F.linear(rational_reference(F.linear(first, weight1, bias1), a2, b2), weight2, bias2)
    truths = penalty((x + branch, out))
    for name, found, truth in zip(NAMES, penalty(call(leaves)), truths, strict=True):
        assert distance(found, truth.double()) < 1e-3 if truth.any() else not found.any(), name
    assert plans[0] is not None


def test_many_gradients_at_once(plans):
    leaves, grads = make()
    out = call(leaves)[1]
    batch = torch.stack([grads[1], 2 * grads[1]])
    found = torch.autograd.grad(out, leaves, batch, is_grads_batched=True, retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(out, leaves, grads[1]), strict=True):
        torch.testing.assert_close(one[0], other, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(one[1], 2 * one[0])


@pytest.mark.parametrize(
    "change",
    [
        {"branch": (3, 1, 16)},
        {"weight1": (64, 8)},
        {"bias2": (5,)},
        {"weight2": (16, 32)},
        {"scale": (8,)},
        {"weight1": (64,)},
    ],
)
def test_pytorch_says_what_does_not_fit(plans, change):
    leaves, _ = make()
    for name, size in change.items():
        leaves[NAMES.index(name)] = torch.ones(size, device=DEVICE, requires_grad=True)
    if "branch" in change:
        assert call(leaves)[0].shape == (3, 5, 16)
    else:
        with pytest.raises(RuntimeError):
            call(leaves)
    assert plans == [None]


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16)])
def test_nothing_gives_nothing(plans, shape):
    leaves, grads = make(shape)
    results = call(leaves)
    assert [each.shape for each in results] == [shape, shape]
    assert not any(each.any() for each in torch.autograd.grad(results, leaves, grads))
    assert plans == [None]


def test_groups_without_whole_vectors_take_pytorchs_operators(plans):
    leaves, grads = make((3, 12), hidden=12, rows=(1, 6))
    results = call(leaves)
    assert plans == [None]
    assert distance(results[1], exact(leaves, grads)[0][1]) < UNIT[F32]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(plans, monkeypatch, mode):
    leaves, grads = make()
    with_node = call(leaves)
    with mode(), monkeypatch.context() as patch:
        patch.setattr(grkan_op._Eager, "apply", None)  # no node
        found = call(leaves)
    assert len(plans) == 2
    for one, other in zip(found, with_node, strict=True):
        torch.testing.assert_close(one, other.detach())
    for one, other in zip(found, exact(leaves, grads)[0], strict=True):
        assert distance(one, other) < UNIT[F32]
        assert not one.requires_grad
    monkeypatch.setattr(settings, "ONE_CALL_ELEMENTS", leaves[0].numel() - 1)
    with mode():
        in_pieces = call(leaves)
    assert len(plans) == 2
    for one, other in zip(found, in_pieces, strict=True):
        torch.testing.assert_close(one, other)


def test_forward_mode_takes_the_pieces(plans):
    leaves = [leaf.detach() for leaf in make()[0]]
    _, expected = torch.func.jvp(lambda x: pieces([x, *leaves[1:]]), (leaves[0],), (torch.ones_like(leaves[0]),))
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(leaves[0], torch.ones_like(leaves[0]))
        found = [torch.autograd.forward_ad.unpack_dual(each).tangent for each in call([dual, *leaves[1:]])]
    assert plans[0] is not None
    torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("autocast", [None, BF16])
def test_without_gradients_in_all_dtypes(plans, dtype, autocast):
    leaves, _ = make((5, 19, 192), 768, rows=(1, 8), dtype=dtype, inputs=(dtype, dtype))
    with torch.no_grad():
        found, truth = call(leaves, autocast), pieces(leaves, autocast)
    assert (plans[0] is not None) == (dtype in (F32, autocast or dtype))
    for one, other in zip(found, truth, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)
