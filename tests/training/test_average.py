"""The average equals timm's for all dtypes and devices."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from flashkat.training.average import MovingAverage


def checkpoint_of(folder, name="last.pth.tar"):
    return torch.load(folder / name, weights_only=True)


def float32():
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))


def with_counts():
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))


def bfloat16():
    return float32().bfloat16()


@pytest.mark.parametrize("make", [float32, with_counts, bfloat16], ids=lambda make: make.__name__)
@pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=["its own", "a named one"])
@pytest.mark.parametrize("warmup", [False, True])
def test_same_as_timms(make, device, warmup):
    torch.manual_seed(0)
    model = make()
    pair = [kind(model, decay=0.9, use_warmup=warmup, device=device) for kind in (MovingAverage, ModelEmaV3)]
    for step in range(1, 6):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(torch.randn(tensor.shape) if tensor.is_floating_point() else 1)
        for average in pair:
            average.update(model, step=step)
        found, expected = (average.module.state_dict() for average in pair)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_follows_weights_that_are_loaded():
    model = float32()
    average = MovingAverage(model, decay=0.5)
    average.update(model)
    start = copy.deepcopy(average.module.state_dict())
    model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})
    average.module.load_state_dict({name: tensor + 3 for name, tensor in start.items()})
    average.update(model)
    for name, tensor in average.module.state_dict().items():
        torch.testing.assert_close(tensor, start[name] + 2)


def test_average_warms_up(train):
    flags = ["--epochs", 1, "--model-ema", "--lr", 0.5, "--warmup-epochs", 0]

    def distance(*more):
        checkpoint = checkpoint_of(train(*flags, *more))
        pairs = zip(checkpoint["state_dict"].values(), checkpoint["state_dict_ema"].values(), strict=True)
        return sum(float((a - b).square().sum()) for a, b in pairs)

    # Four updates in, an average that decays by 0.9998 is still where it began.
    assert distance("--model-ema-warmup") < 0.7 * distance()


def test_too_slow_an_average_is_noted(train, capsys):
    train("--epochs", 1, "--model-ema")
    assert "The averaged weights will be 100% those at the start: try --model-ema-warmup" in capsys.readouterr().out
