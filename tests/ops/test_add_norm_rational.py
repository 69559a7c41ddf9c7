"""Addition, LayerNorm and the rational in one pass, against float64, and as what PyTorch sees."""

import pytest
import torch
import torch.nn.functional as F
from oracle import distance
from torch.testing import assert_close

from flashkat.ops import add_norm_rational, rational_reference

pytest.importorskip("triton")
from flashkat.ops.triton import norm as norm_launch

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"  # where there is no GPU, Triton interprets
NAMES = ("grad_x", "grad_branch", "grad_weight", "grad_bias", "grad_numerator", "grad_denominator")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def make(shape, groups=8, rows=1, dtypes=(F32, BF16, BF16), m=6, n=4, scale=1.0, device=DEVICE):
    """x, branch, weight, bias, numerator, denominator, and gradients of sum and result."""
    generator = torch.Generator().manual_seed(5)

    def normal(*size, dtype=F32):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).to(device)

    channels = shape[-1]
    inputs = [normal(*shape, dtype=dtypes[0]), normal(*shape, dtype=dtypes[1])]
    inputs += [scale * normal(channels), normal(channels), normal(rows, m), normal(groups, n)]
    return inputs, normal(*shape, dtype=torch.promote_types(*dtypes[:2])), normal(*shape, dtype=dtypes[2])


