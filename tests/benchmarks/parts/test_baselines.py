"""The baselines compute the operator: what is compared with is the same function."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.parts import baselines
from flashkat.ops import rational_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PASSES = {
    "kat": (baselines.kat, baselines.kat_forward, baselines.kat_backward),
    "flashkat": (baselines.flashkat, baselines.flashkat_forward, baselines.flashkat_backward),
}


def _tensors(shape, rows, dtype=torch.float32, m=6, n=4):
    generator = torch.Generator().manual_seed(0)
    shapes = (shape, shape, (rows[0], m), (rows[1], n))
    x, grad, a, b = (torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes)
    return x.to(dtype), grad.to(dtype), a, b


def _expected(x, grad, a, b):
    leaves = [tensor.double().requires_grad_() for tensor in (x, a, b)]
    y = rational_reference(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.double())]


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize(
    ("shape", "rows", "degrees"),
    [
        ((3, 7, 48), (1, 8), (6, 4)),
        ((3, 7, 48), (8, 8), (6, 4)),
        ((37, 10), (2, 1), (4, 2)),
        ((5, 40), (1, 1), (8, 6)),
    ],
)
def test_forward_and_gradients(name, shape, rows, degrees):
    _, forward, backward = PASSES[name]
    x, grad, a, b = _tensors(shape, rows, m=degrees[0], n=degrees[1])
    found = [forward(x, a, b), *backward(grad, x, a, b)]
    for f, e in zip(found, _expected(x, grad, a, b), strict=True):
        assert f.dtype == torch.float32
        torch.testing.assert_close(f.double(), e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PASSES)
def test_bfloat16_is_cast_up_and_down(name):
    _, forward, backward = PASSES[name]
    x, grad, a, b = _tensors((2, 3, 16), (1, 8), torch.bfloat16)
    assert torch.equal(forward(x, a, b), forward(x.float(), a, b).bfloat16())
    grad_x, grad_a, grad_b = backward(grad, x.float(), a, b)
    assert (grad_x.dtype, grad_a.dtype, grad_b.dtype) == (torch.bfloat16, torch.float32, torch.float32)


@pytest.mark.parametrize("name", PASSES)
def test_differentiable(name):
    function, _, _ = PASSES[name]
    x, grad, a, b = _tensors((2, 3, 16), (1, 8))
    leaves = [tensor.requires_grad_() for tensor in (x, a, b)]
    y = function(*leaves)
    found = [y.detach(), *torch.autograd.grad(y, leaves, grad)]
    for f, e in zip(found, _expected(x, grad, a, b), strict=True):
        torch.testing.assert_close(f.double(), e, rtol=1e-4, atol=1e-4)
