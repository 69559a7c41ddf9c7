"""Where the first number that is not finite appears, in models whose fault is known."""

import gc
import math
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flashkat.evaluation.nonfinite import BadUpdates, Trace, nonfinite_names


class Overflow(nn.Module):
    def forward(self, x):
        return x * math.inf


class SteepAtZero(nn.Module):
    """Finite, but not its gradient."""

    def forward(self, x):
        return x + (x * 0).abs().sqrt()


class Net(nn.Module):
    def __init__(self, fault=None, between=None, **how):
        super().__init__()
        self.first, self.fault, self.last = nn.Linear(3, 4), fault or nn.Identity(), nn.Linear(4, 2)
        self.act, self.between, self.recomputes = nn.ReLU(inplace=True), between, how.get("recomputes", False)

    def forward(self, x):
        x = self.first(x)
        x = x + checkpoint(self.fault, x, use_reentrant=False) if self.recomputes else x + self.fault(x)
        if self.between is not None:
            x = self.between(x)
        return self.last(self.act(x))


def traced(model, images=None, loss=lambda output: output.sum(), batches=1):
    images = torch.ones(5, 3) if images is None else images
    with Trace(model) as trace:
        trace.weights()
        for _ in range(batches):
            trace.images(images)
            value = loss(model(images))
            trace.loss(value)
            value.backward()
        trace.gradients()
    return trace.first()


def where(*args, **kwargs):
    _, found = traced(*args, **kwargs)
    return found


@pytest.mark.parametrize("recomputes", [False, True])
def test_finite_numbers(recomputes):
    assert traced(Net(recomputes=recomputes), batches=2) is None
    assert traced(Net(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), recomputes=recomputes)) is None


@pytest.mark.parametrize("recomputes", [False, True])
def test_a_layer_that_overflows(recomputes):
    assert where(Net(Overflow(), recomputes=recomputes)) == "the output of fault (Overflow)"
    inner = nn.Sequential(nn.Identity(), Overflow(), nn.Identity())
    assert where(Net(inner, recomputes=recomputes)) == "the output of fault.1 (Overflow)"


@pytest.mark.parametrize("recomputes", [False, True])
def test_a_gradient_alone(recomputes):
    place = "the backward pass of fault (SteepAtZero), from SqrtBackward0"
    assert where(Net(SteepAtZero(), recomputes=recomputes)) == place
    inner = nn.Sequential(nn.Identity(), SteepAtZero())
    assert where(Net(inner, recomputes=recomputes)) == place.replace("fault", "fault.1")


def test_operations_between_modules():
    found = where(Net(between=lambda x: x / 0))
    assert found == "the forward pass of the model (Net) itself, in the input of act (ReLU)"
    found = where(Net(between=lambda x: x + (x * 0).abs().sqrt()))
    assert found == "the backward pass of the model (Net) itself, from SqrtBackward0"


def test_the_loss():
    assert where(Net(), loss=lambda output: output.sum() / 0) == "the loss, from finite outputs of the model"
    found = where(Net(), loss=lambda output: (output * 0).abs().sqrt().sum())
    assert found == "the backward pass of the loss, from SqrtBackward0"


def test_weights_and_images_go_before_layers():
    model = Net(Overflow())
    images = torch.ones(5, 3)
    images[4, 1] = math.nan
    assert where(model, images) == "the images of the batch, before the model"
    model.last.bias.data[1] = math.inf
    assert where(model, images) == "the weight last.bias, which is not finite before this update"
    norm = nn.BatchNorm1d(3)
    norm.running_var[0] = math.nan
    assert where(norm) == "the buffer running_var, which is not finite before this update"


def test_a_sum_of_finite_gradients():
    model = nn.Linear(1, 1, bias=False)
    found = where(model, torch.full((1, 1), 3e38), lambda output: (0 * output).sum() + model.weight.sum() * 2e38, 2)
    assert found == "the gradient of the weight weight, as a sum over batches"


def test_the_earlier_of_two_has_the_smaller_number():
    early, late = (traced(model)[0] for model in (Net(Overflow()), Net(between=lambda x: x / 0)))
    assert early < late
    assert traced(Net(Overflow()), torch.full((5, 3), math.nan))[0] < early


def test_no_hook_stays():
    model = Net(SteepAtZero())
    traced(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_no_hook_stays_at_a_weight():
    """DDP keeps the nodes that add up its gradients."""
    model = nn.Linear(3, 2)
    kept = model.weight.expand_as(model.weight).grad_fn.next_functions[0][0]
    with Trace(model) as trace:
        model(torch.ones(5, 3)).sum().backward()
    gone = weakref.ref(trace)
    del trace
    gc.collect()
    assert kept is not None
    assert gone() is None


def test_names():
    tensors = {"a": torch.ones(2), "b": torch.tensor([1.0, math.nan]), "steps": torch.tensor(3), "c": torch.ones(0)}
    assert nonfinite_names(tensors) == ["b"]
    assert nonfinite_names({**tensors, "first": None, "c": torch.tensor(math.inf)}) == ["b", "c"]
    assert nonfinite_names({}) == []


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("", (0, 0, 0)),
        ("...", (0, 0, 3)),
        ("!", (1, 1, 0)),
        (".!!.", (2, 2, 1)),
        (".!!.!!!..!!", (7, 3, 4)),
        ("!!.!!", (4, 2, 3)),
    ],
)
def test_rows_of_bad_updates(answers, expected):
    counts = BadUpdates(torch.device("cpu"))
    for answer in answers:
        counts.add(torch.tensor(answer == "!"))
    assert counts.read() == expected