def exact(inputs, grad_total, grad_out, eps, total=None):
    """The results and the gradients in float64; normalised is what is rounded to ``total``, if given."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in inputs]
    added = leaves[0] + leaves[1]
    if total is not None:
        added = added + (total.double() - added).detach()
    out = rational_reference(F.layer_norm(added, leaves[2].shape, leaves[2], leaves[3], eps), leaves[4], leaves[5])
    grads = torch.autograd.grad([added, out], leaves, [grad_total.double(), grad_out.double()], materialize_grads=True)
    return added.detach(), out.detach(), grads


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 7, 192), {}),
        ((9, 192), {"rows": 8}),
        ((5, 96), {"groups": 4, "rows": 4, "dtypes": (F32, F32, F32)}),
        ((3, 3, 64), {"groups": 4, "dtypes": (BF16, BF16, BF16)}),
        ((9, 320), {"dtypes": (F32, F32, F32)}),  # lanes lie idle
        ((6, 100), {"groups": 5, "rows": 5, "dtypes": (F32, F16, F16)}),
        ((6, 100), {"groups": 1, "dtypes": (F32, F16, F32)}),  # both shared
        ((3, 768), {}),  # a row takes two warps
        ((6, 64), {"groups": 4, "m": 4, "n": 2}),
        ((6, 64), {"groups": 2, "m": 3, "n": 0, "dtypes": (F32, F32, F32)}),
        ((1, 16), {"groups": 2}),
        # Powers that overflow: done again with care.
        ((7, 64), {"groups": 4, "dtypes": (F32, F32, F32), "scale": 1e5}),
        ((40, 192), {"scale": 1e5, "rows": 8}),  # several runs of a program
        ((9, 192), {"scale": 1e5}),
    ],
)
def test_kernels_match_float64(shape, options):
    inputs, grad_total, grad_out = make(shape, **options)
    total, mean, rstd, out = norm_launch.forward(*inputs, 1e-6, grad_out.dtype)
    dtypes = inputs[0].dtype, inputs[1].dtype
    grads = norm_launch.backward(grad_total, grad_out, total, mean, rstd, *inputs[2:], *dtypes)
    again = norm_launch.backward(grad_total, grad_out, total, mean, rstd, *inputs[2:], *dtypes)
    truth_total, truth, truths = exact(inputs, grad_total, grad_out, 1e-6, total)
    # Triton's interpreter truncates to bfloat16.
    unit = {F32: 2e-6, F16: 1e-3, BF16: 1e-2}
    if "scale" in options:  # most of the slope is constant or linear over the row, and cancels
        unit[F32] = 1e-4
    assert distance(total, truth_total) <= unit[total.dtype]
    assert distance(out, truth) <= unit[out.dtype]
    for name, found, truth, same in zip(NAMES, grads, truths, again, strict=True):
        if truth.numel():
            assert distance(found, truth) <= unit[found.dtype], name
        assert torch.equal(found, same), name


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("wild", [0.0, 1e4])
def test_what_cancels_in_a_row_is_kept_in_float32(dtype, wild):
    """Gradients with a large part in common, which LayerNorm takes away; with ``wild`` inputs done again with care."""
    inputs, _, _ = make((9, 64), groups=4, dtypes=(dtype, dtype, F32))
    inputs[2].fill_(1.0)
    inputs[3].fill_(wild)
    inputs[4].copy_(torch.tensor([[0.0, 1, 0, 0, 0, 0]]))
    inputs[5].zero_()
    grad_out = 1000 + make((9, 64), groups=4, dtypes=(F32, F32, F32))[2]
    total, mean, rstd, _ = norm_launch.forward(*inputs, 1e-6, F32)
    found = norm_launch.backward(None, grad_out, total, mean, rstd, *inputs[2:], dtype, dtype)[0]
    truth = exact(inputs, torch.zeros_like(total), grad_out, 1e-6, total)[2][0]
    assert distance(found, truth) < {F32: 1e-4, F16: 1e-3, BF16: 1e-2}[dtype]


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_large_slopes_of_small_gradients_are_finite(dtype):
    """Of a square around 1e6, with rows that spread so far that little is left of it; one channel has no weight."""
    inputs, _, grad_out = make((9, 64), groups=4, dtypes=(dtype, dtype, F32))
    inputs[0] *= 1000
    inputs[2].fill_(1.0)
    inputs[2][5] = 0.0
    inputs[3].fill_(1e6)
    inputs[4].copy_(torch.tensor([[0.0, 0, 1, 0, 0, 0]]))
    inputs[5].zero_()
    total, mean, rstd, _ = norm_launch.forward(*inputs, 1e-6, F32)
    found = norm_launch.backward(None, grad_out, total, mean, rstd, *inputs[2:], dtype, dtype)[0]
    truth = exact(inputs, torch.zeros_like(total), grad_out, 1e-6, total)[2][0]
    assert distance(found, truth) < {F16: 1e-3, BF16: 1e-2}[dtype]


def test_without_a_gradient_of_the_sum():
    inputs, _, grad_out = make((5, 64), groups=4, dtypes=(F32, F32, F32))
    total, mean, rstd, _ = norm_launch.forward(*inputs, 1e-6, F32)
    grads = norm_launch.backward(None, grad_out, total, mean, rstd, *inputs[2:], F32, F32)
    _, _, truths = exact(inputs, torch.zeros_like(total), grad_out, 1e-6)
    assert grads[0] is grads[1]
    assert distance(grads[0], truths[0]) < 2e-6


def test_what_is_added_to_itself():
    (x, _, *parameters), grad_total, grad_out = make((5, 64), groups=4, dtypes=(F32, F32, F32))
    total, _, _, out = norm_launch.forward(x, x, *parameters, 1e-6, F32)
    truth_total, truth, _ = exact([x, x, *parameters], grad_total, grad_out, 1e-6)
    assert distance(total, truth_total) < 1e-6
    assert distance(out, truth) < 1e-6


def strided(tensor):
    """The same numbers, each apart from the next."""
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1)[..., 0]


def test_tensors_of_any_strides():
    inputs, grad_total, grad_out = make((5, 64), groups=4, rows=4)
    apart, options = [strided(each) for each in inputs], (inputs[0].dtype, inputs[1].dtype)
    forward = norm_launch.forward(*inputs, 1e-6, grad_out.dtype)
    found = norm_launch.forward(*apart, 1e-6, grad_out.dtype)
    assert all(map(torch.equal, found, forward))
    total, mean, rstd, _ = forward
    backward = norm_launch.backward(grad_total, grad_out, total, mean, rstd, *inputs[2:], *options)
    saved = (strided(each) for each in (total, mean, rstd))
    found = norm_launch.backward(strided(grad_total), strided(grad_out), *saved, *apart[2:], *options)
    assert all(map(torch.equal, found, backward))


def test_no_rows_give_empty_results_and_zero_gradients():
    inputs, grad_total, grad_out = make((0, 64), groups=4)
    total, mean, rstd, out = norm_launch.forward(*inputs, 1e-6, BF16)
    assert total.shape == out.shape == (0, 64)
    grads = norm_launch.backward(grad_total, grad_out, total, mean, rstd, *inputs[2:], F32, BF16)
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("channels", [16, 64, 96, 100, 192, 384, 768, 1000, 1152, 1536, 3072, 4096])
@pytest.mark.parametrize("vector", [4, 8])
def test_rows_are_covered_and_few_lanes_idle(channels, vector):
    if channels % vector:
        pytest.skip("vectors would lie across groups")
    view = norm_launch.Rows.choose(channels, vector)
    covered = view.chunks * view.vectors * view.vector
    assert channels <= covered <= 1.4 * channels
    assert view.chunks <= 4
    assert view.vectors * view.rows >= 32 * view.warps  # no two threads have the same work


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.mark.parametrize("dtypes", [(torch.float64,) * 3, (F32, F32, F32), (F32, BF16, F32), (BF16, BF16, BF16)])
def test_is_addition_normalisation_and_rational(device, dtypes):
    inputs, grad_total, grad_out = make((3, 5, 64), groups=4, dtypes=dtypes, device=device)
    if dtypes[0] == torch.float64:
        inputs = [tensor.double() for tensor in inputs]
    leaves = [tensor.requires_grad_() for tensor in inputs]
    results = add_norm_rational(*leaves, 1e-6)
    assert [each.dtype for each in results] == [grad_total.dtype, grad_total.dtype]
    grads = torch.autograd.grad(results, leaves, [grad_total, grad_out.to(grad_total.dtype)])
    total, out, truths = exact(inputs, grad_total, grad_out, 1e-6, results[0].detach())
    unit = {torch.float64: 1e-13, F32: 2e-6, BF16: 2e-2}
    for found, truth in zip((*results, *grads), (total, out, *truths), strict=True):
        assert distance(found.detach(), truth.detach()) <= unit[found.dtype if found.ndim > 2 else dtypes[0]]


def test_autocast_decides_the_dtype_of_the_result(device):
    inputs, _, _ = make((3, 64), groups=4, dtypes=(F32, F32, F32), device=device)
    with torch.autocast(device, BF16):
        total, out = add_norm_rational(*inputs)
    assert (total.dtype, out.dtype) == (F32, BF16)


def test_gradients_of_one_result_alone(device):
    inputs, grad_total, grad_out = make((3, 64), groups=4, dtypes=(F32, F32, F32), device=device)
    x, branch = (tensor.requires_grad_() for tensor in inputs[:2])
    total, _ = add_norm_rational(x, branch, *inputs[2:])
    for grad in torch.autograd.grad(total, (x, branch), grad_total):
        assert_close(grad, grad_total)
    _, out = add_norm_rational(x, branch, *inputs[2:], 1e-6)
    truth = exact(inputs, torch.zeros_like(grad_total), grad_out, 1e-6)[2][0]
    assert distance(torch.autograd.grad(out, x, grad_out)[0], truth) < 2e-6


def test_second_derivatives(device):
    inputs, grad_total, grad_out = make((3, 64), groups=4, dtypes=(F32, F32, F32), device=device)

    def penalty(function):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        total, out = function(*leaves)
        first = torch.autograd.grad([total, out], leaves, [grad_total, grad_out], create_graph=True)
        return torch.autograd.grad(sum((grad**2).sum() for grad in first), leaves)

    def plain(x, branch, weight, bias, numerator, denominator):
        total = x + branch
        return total, rational_reference(F.layer_norm(total, weight.shape, weight, bias), numerator, denominator)

    for found, truth in zip(penalty(add_norm_rational), penalty(plain), strict=True):
        assert distance(found, truth.double()) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("dtypes", [(F32, BF16, BF16), (F32, F32, F32)])
def test_compiled_calls_give_the_same_bits(mode, dtypes):
    inputs, grad_total, _ = make((32, 197, 192), dtypes=dtypes)  # too large for a formula in place of the kernels

    def step(function, leaves):
        with torch.autocast("cuda", BF16, enabled=dtypes[1] == BF16):
            total, out = function(*leaves)
        return total, out, *torch.autograd.grad((total * grad_total).sum() + out.float().square().sum(), leaves)

    leaves = [tensor.requires_grad_() for tensor in inputs]
    eager = step(add_norm_rational, leaves)
    compiled = torch.compile(add_norm_rational, fullgraph=True, mode=mode)
    for _ in range(3):
        found = [tensor.clone() for tensor in step(compiled, leaves)]
    for one, other in zip(found, eager, strict=True):
        assert torch.equal(one, other)
