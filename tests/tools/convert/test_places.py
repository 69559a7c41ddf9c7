import torch
import torch.nn.functional as F
from torch import nn

from flashkat.tools.convert.known import Wishes, activation_modules
from flashkat.tools.convert.places import Finder
from flashkat.tools.convert.watch import Watch

X = torch.randn(2, 4)


class Net(nn.Module):
    """A module with a free name, one called twice, a held function, and one that is not reached."""

    def __init__(self):
        super().__init__()
        self.fc, self.act, self.twice, self.held, self.unused = nn.Linear(4, 4), nn.GELU(), nn.ReLU(), F.silu, nn.ELU()
        self.twice_1 = nn.Identity()

    def forward(self, x):
        x = self.held(self.act(self.fc(x)))
        return torch.tanh(self.twice(self.fc(self.twice(x))))


def find(model, decide=lambda name, source: True):
    activations = activation_modules(model, Wishes(None))
    with Watch(model, activations) as watch:
        model(X)
    finder = Finder(model, watch.frames, activations, decide)
    return {place.name: place for place in finder.find()}, finder.left


def test_places():
    net = Net()
    places, left = find(net)
    assert set(places) == {"act", "held", "twice", "twice_2", "tanh"}  # twice_1 is taken
    assert [name for name, place in places.items() if place.node is not None] == ["twice", "twice_2", "tanh"]
    assert places["twice"].attributes == [(net, "twice")]
    assert [len(place.calls) for place in places.values()] == [1] * 5
    assert [(row.name, row.reason) for row in left] == [("unused", "the example does not reach it")]


def test_each_activation_is_decided_once_by_its_name():
    asked = []
    places, left = find(Net(), lambda name, source: asked.append(name) or name == "act")
    assert sorted(asked) == ["act", "silu", "tanh", "twice", "unused"]
    assert set(places) == {"act"}
    assert left == []


def test_module_under_two_names_has_one_place():
    net = Net()
    net.alias = net.act
    place = find(net)[0]["act"]
    assert place.attributes == [(net, "act"), (net, "alias")]


class Two(nn.Module):
    """One activation, called by its parent and by a child that only refers to it."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.child = nn.Sequential(nn.Linear(4, 4), self.act)

    def forward(self, x):
        return self.act(self.child(x))


def test_each_caller_has_its_place():
    model = Two()
    places, _ = find(model)
    assert {name: place.attributes for name, place in places.items()} == {
        "act": [(model, "act")],
        "child.1": [(model.child, "1")],
    }


def test_runs_of_one_module_share_its_places():
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    places, _ = find(nn.Sequential(block, block))
    assert {name: len(place.calls) for name, place in places.items()} == {"0.1": 2}
