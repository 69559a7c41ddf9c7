"""Make timm's optimiser, with separate parameter groups for the rationals' coefficients, and load saved states."""

import inspect
from collections.abc import Collection
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

import torch
from timm.optim import (
    Muon,
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    optimizer_kwargs,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch import nn

from ..errors import InputError, did_you_mean, explain
from ..nn.formats import coefficient_names
from ..system.random import random_state, set_random_state
from .config import Optimizer

__all__ = [
    "check_optimizer_name",
    "check_shapes",
    "create_optimizer",
    "fallback_names",
    "is_fused",
    "parameter_groups",
    "with_order_of",
    "with_settings_of",
]

# States that nearly all optimisers keep in a parameter's own shape. Others may have smaller shapes.
_SHAPED = ("exp_avg", "momentum_buffer")

# Options that change how an optimiser computes, but not its result.
_IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")

# Settings of a group that follow from flags. Other entries may be counters of the optimiser.
_BY_FLAGS = ("lr", "initial_lr", "lr_scale", "weight_decay", "momentum", "betas", "eps")

# Settings by which layers have groups of their own. --opt-kwargs may give them too.
_BY_LAYER = ("layer_decay", "layer_decay_min_scale", "layer_decay_no_opt_scale")

# Options that divide a model's parameters into groups.
_GROUPING = (*_BY_LAYER, "param_group_fn")


def check_optimizer_name(opt: str) -> None:
    """Raise InputError, with the most similar name, unless timm has an optimiser of this name that can train."""
    name, known = opt.lower().removeprefix("lookahead_"), list_optimizers()
    if name not in known:
        hint = did_you_mean(name, known, otherwise="timm.optim.list_optimizers() has them all")
        raise InputError(f"no optimiser {opt!r} for --opt: {hint}")
    if get_optimizer_info(name).second_order:
        raise InputError(f"--opt {opt} needs second derivatives, which training does not compute: take another one")


def create_optimizer(
    model: nn.Module, settings: Optimizer, lr: float, *, may_skip: bool = False, is_sharded: bool = False
) -> torch.optim.Optimizer:
    """Make timm's optimiser. On a GPU it is PyTorch's fused version if there is one.

    Args:
        model: the model to optimise.
        settings: the section of the configuration.
        lr: the learning rate to start from.
        may_skip: whether steps may be skipped, by a gradient scaler or for gradients that are not finite.
        is_sharded: whether FSDP shards the weights.

    Raises:
        InputError: the optimiser does not take its arguments.
    """
    if "lr" in settings.opt_kwargs:
        raise InputError("--opt-kwargs lr: use --lr, which the schedule goes by")
    options = {**optimizer_kwargs(_ForTimm(**vars(settings), lr=lr)), **settings.opt_kwargs}
    fallback = fallback_names(model, settings)
    if fallback:
        options["fallback_list"] = fallback
    if settings.rational_lr_scale != 1 or settings.rational_weight_decay is not None:
        names = {"weight_decay", *_BY_LAYER} & settings.opt_kwargs.keys()
        named = {name: settings.opt_kwargs[name] for name in names}
        options["param_group_fn"] = lambda model: parameter_groups(model, replace(settings, **named))
    _check_betas(settings, options.get("betas"))
    given = "".join(f" {key}={value}" for key, value in settings.opt_kwargs.items())
    with explain(f"cannot make --opt {settings.opt}{f' with --opt-kwargs{given}' if given else ''}"):
        if is_fused(settings, next(model.parameters()).device, may_skip, is_sharded):
            options["fused"] = True
        optimizer: torch.optim.Optimizer = create_optimizer_v2(model, **options)
        if settings.opt_kwargs or settings.opt_betas:  # its own arguments are right
            _try(options, next(model.parameters()))
    return optimizer


def _check_betas(settings: Optimizer, betas: Any) -> None:
    """Raise InputError unless there are as many betas as the optimiser has by default."""
    default = getattr(inspect.signature(_kind(settings)).parameters.get("betas"), "default", None)
    if isinstance(default, tuple) and isinstance(betas, (list, tuple)) and len(betas) != len(default):
        usual = " ".join(f"{beta:g}" for beta in default)
        raise InputError(f"--opt {settings.opt} takes {len(default)} betas, not {len(betas)}: its own are {usual}")


def _try(options: dict[str, Any], like: torch.Tensor) -> None:
    """Let an optimiser take a step, as some refuse their arguments only there. The random state stays as it is.

    Args:
        options: for ``create_optimizer_v2``.
        like: has the device and the dtype of the weights.
    """
    before = random_state()
    layer = nn.Linear(2, 2, device=like.device, dtype=like.dtype)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    create_optimizer_v2(layer, **{key: value for key, value in options.items() if key not in _GROUPING}).step()
    set_random_state(before)


def fallback_names(model: nn.Module, settings: Optimizer) -> list[str]:
    """Return the patterns of parameters for timm's ``fallback_list``.

    Muon and its kin orthogonalise matrices and update the rest as AdamW does. The rows of a coefficient table are
    functions, so it belongs to the rest. Other optimisers have no fallback, and get no groups for it.
    """
    given = list(settings.opt_kwargs.get("fallback_list", ()))
    return given + coefficient_names(model) if _kind(settings) is Muon else given


def _kind(settings: Optimizer) -> type:
    """Return the class of the optimiser, within Lookahead where that is around it."""
    return get_optimizer_info(settings.opt.lower().removeprefix("lookahead_")).opt_class


@dataclass(frozen=True, kw_only=True)
class _ForTimm(Optimizer):
    """The settings, and the learning rate that timm reads from the same object."""

    lr: float


def is_fused(settings: Optimizer, device: torch.device, may_skip: bool, is_sharded: bool) -> bool:
    """Return whether to use PyTorch's fused kernel for the step: there is one, and no flag picks an implementation."""
    if device.type != "cuda" or settings.opt_kwargs.keys() & set(_IMPLEMENTATION):
        return False
    kind = _kind(settings)
    if kind is torch.optim.SGD:
        # If the very first step is skipped, fused SGD leaves its momentum uninitialised (seen with torch 2.15).
        # It does not take sharded weights.
        return not may_skip and not is_sharded
    return kind in (torch.optim.Adam, torch.optim.AdamW)


def with_settings_of(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], *, more: Collection[str] = (), keeps_rates: bool = False
) -> dict[str, Any]:
    """Return a saved state_dict with the settings and the implementation (fused, foreach) of the optimiser itself.

    Args:
        optimizer: the optimiser to load into, with the settings of this run's flags.
        state: its saved state_dict.
        more: names of further settings, such as those of ``--opt-kwargs``.
        keeps_rates: keep the saved ``lr``, to which a plateau schedule has come.
    """
    names = {*_BY_FLAGS, *_IMPLEMENTATION, *more} - ({"lr"} if keeps_rates else set())
    groups = []
    # If the numbers of groups differ, load_state_dict raises.
    for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=False):
        kept = {name: value for name, value in saved.items() if name not in names}
        groups.append({**kept, **{name: own[name] for name in names if name in own}})
    return {**state, "param_groups": [*groups, *state["param_groups"][len(groups) :]]}


