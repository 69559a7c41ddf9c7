"""The optimiser: timm's, with parameter groups of their own for the coefficients of the rationals where asked for."""

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    optimizer_kwargs,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch import nn

from ..errors import InputError, did_you_mean, explain
from ..nn.group_rational import GroupRational
from .config import Optimizer

__all__ = [
    "check_optimizer_name",
    "check_shapes",
    "create_optimizer",
    "is_fused",
    "parameter_groups",
    "with_implementation_of",
    "with_order_of",
]

# What nearly all optimisers keep of a parameter in its own shape; some keep other things in smaller shapes.
_SHAPED = ("exp_avg", "momentum_buffer")

# What says how an optimiser computes, not what.
_IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")


def check_optimizer_name(opt: str) -> None:
    """Raise InputError, with the nearest name, unless timm has an optimiser of this one."""
    name, known = opt.lower().removeprefix("lookahead_"), list_optimizers()
    if name not in known:
        hint = did_you_mean(name, known, otherwise="timm.optim.list_optimizers() has them all")
        raise InputError(f"no optimiser {opt!r} for --opt: {hint}")


def create_optimizer(
    model: nn.Module, settings: Optimizer, lr: float, *, scales_loss: bool = False, is_sharded: bool = False
) -> torch.optim.Optimizer:
    """Make the optimiser asked for: timm's, on a GPU fused where it can be.

    Args:
        model: to optimise.
        settings: the section of the configuration.
        lr: the learning rate to start from.
        scales_loss: whether a scaler may skip steps.
        is_sharded: whether FSDP shards the weights.

    Raises:
        InputError: it does not take what it was given.
    """
    options = {**optimizer_kwargs(_ForTimm(**vars(settings), lr=lr)), **settings.opt_kwargs}
    if settings.rational_lr_scale != 1 or settings.rational_weight_decay is not None:
        options["param_group_fn"] = lambda model: parameter_groups(model, settings)
    given = "".join(f" {key}={value}" for key, value in settings.opt_kwargs.items())
    with explain(f"cannot make --opt {settings.opt}{f' with --opt-kwargs{given}' if given else ''}"):
        if is_fused(settings, next(model.parameters()).device, scales_loss, is_sharded):
            options["fused"] = True
        return create_optimizer_v2(model, **options)


@dataclass(frozen=True, kw_only=True)
class _ForTimm(Optimizer):
    """The settings with what timm reads beside them."""

    lr: float


def is_fused(settings: Optimizer, device: torch.device, scales_loss: bool, is_sharded: bool) -> bool:
    """Whether PyTorch has one kernel for the whole step on that device, and no flag says how to compute it."""
    if device.type != "cuda" or settings.opt_kwargs.keys() & set(_IMPLEMENTATION):
        return False
    kind = get_optimizer_info(settings.opt.lower().removeprefix("lookahead_")).opt_class
    if kind is torch.optim.SGD:
        # Where the first step of all is skipped, as it is while the scale of the loss is looked for, its momentum would
        # be whatever the memory held (seen with torch 2.15). Sharded weights have no such kernel of SGD.
        return not scales_loss and not is_sharded
    return kind in (torch.optim.Adam, torch.optim.AdamW)


def with_implementation_of(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved state_dict for an optimiser that computes in its own way, whatever that of the run before was."""
    groups = [dict(group) for group in state["param_groups"]]
    # Loading says if they are not as many.
    for saved, own in zip(groups, optimizer.param_groups, strict=False):
        saved.update({name: own[name] for name in _IMPLEMENTATION if name in own})
    return {**state, "param_groups": groups}


def with_order_of(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], model: nn.Module, names: list[str]
) -> dict[str, Any]:
    """A saved state_dict whose parameters are listed in the order of the optimiser's own.

    A state_dict knows parameters by their place in a group, and those of a group are in the order of the modules: in
    KAT's code ``fc1``, ``act1``, ``act2``, ``fc2``, not as here. The groups themselves are the same.

    Args:
        optimizer: to load into.
        state: its saved state_dict.
        model: whose parameters the optimiser has.
        names: the names of the model's state_dict, in the order of the model that was saved.

    Raises:
        ValueError: the groups are not as many, or not as large.
    """
    groups = state["param_groups"]
    sizes, own_sizes = ([len(group["params"]) for group in each] for each in (groups, optimizer.param_groups))
    if sizes != own_sizes:
        raise ValueError(f"groups of {sizes} parameters, not of {own_sizes}")
    rank = {name: place for place, name in enumerate(names)}
    places = {id(parameter): rank[name] for name, parameter in model.named_parameters()}
    ordered = []
    for saved, own in zip(groups, optimizer.param_groups, strict=True):
        keys = [places[id(parameter)] for parameter in own["params"]]
        numbers = dict(zip(sorted(keys), saved["params"], strict=True))
        ordered.append({**saved, "params": [numbers[key] for key in keys]})
    return {**state, "param_groups": ordered}


def check_shapes(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Raise ValueError where a saved state_dict has averages of another shape than the parameters they would be for.

    The optimiser would take it, and fail in its first step.
    """
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for name in _SHAPED:
            average = state["state"].get(number, {}).get(name)
            if isinstance(average, torch.Tensor) and average.shape != parameter.shape:
                raise ValueError(f"{name} of shape {tuple(average.shape)}, not {tuple(parameter.shape)}")


def parameter_groups(model: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """timm's parameter groups (weight decay, layer decay), each split into the rationals' coefficients and the others.

    The coefficients' learning rate is scaled on top of their layer's, and their weight decay is set where one is given,
    save for those that the model's ``no_weight_decay`` names.
    """
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    if settings.layer_decay is not None:
        groups = param_groups_layer_decay(
            model,
            settings.weight_decay,
            no_weight_decay_list=spared,
            layer_decay=settings.layer_decay,
            min_scale=settings.layer_decay_min_scale,
            no_opt_scale=settings.layer_decay_no_opt_scale,
        )
    else:
        groups = param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=spared)

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    coefficients = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, GroupRational)
        for parameter in module.parameters(recurse=False)
    }
    split: list[dict[str, Any]] = []
    for group in groups:
        others = [parameter for parameter in group["params"] if id(parameter) not in coefficients]
        if others:
            split.append({**group, "params": others})
        for keeps_decay in (False, True):
            own = [
                parameter
                for parameter in group["params"]
                if id(parameter) in coefficients
                and any(fnmatch(names[id(parameter)], pattern) for pattern in spared) == keeps_decay
            ]
            if own:
                split.append(
                    {**group, "params": own, "lr_scale": group.get("lr_scale", 1.0) * settings.rational_lr_scale}
                )
                if settings.rational_weight_decay is not None and not keeps_decay:
                    split[-1]["weight_decay"] = settings.rational_weight_decay
    return split
