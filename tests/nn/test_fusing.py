"""Modules may be fused where they are plain, and nobody has hooks in them."""

import pytest
from torch import nn

from flashkat import GroupRational
from flashkat.nn.fusing import hooks_are_global, is_hooked, is_idle, is_linear, is_plain, two_tensors

HOOKS = [
    lambda module: module.register_forward_hook(lambda *_: None),
    lambda module: module.register_forward_pre_hook(lambda *_: None),
    lambda module: module.register_full_backward_hook(lambda *_: None),
    lambda module: module.register_full_backward_pre_hook(lambda *_: None),
]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_seen_while_it_is_there(hook):
    for module, plain in ((GroupRational(16), is_plain), (nn.Linear(2, 2), is_linear), (nn.Identity(), is_idle)):
        assert plain(module)
        handle = hook(module)
        assert is_hooked(module)
        assert not plain(module)
        handle.remove()
        assert not is_hooked(module)
        assert plain(module)


def test_another_forward_is_a_hook():
    module = nn.Linear(2, 2)
    module.forward = lambda x: x
    assert is_hooked(module)
    assert not is_linear(module)


def test_subclasses_and_other_dimensions_are_not_plain():
    assert not is_plain(GroupRational(16, dim=1))
    assert not is_plain(type("Other", (GroupRational,), {})(16))
    assert not is_linear(type("Other", (nn.Linear,), {})(2, 2))


def test_dropout_is_idle_where_it_drops_nothing():
    assert is_idle(nn.Dropout(0.0))
    assert is_idle(nn.Dropout(0.5).eval())
    assert not is_idle(nn.Dropout(0.5))
    assert not is_idle(nn.ReLU())


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
    ],
)
def test_hooks_for_all_modules_are_seen(register):
    assert not hooks_are_global()
    with register(lambda *_: None):
        assert hooks_are_global()
    assert not hooks_are_global()


def test_tensors_of_a_module_are_found_wherever_they_are():
    module = nn.Linear(2, 2, bias=False)
    assert two_tensors(module, "weight", "bias") == (module.weight, None)
    weight = module.weight.detach()
    del module.weight
    module.weight = weight  # as some wrappers do
    assert two_tensors(module, "weight", "bias")[0] is weight
