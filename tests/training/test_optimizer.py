"""Parameter groups of the rationals' coefficients."""

import re

import pytest
import timm
import torch
from configs import fused as would_be_fused
from configs import optimizer_of
from timm.optim import get_optimizer_info, list_optimizers
from torch import nn

from flashkat.errors import InputError
from flashkat.nn.group_rational import GroupRational
from flashkat.training.optimizer import (
    check_optimizer_name,
    create_optimizer,
    is_fused,
    parameter_groups,
    with_order_of,
    with_settings_of,
)

KWARGS = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}


@pytest.fixture(scope="module")
def model():
    return timm.create_model("kat_tiny_patch16_224", **KWARGS)


def settings(groups, model):
    """Learning-rate scale and weight decay of every parameter, by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [(names[parameter], group) for group in groups for parameter in group["params"]]
    assert len(found) == len(dict(found)) == len(names)
    return {name: (group.get("lr_scale", 1.0), group["weight_decay"]) for name, group in found}


def is_coefficient(name):
    return name.endswith((".numerator", ".denominator"))


def test_as_published_they_are_like_other_weights(model, training_config):
    args = training_config("--opt", "adamw", "--lr", 0.1, "--weight-decay", 0.05)
    ours = optimizer_of(model, args)
    timms = timm.optim.create_optimizer_v2(model, "adamw", lr=0.1, weight_decay=0.05)
    assert ours.state_dict() == timms.state_dict()
    assert settings(ours.param_groups, model)["blocks.0.mlp.act1.numerator"] == (1.0, 0.05)


def test_set_apart(model, training_config):
    flags = ["--rational-lr-scale", 0.25, "--rational-weight-decay", 0.5, "--weight-decay", 0.05, "--lr", 0.1]
    args = training_config("--opt", "adamw", *flags)
    published = settings(optimizer_of(model, training_config("--weight-decay", 0.05, "--lr", 0.1)).param_groups, model)
    apart = settings(optimizer_of(model, args).param_groups, model)
    coefficients = [name for name in apart if is_coefficient(name)]
    assert len(coefficients) == 2 * 2 * 2
    for name, values in apart.items():
        assert values == ((0.25, 0.5) if is_coefficient(name) else published[name])


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_decay_of_the_coefficients_alone(model, training_config, weight_decay):
    for given in (0.0, 0.3):
        args = training_config("--weight-decay", weight_decay, "--rational-weight-decay", given)
        found = settings(parameter_groups(model, args.optimizer), model)
        assert {values for name, values in found.items() if is_coefficient(name)} == {(1.0, given)}
        assert {values[1] for name, values in found.items() if not is_coefficient(name)} == {0.0, weight_decay}


def test_layer_decay_scales_them_too(model, training_config):
    args = training_config("--rational-lr-scale", 0.5, "--weight-decay", 0.05, "--layer-decay", 0.75)
    timms = timm.optim.param_groups_layer_decay(
        model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.75
    )
    expected = settings(timms, model)
    for name, (scale, decay) in settings(parameter_groups(model, args.optimizer), model).items():
        assert (scale, decay) == (expected[name][0] * (0.5 if is_coefficient(name) else 1), expected[name][1])


class Spared(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = GroupRational(8, groups=4)
        self.head = nn.Linear(8, 3)

    def no_weight_decay(self):
        return {"act.num*"}


def test_what_a_model_spares_stays_spared(training_config):
    model = Spared()
    args = training_config("--rational-weight-decay", 0.5, "--rational-lr-scale", 2, "--weight-decay", 0.1)
    found = settings(parameter_groups(model, args.optimizer), model)
    assert found == {
        "act.numerator": (2.0, 0.0),
        "act.denominator": (2.0, 0.5),
        "head.weight": (1.0, 0.1),
        "head.bias": (1.0, 0.0),
    }


def test_the_scale_counts_without_a_schedule(train):
    flags = ["--epochs", 1, "--opt", "momentum", "--lr", 0.5, "--rational-lr-scale", 0, "--sched", "none"]
    folder = train(*flags, "--rational-weight-decay", 0)
    state = torch.load(folder / "last.pth.tar", weights_only=True, map_location="cpu")["state_dict"]
    fresh = timm.create_model("kat_tiny_patch16_224", **{**KWARGS, "depth": 1, "num_classes": 2}).state_dict()
    for name in state:
        if is_coefficient(name):
            assert torch.equal(state[name], fresh[name])
    assert not torch.equal(state["blocks.0.mlp.fc1.bias"], fresh["blocks.0.mlp.fc1.bias"])


# The others need further packages, or second derivatives.
USABLE = [
    name for name in list_optimizers(exclude_filters=["bnb*", "fused*"]) if not get_optimizer_info(name).second_order
]
MUON = [name for name in list_optimizers() if "muon" in name]


def fallback_of(optimizer, model):
    """The names of the parameters in groups for the fallback. All parameters are in one group each."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    flags = {
        names[parameter]: group.get("use_fallback", False)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(flags) == len(names) == sum(len(group["params"]) for group in optimizer.param_groups)
    return {name for name, flag in flags.items() if flag}


