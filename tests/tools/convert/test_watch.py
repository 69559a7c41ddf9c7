import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flashkat.tools.convert.watch import Watch

IMAGE, ROW = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4)


class Model(nn.Module):
    """Layers of four channels, whose dimensions only the layers tell apart."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4)
        self.act, self.way = nn.ReLU(inplace=True), forward

    def forward(self, *args, **kwargs):
        return self.way(self, *args, **kwargs)


def watched(forward, *args, **kwargs):
    model = Model(forward)
    with torch.no_grad(), Watch(model, {model.act}) as watch:
        model(*args, **kwargs)
    assert model.act.inplace
    assert not model.act._forward_hooks
    return watch


@pytest.mark.parametrize(
    ("forward", "x", "dim"),
    [
        (lambda m, x: m.act(m.conv(x)), IMAGE, 1),
        (lambda m, x: m.act(m.norm(x)), IMAGE, 1),
        (lambda m, x: m.act(m.fc(x)), IMAGE, 3),
        (lambda m, x: m.act(m.fc(x)), ROW, 2),
        (lambda m, x: m.act(F.layer_norm(x, (4,))), ROW, 2),
        (lambda m, x: m.act(m.conv(x).permute(0, 2, 3, 1)), IMAGE, 3),
        (lambda m, x: m.act(m.conv(x).permute(dims=(0, 2, 3, 1)).permute(0, 3, 1, 2)), IMAGE, 1),
        (lambda m, x: m.act(m.conv(x).flatten(2).transpose(1, 2)), IMAGE, 2),
        (lambda m, x: m.act(m.fc(x).mT.unsqueeze(0)), ROW, None),
        (lambda m, x: m.act(F.avg_pool2d(m.conv(x), 2) + 1), IMAGE, 1),
        (lambda m, x: m.act(torch.cat([m.conv(x), x], 1)), IMAGE, 1),
        (lambda m, x: m.act(m.conv(x).chunk(2, 1)[1]), IMAGE, 1),
        (lambda m, x: m.conv(m.act(x)), IMAGE, 1),
        (lambda m, x: m.fc(2 * m.act(x)), IMAGE, 3),
        (lambda m, x: m.fc(m.act(x).transpose(1, 3)), IMAGE, None),
        (lambda m, x: m.act(x), IMAGE, None),
        (lambda m, x: m.conv(F.relu(x)), IMAGE, 1),
        (lambda m, x: m.conv(x).relu_(), IMAGE, 1),
    ],
)
def test_dimension_follows_from_the_layers(forward, x, dim):
    watch = watched(forward, x)
    assert [call.dim for call in watch.calls] == [dim]
    assert watch.calls[0].is_shaped


def test_calls_belong_to_their_frames_in_order():
    watch = watched(lambda m, x: torch.tanh(m.act(m.fc(x)).relu()), ROW)
    frame = watch.frames[0]
    assert [call.source for call in frame.calls] == [frame.module.act, "relu", "tanh"]
    assert frame.calls == watch.calls
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    assert torch.equal(watch.calls[0].function(x), x.relu())
    assert x[0] == -1  # although the module writes to its input
    assert torch.equal(watch.calls[2].function(x), x.tanh())


def test_sample_has_the_extremes():
    x = torch.randn(64, 4, 100)
    x[5, 2, 3], x[6, 1, 2] = 77, -55
    call = watched(lambda m, x: m.act(x), x).calls[0]
    assert (call.sample.max(), call.sample.min()) == (77, -55)
    assert len(call.sample) < x.numel()


def test_inputs_are_not_kept():
    inputs = []

    def forward(model, x):
        for function in (model.act, torch.relu):
            x = model.fc(x)
            inputs.append(weakref.ref(x))
            x = function(x)
        return x + 1

    watch = watched(forward, ROW)
    assert len(watch.calls) == 2
    gc.collect()
    assert [ref() for ref in inputs] == [None, None]
    assert all(call.like.untyped_storage().nbytes() == 0 for call in watch.calls)


def test_constants_are_arguments_without_tensors():
    class Flags(nn.Module):
        def forward(self, x, mask=None, *, causal=False, mode="a", scale=1.0):
            return x

    flags = Flags()
    with Watch(flags, set()) as watch:
        flags(ROW, causal=True)
        flags(ROW, mask=ROW)
    assert [frame.constants for frame in watch.frames] == [
        {"mask": None, "causal": True, "mode": "a"},
        {"causal": False, "mode": "a"},
    ]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.PReLU(init=0.5), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.scale * self.inner(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_with_parameters_take_other_numbers_without_their_hooks(dtype):
    act, seen = Scaled().to(dtype), []
    model = nn.Sequential(nn.Linear(4, 4, dtype=dtype), act)
    act.inner.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.no_grad(), Watch(model, {act}) as watch:
        model(torch.randn(2, 4, dtype=dtype))
    x = torch.tensor([-2.0, 3.0], dtype=torch.float64)
    with torch.no_grad():
        assert watch.calls[0].function(x).tolist() == [-2.0, 6.0]
    assert seen == [dtype]
    assert {each.dtype for each in model.parameters()} == {dtype}
