"""Addition, LayerNorm and the rational in one pass, against float64, eager and compiled."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from norm_oracle import exact, make
from oracle import distance
from torch.testing import assert_close

from flashkat.ops import add_norm_rational, rational_reference

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


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


def test_the_sum_of_frozen_tensors_needs_no_gradient(device, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(importlib.import_module("flashkat.ops.add_norm_rational"), "fuses", lambda x: True)
    tensors = [each.detach() for each in make((3, 16), groups=2, dtypes=(F32, F32, F32))[0]]
    tensors = [each.to(device).requires_grad_(index > 1) for index, each in enumerate(tensors)]
    total, out = add_norm_rational(*tensors)
    assert (total.requires_grad, out.requires_grad) == (False, True)
    assert all(grad is not None for grad in torch.autograd.grad(out.sum(), tensors[2:]))


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
