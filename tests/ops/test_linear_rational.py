"""A linear layer and the rational, against float64, eager and compiled."""

import pytest
import torch
import torch.nn.functional as F
from oracle import distance

from flashkat.ops import linear_rational, rational_reference

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
