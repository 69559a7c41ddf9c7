"""The inputs that the rationals of a model see."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from flashkat import GroupRational
from flashkat.compat import KAT_Group2D
from flashkat.nn.learned.inputs import ends, input_ranges, sampled_inputs


def test_ranges_are_quantiles_of_the_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), GroupRational(16), nn.Linear(16, 8), nn.Dropout(0.5), GroupRational(8, 4))
    model.train()
    batches = [torch.randn(200, 4), torch.randn(100, 4) + 5]
    found = input_ranges(model, batches)
    model.eval()
    with torch.no_grad():
        recorded = {
            name: torch.cat([model[: int(name)](batch).flatten() for batch in batches]).double() for name in "14"
        }
    assert found.keys() == recorded.keys()
    for name, values in recorded.items():
        low, high = np.quantile(values.numpy(), [0.001, 0.999])
        assert found[name] == pytest.approx((low, high), rel=1e-4, abs=1e-4)
    # What was hooked is free again.
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_are_removed_after_an_error():
    model = nn.Sequential(GroupRational(8), nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        input_ranges(model, [torch.randn(2, 8)])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_goes_on_in_its_mode():
    model = nn.Sequential(GroupRational(8), nn.Dropout(), nn.Dropout().eval())
    input_ranges(model, [torch.randn(2, 8)])
    assert [module.training for module in model.modules()] == [True, True, True, False]


def test_outliers_are_left_out():
    x = torch.zeros(100_000)
    x[:10] = 1e6
    low, high = input_ranges(nn.Sequential(GroupRational(8)), [x.view(-1, 8)])["0"]
    assert (low, high) == (0, 0)


@pytest.mark.parametrize(
    "rows",
    [
        1000,
        200_000,
    ],
)
def test_every_channel_counts(rows):
    x = torch.rand(rows, 8) - 0.5
    x[:, 3] += 100
    low, high = input_ranges(nn.Sequential(GroupRational(8)), [x])["0"]
    assert low == pytest.approx(-0.5, abs=0.1)
    assert high == pytest.approx(100.5, abs=0.1)


def test_many_values_in_half_precision():
    # More than torch's quantile takes, 16 million.
    x = torch.linspace(-1, 1, 2_100_000).repeat(8).view(8, -1).T.to(torch.bfloat16)
    low, high = input_ranges(nn.Sequential(GroupRational(8)), [x])["0"]
    assert (low, high) == pytest.approx((-0.998, 0.998), abs=0.01)
    assert math.isfinite(low)


def test_samples_belong_to_their_groups():
    """A group's channels lie side by side, along the module's own dimension."""
    x = torch.tensor([0.0] * 4 + [100.0] * 4)[None, :, None, None] + torch.rand(3, 8, 5, 5)
    for module in (GroupRational(8, 2, dim=1), KAT_Group2D(2, "gelu", "cpu")):
        (samples,) = sampled_inputs(nn.Sequential(module), [x, x]).values()
        assert samples.shape == (2, 2 * 3 * 4 * 25)
        assert samples[0].max() < 1 < 100 <= samples[1].min()
        assert torch.equal(samples[0].sort().values, torch.cat([x[:, :4], x[:, :4]]).flatten().sort().values)


def test_one_shared_function_sees_all_groups():
    module = GroupRational(8, 2, share_numerator=True, share_denominator=True)
    (samples,) = sampled_inputs(nn.Sequential(module), [torch.randn(3, 8)]).values()
    assert samples.shape == (1, 24)


def test_the_same_inputs_give_the_same_sample():
    model, x = nn.Sequential(GroupRational(8)), torch.randn(50_000, 8)
    first, second = sampled_inputs(model, [x])["0"], sampled_inputs(model, [x])["0"]
    assert torch.equal(first, second)
    assert first.shape == (8, 100_000 // 8)


def test_ends_leave_a_thousandth_out():
    assert ends(torch.linspace(0, 1, 1001)) == pytest.approx((0.001, 0.999))
