import math

import pytest
import torch
from torch import nn

from flashkat.errors import InputError
from flashkat.tools.convert.trial import Trial, difference, reach


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x, scale=1.0):
        noise = torch.rand(3)
        return {"out": (self.norm(x) * scale, [noise]), "index": torch.arange(3), "rest": None}


X = torch.randn(4, 3)


@pytest.mark.parametrize("example", [X, (X,), [X, 1.0], {"x": X, "scale": 1.0}])
def test_outputs_are_tensors_of_an_evaluation(example):
    net = Net()
    outputs = Trial(net, example).outputs()
    assert [tuple(out.shape) for out in outputs] == [(4, 3), (3,)]
    torch.testing.assert_close(outputs[0], X / (1 + net.norm.eps) ** 0.5)
    assert not outputs[0].requires_grad
    assert net.training
    assert net.norm.training
    assert int(net.norm.num_batches_tracked) == 0


def test_random_numbers_are_the_same_and_go_on_as_before():
    trial = Trial(Net(), X)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(trial.outputs()[1], trial.outputs()[1])
    assert torch.equal(torch.rand(1), expected)


def test_modes_are_restored_after_an_error():
    net = Net()
    with pytest.raises(InputError, match="Net does not run on the example"):
        Trial(net, torch.randn(4, 5)).outputs()
    assert net.training


def test_difference_and_reach():
    one, other = (
        [torch.tensor([1.0, float("inf")]), torch.zeros(0)],
        [torch.tensor([-2.0, float("inf")]), torch.zeros(0)],
    )
    assert difference(one, other) == 3
    assert reach([torch.tensor([1.0, -4.0])]) == 4
    assert difference([], []) == reach([]) == 0


def test_numbers_that_are_not_finite():
    one, other = [torch.zeros(1), torch.tensor([float("nan"), 1.0])], [torch.zeros(1), torch.zeros(2)]
    assert math.isnan(difference(one, other))
    assert math.isnan(reach(one))
    with pytest.raises(InputError, match="returns NaN on the example; give another"):
        Trial(Net(), torch.full((4, 3), float("nan"))).outputs()


def test_masked_outputs_are_compared():
    masked = [torch.tensor([1.0, -torch.inf])]
    assert difference(masked, [torch.tensor([1.5, -torch.inf])]) == 0.5
    assert difference(masked, [torch.tensor([1.0, 0.0])]) == math.inf
