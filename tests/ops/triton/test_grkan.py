"""The plan of a block's second half: what it launches, gives, saves and lets go of."""

import pytest
import torch
import torch.nn.functional as F
from oracle import distance

from flashkat.ops import rational_reference
from flashkat.ops.call import metadata
from flashkat.ops.layout import Layers

pytest.importorskip("triton")
from flashkat.ops.triton.grkan import Plan, Saved

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where there is no GPU, Triton interprets
F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(6)
    x, branch = torch.randn(2, 2, 3, 16, generator=generator).to(DEVICE).unbind(0)
    sizes = (16,), (16,), (1, 6), (2, 4), (32, 16), (32,), (1, 6), (2, 4), (8, 32), (8,)
    return x, branch, Layers(*(torch.randn(size, generator=generator).to(DEVICE) / 4 for size in sizes))


def plan_of(x, branch, layers, dtype=F32, recompute=False):
    return Plan.make(metadata(x), metadata(branch), Layers(*map(metadata, layers)), 1e-5, dtype, recompute)


def test_gives_fresh_tensors_of_the_right_values(case):
    x, branch, layers = case
    total, out, _ = plan_of(*case).forward(*case)
    assert torch.equal(total, x + branch)
    wide = [each.double() for each in (total, *layers)]
    first = rational_reference(F.layer_norm(wide[0], (16,), wide[1], wide[2], 1e-5), wide[3], wide[4])
    truth = F.linear(rational_reference(F.linear(first, wide[5], wide[6]), wide[7], wide[8]), wide[9], wide[10])
    assert (out.shape, out.is_contiguous()) == ((2, 3, 8), True)
    assert distance(out, truth) < 5e-6
    # A view of a custom function could not be changed in place.
    assert out.untyped_storage().nbytes() == out.numel() * out.element_size()
    assert out._base is None


def test_saves_weights_only_where_they_were_cast(case):
    _, _, saved = plan_of(*case).forward(*case)
    assert (saved.weight1, saved.weight2) == (None, None)
    _, out, saved = plan_of(*case, BF16).forward(*case)
    assert out.dtype == saved.weight1.dtype == saved.weight2.dtype == BF16
    assert saved.first.shape == (6, 16)
    assert saved.hidden.shape == saved.second.shape == (6, 32)


def test_saves_no_value_that_is_recomputed(case):
    _, _, saved = plan_of(*case, BF16, recompute=True).forward(*case)
    assert (saved.first, saved.second) == (None, None)
    assert (saved.hidden.shape, saved.hidden.dtype) == ((6, 32), BF16)


def test_recomputation_changes_no_bit(case):
    _, _, layers = case
    found = []
    for recompute in (False, True):
        plan = plan_of(*case, recompute=recompute)
        total, out, saved = plan.forward(*case)
        found.append((total, out, *plan.backward(total.cos(), out.cos(), list(saved), layers)))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("recompute", [False, True])
def test_the_backward_pass_lets_go_of_what_was_saved(case, recompute):
    x, branch, layers = case
    plan = plan_of(*case, recompute=recompute)
    total, out, saved = plan.forward(*case)
    held = list(Saved(*saved))
    grads = plan.backward(torch.ones_like(total), torch.ones_like(out), held, layers)
    assert held == []
    assert [each.shape for each in grads] == [each.shape for each in (x, branch, *layers)]
    torch.testing.assert_close(grads[-1], torch.full_like(layers.bias2, 6))