@pytest.mark.parametrize("flags", [[], ["--layer-decay", 0.7], ["--rational-lr-scale", 0.5]], ids=str)
@pytest.mark.parametrize("name", USABLE)
def test_tables_are_matrices_for_no_optimiser(model, training_config, name, flags):
    config = training_config("--opt", name, "--lr", 0.1, "--weight-decay", 0.05, *flags)
    ours = optimizer_of(model, config)
    tables = {each for each in dict(model.named_parameters()) if is_coefficient(each)}
    assert fallback_of(ours, model) == (tables if name in MUON else set())
    if not flags and name not in MUON:
        theirs = timm.optim.create_optimizer_v2(model, name, lr=0.1, weight_decay=0.05)
        assert [len(group["params"]) for group in ours.param_groups] == [
            len(group["params"]) for group in theirs.param_groups
        ]


@pytest.mark.parametrize("name", [*MUON, "lookahead_muon"])
def test_a_groups_update_is_its_own(training_config, name):
    """Muon orthogonalises, which mixes the gradients of all groups."""

    def update(scale, config):
        torch.manual_seed(0)
        net = nn.Sequential(GroupRational(64, 8, start="gelu", share_numerator=False))
        x, before = torch.randn(64, 64), net[0].denominator.detach().clone()
        x[:, 8:] *= scale
        optimizer = optimizer_of(net, config)
        net(x).square().mean().backward()
        optimizer.step()
        return (net[0].denominator.detach() - before)[0]

    config = training_config("--opt", name, "--lr", 0.01, "--weight-decay", 0)
    assert torch.equal(update(1, config), update(3, config))


def test_what_else_is_asked_to_fall_back_does(model, training_config):
    config = training_config("--opt", "muon", "--lr", 0.1, "--opt-kwargs", "fallback_list=['head.*']")
    found = fallback_of(optimizer_of(model, config), model)
    assert found == {each for each in dict(model.named_parameters()) if is_coefficient(each) or "head." in each}


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--opt", "adamw"], True),
        (["--opt", "Adam"], True),
        (["--opt", "lookahead_adamw"], True),
        (["--opt", "adamw", "--amp", "--amp-dtype", "float16", "--fsdp"], True),
        (["--opt", "sgd"], True),
        (["--opt", "momentum", "--amp"], True),
        # Its first step may be skipped.
        (["--opt", "sgd", "--amp", "--amp-dtype", "float16"], False),
        (["--opt", "sgd", "--max-bad-steps", 3], False),
        (["--opt", "adamw", "--find-nonfinite"], True),
        (["--opt", "sgd", "--fsdp"], False),
        (["--opt", "lamb"], False),
        (["--opt", "adamw", "--opt-kwargs", "foreach=True"], False),
        (["--opt", "adamw", "--opt-kwargs", "fused=False"], False),
    ],
)
def test_fused_where_it_can_be(training_config, flags, expected):
    args = training_config(*flags)
    assert would_be_fused(args, GPU) == expected
    assert not would_be_fused(args, CPU)


def fused_on_a_gpu(settings, device, *rest):
    return is_fused(settings, GPU, *rest)


@pytest.fixture
def fused_here(monkeypatch):
    """Fused as on a GPU: CPUs have such kernels too."""
    monkeypatch.setattr("flashkat.training.optimizer.is_fused", fused_on_a_gpu)


