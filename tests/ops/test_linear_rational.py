"""A linear layer and the rational, its bias added by the kernels, against float64, and as what PyTorch sees."""

import pytest
import torch
import torch.nn.functional as F
from oracle import distance

from flashkat.ops import linear_rational, rational_reference

pytest.importorskip("triton")
from flashkat.ops.triton import rational as launch

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"  # where there is no GPU, Triton interprets
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
UNIT = {torch.float64: 1e-13, F32: 2e-6, F16: 1e-3, BF16: 1e-2}


def normal(generator, *size, dtype=F32, device=DEVICE):
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).to(device)


@pytest.mark.parametrize(
    ("shape", "groups", "rows", "dtype", "out_dtype", "scale"),
    [
        ((2, 9, 192), 8, 1, BF16, BF16, 1.0),
        ((70, 64), 4, 4, F32, F32, 1.0),
        ((3, 768), 8, 1, F16, F16, 1.0),
        ((7, 64), 1, 1, F32, BF16, 1.0),  # both shared
        ((9, 64), 4, 1, F32, F32, 1e12),  # powers that overflow: done again with care
    ],
)
def test_kernels_match_float64(shape, groups, rows, dtype, out_dtype, scale):
    generator = torch.Generator().manual_seed(3)
    x, grad = normal(generator, *shape, dtype=dtype), normal(generator, *shape, dtype=out_dtype)
    bias = scale * normal(generator, shape[-1])
    a, b = normal(generator, rows, 6), normal(generator, groups, 4)
    out = launch.forward(x, a, b, -1, out_dtype, bias)
    grads = launch.backward(grad, x, a, b, -1, bias)
    again = launch.backward(grad, x, a, b, -1, bias)
    leaves = [tensor.double().requires_grad_() for tensor in (x, a, b, bias)]
    truth = rational_reference(leaves[0] + leaves[3], *leaves[1:3])
    truths = torch.autograd.grad(truth, leaves, grad.double())
    assert distance(out, truth.detach()) <= UNIT[out_dtype]
    for found, truth, same in zip(grads, truths, again, strict=True):
        assert distance(found, truth) <= UNIT[found.dtype]
        assert torch.equal(found, same)


def test_a_bias_of_any_strides():
    generator = torch.Generator().manual_seed(3)
    x, grad, a, b = (normal(generator, *size) for size in ((5, 64), (5, 64), (1, 6), (4, 4)))
    bias = normal(generator, 64)
    for same in (torch.stack([bias, bias + 1], dim=-1)[:, 0], bias[:1].expand(64)):
        dense = same.clone(memory_format=torch.contiguous_format)
        assert torch.equal(launch.forward(x, a, b, -1, F32, same), launch.forward(x, a, b, -1, F32, dense))
        found, expected = (launch.backward(grad, x, a, b, -1, each) for each in (same, dense))
        assert all(map(torch.equal, found, expected))


def test_no_rows_give_zero_gradients():
    x = torch.empty(0, 64, device=DEVICE)
    a, b, bias = (torch.ones(*size, device=DEVICE) for size in ((1, 6), (4, 4), (64,)))
    assert launch.forward(x, a, b, -1, F32, bias).shape == (0, 64)
    assert [grad.shape for grad in launch.backward(x, x, a, b, -1, bias)] == [x.shape, a.shape, b.shape, bias.shape]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


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
def test_compiled_calls_agree(mode):
    leaves, grad = make("cuda")

    def step(function):
        with torch.autocast("cuda", BF16):
            out = function(*leaves)
        return out, *torch.autograd.grad(out, leaves, grad.to(BF16))

    eager, compiled = step(linear_rational), torch.compile(linear_rational, fullgraph=True, mode=mode)
    for _ in range(3):
        found = [each.clone() for each in step(compiled)]
    for one, other in zip(found, eager, strict=True):
        assert distance(one, other.double()) < 2e-2
