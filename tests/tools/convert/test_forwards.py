import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from flashkat.tools.convert.forwards import (
    UntraceableError,
    activation_nodes,
    replace_node,
    rewritten,
    source_of,
    trace,
)

X = torch.randn(2, 4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), nn.ReLU()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, mask=None, flip=False):
        x = self.act(self.fc(x)) * self.scale
        if flip:
            x = x.flip(0)
        return F.dropout(self.act(F.gelu(input=x)), 0.5, training=self.training)


def test_rewritten_module_computes_its_graph():
    net = Net()
    graph = trace(net, {"mask": None, "flip": False})
    nodes = activation_nodes(graph, net, {net.act})
    assert [source_of(node, net, {net.act}) for node in nodes] == [net.act, "gelu", net.act]
    net.first, net.second = nn.Tanh(), nn.Identity()
    replace_node(nodes[0], "first")
    replace_node(nodes[1], "second")
    net.__class__ = rewritten(net, graph)
    assert isinstance(net, Net)
    net.eval()
    assert torch.equal(net(X, flip=False), (net.fc(X).tanh() * 2).relu())
    twin = pickle.loads(pickle.dumps(net))
    assert torch.equal(twin(X), net(X))
    assert isinstance(twin, Net)
    net.train()
    torch.manual_seed(0)
    dropped = net(X)
    torch.manual_seed(0)
    assert torch.equal(dropped, F.dropout((net.fc(X).tanh() * 2).relu()))


def test_rewritten_modules_can_be_rewritten():
    net = Net().eval()
    expected = net(X, None, False)
    for _ in range(2):
        net.__class__ = rewritten(net, trace(net, {"mask": None, "flip": False}))
        assert torch.equal(net(X), expected)
        assert type(net).__mro__.count(Net) == 1


def test_mode_is_kept():
    net = Net().eval()
    net.act.train()
    trace(net, {"mask": None, "flip": False})
    assert not net.training
    assert net.act.training


class OnlyInTraining(Net):
    def forward(self, x):
        return self.fc(x) if self.training else x


class Branches(Net):
    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


class Makes(Net):
    def forward(self, x):
        return x + torch.ones(4)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (OnlyInTraining(), "does something else in training"),
        (Branches(), r"cannot be traced by torch\.fx \(symbolically traced variables"),
        (Makes(), "makes tensors, which a trace would fix"),
        (fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4))), "is a graph already"),
    ],
)
def test_what_cannot_be_traced_says_why(module, message):
    attributes = set(vars(module))
    with pytest.raises(UntraceableError, match=message):
        trace(module, {})
    assert set(vars(module)) == attributes
