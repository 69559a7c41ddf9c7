"""The definition, against exact arithmetic, and its derivatives."""

from fractions import Fraction

import pytest
import torch

from flashkat.ops.reference import as_inputs, compute_dtype, differentiate, rational_reference


def test_is_exact_for_small_fractions():
    x = torch.tensor([[-2.0, -0.5, 0.0, 1.0]], dtype=torch.float64)
    found = rational_reference(x, torch.tensor([[1.0, 2.0, -3.0]]), torch.tensor([[0.5, -0.25], [1.0, 0.0]]))
    truths = []
    for value, (b1, b2) in zip(
        (-2, Fraction(-1, 2), 0, 1), [(Fraction(1, 2), Fraction(1, 4))] * 2 + [(1, 0)] * 2, strict=True
    ):
        truths.append(Fraction(1 + 2 * value - 3 * value**2) / (1 + b1 * abs(value) + b2 * value**2))
    assert found[0].tolist() == pytest.approx([float(truth) for truth in truths], rel=1e-15)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_groups_are_along_the_dimension(dim):
    x = torch.randn(4, 4, 4, dtype=torch.float64)
    a, b = torch.randn(2, 3, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    last = rational_reference(x.movedim(dim, -1), a, b).movedim(-1, dim)
    torch.testing.assert_close(rational_reference(x, a, b, dim), last)


def test_the_absolute_value_has_the_derivative_one_at_zero():
    x, a, b = torch.ones(1, 1), torch.tensor([[2.0]]), torch.zeros(1, 1, requires_grad=True)
    (grad,) = torch.autograd.grad(rational_reference(x, a, b).sum(), b)
    assert grad.item() == -2


def test_dtypes():
    x = torch.ones(2, 4)
    for dtype, arithmetic in ((torch.float64,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)):
        assert compute_dtype(dtype) == arithmetic
        assert rational_reference(x.to(dtype), torch.ones(1, 2), torch.ones(1, 1)).dtype == dtype


@pytest.mark.parametrize("higher", [False, True])
def test_gradients_can_be_differentiated_where_that_is_wanted(higher):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    frozen = torch.randn(1, 3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    with torch.set_grad_enabled(higher):
        found = differentiate(rational_reference, torch.ones_like(x), x, *frozen, -1)
    leaves = [each.detach().requires_grad_() for each in (x, *frozen)]
    truths = torch.autograd.grad(rational_reference(*leaves).sum(), leaves)
    for one, truth in zip(found, truths, strict=True):
        torch.testing.assert_close(one.detach(), truth)
        assert one.requires_grad is higher


def test_inputs_are_nodes_of_their_own():
    x = torch.ones(2, requires_grad=True)
    first, second, frozen = as_inputs([x, x, torch.ones(2)])
    assert first is not second
    assert frozen.requires_grad
    assert torch.autograd.grad((2 * first + 3 * second).sum(), first)[0].tolist() == [2, 2]
