"""The block of a KAT equals timm's, and its fused path runs only if the results are the same."""

import importlib
import weakref

import pytest
import torch
from functorch.compile import make_boxed_func
from timm.models.vision_transformer import Block
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from flashkat import GRKAN, GroupRational
from flashkat.models import block as module
from flashkat.models.block import KATBlock
from flashkat.ops.triton import settings

CHANNELS = 16


def make(channels=CHANNELS, **options):
    torch.manual_seed(0)
    made = KATBlock(channels, 2, mlp_layer=GRKAN, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture
def calls(monkeypatch):
    """The fused ways that were taken, by name."""
    taken = []

    def note(name):
        function = getattr(module, name)

        def fused(*args):
            taken.append(name)
            return function(*args)

        monkeypatch.setattr(module, name, fused)

    note("add_norm_rational")
    note("add_norm_grkan")
    # As where there are kernels.
    monkeypatch.setattr(module, "fuses", lambda x: True)
    return taken


@pytest.mark.parametrize("options", [{}, {"init_values": 0.1}, {"drop_path": 0.5}, {"norm_layer": nn.LayerNorm}])
def test_is_timms_block(options, calls, monkeypatch):
    made, x = make(**options), torch.randn(3, 5, CHANNELS)
    plain = Block(CHANNELS, 2, mlp_layer=GRKAN, **options)
    plain.load_state_dict(made.state_dict())
    for mode in (made.train, made.eval):
        mode()
        plain.train(made.training)
        torch.manual_seed(1)
        found = made(x)
        torch.manual_seed(1)
        assert torch.equal(found, plain(x))
    assert calls == ["add_norm_grkan"] * 2
    monkeypatch.setattr(settings, "ONE_CALL_ELEMENTS", x.numel() - 1)
    with torch.no_grad():
        assert torch.equal(made(x), found)
        assert calls[2:] == ["add_norm_rational"]
        torch.testing.assert_close(made(x[:-1]), found[:-1])
    assert calls[3:] == ["add_norm_grkan"]


def test_on_a_cpu_nothing_is_asked_but_the_device(monkeypatch):
    made, x = make(), torch.randn(3, 5, CHANNELS)
    for name in ("_plain_parameters", "add_norm_rational", "add_norm_grkan", "takes_one_call"):
        monkeypatch.setattr(module, name, None)
    half = x + made.attn(made.norm1(x))
    assert torch.equal(made(x), half + made.mlp(made.norm2(half)))


def _drop(made):
    made.mlp.drop2.p = 0.5


def _drop_first(made):
    made.mlp.drop1 = nn.Dropout(0.5)


def _normalise(made):
    made.mlp.norm = nn.LayerNorm(made.mlp.act2.channels)


def _hook_last(made):
    made.mlp.fc2.register_forward_hook(lambda *_: None)


def _hook_dropout(made):
    made.mlp.drop1.register_forward_pre_hook(lambda *_: None)


def _replace_last(made):
    made.mlp.fc2 = nn.Sequential(made.mlp.fc2)


def _without_bias(made):
    made.mlp.fc1.bias = None


CHANGES = [_drop, _drop_first, _normalise, _hook_last, _hook_dropout, _replace_last, _without_bias]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_parts_after_the_first_rational_are_called(change, calls):
    made, x = make(), torch.randn(3, 5, CHANNELS)
    change(made)
    torch.manual_seed(1)
    found = made(x)
    torch.manual_seed(1)
    half = x + made.attn(made.norm1(x))
    torch.testing.assert_close(found, half + made.mlp(made.norm2(half)))
    assert calls == ["add_norm_rational"]


def test_can_be_traced():
    """The trace is checked without gradients, in which eager training would differ."""
    made, x = make(), torch.randn(2, 3, CHANNELS)
    torch.testing.assert_close(torch.jit.trace(made, x)(x + 1), made(x + 1))


def test_idle_dropout_is_passed_by(calls):
    made = make(proj_drop=0.5)
    x = torch.randn(3, 5, CHANNELS)
    made(x)
    assert calls == ["add_norm_rational"]
    made.eval()(x)
    assert calls[1:] == ["add_norm_grkan"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="its tensors are on the CPU")
@pytest.mark.parametrize("recompute", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_compiled_training_recomputes_the_rationals(calls, monkeypatch, recompute):
    for name in ("add_norm_grkan", "add_norm_rational", "linear_rational"):
        monkeypatch.setattr(importlib.import_module(f"flashkat.ops.{name}"), "fuses", lambda x: True)
    torch.compiler.reset()
    made, x, sizes = make(channels=32), torch.randn(3, 5, 32), []  # whose groups hold whole vectors
    made.mlp.recompute = recompute

    def note(graph, _):
        *_, last = graph.graph.nodes
        sizes.extend(each.meta["val"].numel() for each in last.args[0] if hasattr(each, "meta"))
        return make_boxed_func(graph.forward)

    compiled = torch.compile(made, fullgraph=True, backend=aot_autograd(fw_compiler=note))
    loss = compiled(x).square().mean()
    assert sizes.count(3 * 5 * 4 * 32) == (1 if recompute else 2)
    found = torch.autograd.grad(loss, list(made.parameters()))
    truths = torch.autograd.grad(made(x).square().mean(), list(made.parameters()))
    for one, truth in zip(found, truths, strict=True):
        torch.testing.assert_close(one, truth, rtol=1e-4, atol=1e-5)


def test_hands_a_mask_on():
    made, x = make().eval(), torch.randn(1, 3, CHANNELS)
    mask = torch.eye(3, dtype=torch.bool)
    alone = torch.cat([made(x[:, i : i + 1]) for i in range(3)], dim=1)
    torch.testing.assert_close(made(x, attn_mask=mask), alone)


@pytest.mark.parametrize("hooked", [False, True])
def test_what_attention_gave_is_gone_when_the_second_half_needs_memory(hooked):
    made, branches, alive = make(), [], []
    if hooked:
        _hook(made)
    made.attn.register_forward_hook(lambda *args: branches.append(weakref.ref(args[-1])))
    made.mlp.fc2.register_forward_pre_hook(lambda *_: alive.append(branches[0]() is not None))
    with torch.no_grad():
        made(torch.randn(1, 3, CHANNELS))
    assert alive == [False]


class Other(GroupRational):
    """Another activation, for all that the block knows."""


def _hook(made):
    made.mlp.act1.register_forward_hook(lambda *_: None)


def _replace_rational(made):
    made.mlp.act1 = Other(CHANNELS)


def _replace_norm(made):
    made.norm2 = nn.Identity()


def _override(made):
    plain = made.mlp.forward
    made.mlp.forward = lambda x: plain(x)


@pytest.mark.parametrize("change", [_hook, _override, _replace_rational, _replace_norm])
def test_changed_parts_are_called(change, calls):
    made = make()
    change(made)
    made(torch.randn(1, 3, CHANNELS)).sum().backward()
    assert not calls
    assert made.mlp.act1.numerator.grad is not None


def test_a_global_hook_sees_every_part():
    made, seen = make(), []
    with nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module)):
        made(torch.randn(1, 3, CHANNELS))
    assert {made.norm2, made.mlp, made.mlp.act1, made.mlp.fc1, made.mlp.act2} <= set(seen)


def test_a_hook_sees_what_goes_in():
    made, seen = make(), []
    made.mlp.act1.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    made(torch.randn(1, 3, CHANNELS))
    assert seen == [(1, 3, CHANNELS)]
