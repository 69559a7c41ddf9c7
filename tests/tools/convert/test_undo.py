import copy

import pytest
import torch
from torch import nn

from flashkat.errors import InputError
from flashkat.tools.convert.undo import change, revert


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.act = nn.Sequential(nn.Linear(2, 2), nn.GELU()), torch.relu


class Other(Held):
    pass


def changed():
    model = Held()
    change(model, model.layers, "1", nn.ReLU())
    change(model, model.layers, "1", nn.Tanh())
    change(model, model, "act", nn.ReLU())
    change(model, model, "extra", nn.ReLU())
    change(model, model, "__class__", Other)
    return model


@pytest.mark.parametrize("wrap", [lambda model: model, copy.deepcopy, nn.Sequential])
def test_revert_undoes_all_changes(wrap):
    model = wrap(changed()).eval()
    revert(model)
    held = model[0] if isinstance(model, nn.Sequential) else model
    assert type(held) is Held
    assert held.act is torch.relu
    assert not hasattr(held, "extra")
    assert isinstance(held.layers[1], nn.GELU)
    assert not held.layers[1].training  # the mode of what it replaces
    with pytest.raises(InputError, match="nothing to revert"):
        revert(model)


def test_state_dict_has_no_old_modules():
    model = Held()
    change(model, model, "layers", nn.Linear(3, 3))
    assert set(model.state_dict()) == {"layers.weight", "layers.bias"}