def with_order_of(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], model: nn.Module, names: list[str]
) -> dict[str, Any]:
    """Return a saved state_dict with its parameters in the order of the optimiser's own.

    A state_dict identifies a parameter by its index in a group. That index follows the order of the modules, which
    differs in KAT's code: ``fc1``, ``act1``, ``act2``, ``fc2``. The groups themselves are the same.

    Args:
        optimizer: the optimiser to load into.
        state: its saved state_dict.
        model: the model that the optimiser updates.
        names: the names of the model's state_dict, in the order of the model that was saved.

    Raises:
        ValueError: the groups differ in number or size.
    """
    groups = state["param_groups"]
    sizes, own_sizes = ([len(group["params"]) for group in each] for each in (groups, optimizer.param_groups))
    if sizes != own_sizes:
        raise ValueError(f"groups of {sizes!s:.80} parameters, not of {own_sizes!s:.80}")
    rank = {name: place for place, name in enumerate(names)}
    places = {id(parameter): rank[name] for name, parameter in model.named_parameters()}
    ordered = []
    for saved, own in zip(groups, optimizer.param_groups, strict=True):
        keys = [places[id(parameter)] for parameter in own["params"]]
        numbers = dict(zip(sorted(keys), saved["params"], strict=True))
        ordered.append({**saved, "params": [numbers[key] for key in keys]})
    return {**state, "param_groups": ordered}


def check_shapes(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Raise ValueError if a saved state_dict has averages of another shape than their parameters.

    The optimiser itself would load them, and fail in its first step.

    Args:
        optimizer: the optimiser to load into.
        state: its saved state_dict.
    """
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for name in _SHAPED:
            average = state["state"].get(number, {}).get(name)
            if isinstance(average, torch.Tensor) and average.shape != parameter.shape:
                raise ValueError(f"{name} of shape {tuple(average.shape)}, not {tuple(parameter.shape)}")


def parameter_groups(model: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """Split each of timm's parameter groups (weight decay, layer decay) into the rationals' coefficients and the rest.

    ``rational_lr_scale`` multiplies the coefficients' learning rate, on top of their layer's scale.
    ``rational_weight_decay`` replaces their weight decay, except for those that the model's ``no_weight_decay`` names.

    Args:
        model: the model to optimise.
        settings: the section of the configuration.

    Returns:
        Groups as :class:`torch.optim.Optimizer` takes them, with timm's ``lr_scale``.
    """
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    fallback = fallback_names(model, settings)
    if settings.layer_decay is not None:
        groups = param_groups_layer_decay(
            model,
            settings.weight_decay,
            no_weight_decay_list=spared,
            fallback_list=fallback,
            layer_decay=settings.layer_decay,
            min_scale=settings.layer_decay_min_scale,
            no_opt_scale=settings.layer_decay_no_opt_scale,
        )
    else:
        groups = param_groups_weight_decay(
            model, settings.weight_decay, no_weight_decay_list=spared, fallback_list=fallback
        )

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tables = set(coefficient_names(model))
    coefficients = {parameter for parameter, name in names.items() if name in tables}
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