def test_the_optimiser_is_made_so(model, training_config, fused_here):
    groups = optimizer_of(model, training_config("--opt", "adamw", "--lr", 0.1)).param_groups
    assert {group["fused"] for group in groups} == {True}


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_fused_or_not_a_run_goes_on_in_its_own_way(train, monkeypatch, kind):
    flags = ["--epochs", 2, "--opt", kind, "--lr", 1e-2, "--clip-grad", 1]
    if kind == "adamw":
        flags += ["--amp", "--amp-dtype", "float16"]
    folders = {False: train(*flags, experiment="plain")}
    with monkeypatch.context() as patch:
        patch.setattr("flashkat.training.optimizer.is_fused", fused_on_a_gpu)
        folders[True] = train(*flags, experiment="fused")
        resumed = {True: train(*flags, "--resume", folders[False] / "checkpoint-0.pth.tar", experiment="to-fused")}
    resumed[False] = train(*flags, "--resume", folders[True] / "checkpoint-0.pth.tar", experiment="to-plain")
    expected = torch.load(folders[False] / "last.pth.tar", weights_only=True)["state_dict"]
    for fused, folder in resumed.items():
        checkpoint = torch.load(folder / "last.pth.tar", weights_only=True)
        assert {group["fused"] for group in checkpoint["optimizer"]["param_groups"]} == {fused or None}
        torch.testing.assert_close(checkpoint["state_dict"], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("keeps_rates", [False, True])
def test_settings_are_those_of_the_run_and_counters_are_the_saved_ones(model, keeps_rates):
    saved = torch.optim.AdamW(model.parameters(), lr=0.3, weight_decay=0.1, fused=True).state_dict()
    saved["param_groups"][0] |= {"step": 7, "lr_scale": 0.5}
    own = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.2)
    (group,) = with_settings_of(own, saved, keeps_rates=keeps_rates)["param_groups"]
    assert group["lr"] == (0.3 if keeps_rates else 0.1)
    assert (group["weight_decay"], group["fused"], group["step"]) == (0.2, None, 7)
    assert "lr_scale" not in group
    assert saved["param_groups"][0]["fused"] is True


def test_the_sizes_of_many_groups_are_not_all_said(model):
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"param_groups": [{"params": [number]} for number in range(1000)], "state": {}}
    with pytest.raises(ValueError, match=r"groups of \[1, 1") as error:
        with_order_of(optimizer, state, model, [])
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--opt-kwargs", "weight_decay=x"], "cannot make --opt adamw with --opt-kwargs weight_decay=x: "),
        (["--opt-kwargs", "capturable=True"], "with --opt-kwargs capturable=True: If capturable=True"),
        (["--opt-betas", 0.9], "--opt adamw takes 2 betas, not 1: its own are 0.9 0.999"),
        (["--opt-betas", 0.9, 0.9, 0.9, 0.9], "--opt adamw takes 2 betas, not 4"),
        (["--opt", "adopt", "--opt-betas", 0.9, 0.9, 0.9], "--opt adopt takes 2 betas, not 3: its own are 0.9 0.9999"),
        (["--opt", "lookahead_adan", "--opt-betas", 0.9, 0.9], "--opt lookahead_adan takes 3 betas, not 2"),
    ],
    ids=str,
)
def test_arguments_with_which_no_step_can_be_taken(model, training_config, flags, words):
    with pytest.raises(InputError, match=re.escape(words)):
        optimizer_of(model, training_config("--opt", "adamw", "--lr", 0.1, *flags))


def test_the_trial_step_draws_no_random_numbers(model, training_config):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    optimizer = optimizer_of(model, training_config("--opt", "adan", "--lr", 0.1, "--opt-betas", 0.9, 0.9, 0.9))
    assert torch.equal(torch.get_rng_state(), before)
    assert not optimizer.state


def test_optimisers_of_second_order():
    with pytest.raises(InputError, match="--opt adahessian needs second derivatives, which training does not compute"):
        check_optimizer_name("adahessian")


def test_arguments_of_the_optimiser_count_for_coefficients_set_apart_too(model, training_config):
    flags = ["--opt", "adamw", "--opt-kwargs", "weight_decay=0.1", "layer_decay=0.5", "--rational-lr-scale", "2"]
    settings = training_config(*flags).optimizer
    groups = create_optimizer(model, settings, 1e-3).param_groups
    assert {group["weight_decay"] for group in groups} == {0, 0.1}
    assert len({group["lr_scale"] for group in groups}) > 2


def test_the_rate_has_a_flag(model, training_config):
    settings = training_config("--opt-kwargs", "lr=3").optimizer
    with pytest.raises(InputError, match="--opt-kwargs lr: use --lr, which the schedule goes by"):
        create_optimizer(model, settings, 1e-3)
