"""Check the entries of a run's checkpoint before it is resumed: counters, rates, rows, random states."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["check_run"]

_MOST = 2**31 - 1

# The entries in the state of torch's ReduceLROnPlateau.
_PLATEAU = {
    *("mode", "factor", "patience", "cooldown", "cooldown_counter", "eps", "threshold", "threshold_mode", "best"),
    *("num_bad_epochs", "mode_worse", "last_epoch", "_last_lr", "min_lrs", "default_min_lr"),
}
# Numbers in an optimiser's groups. Other entries may be text or lists too.
_RATES = ("lr", "initial_lr", "lr_scale", "weight_decay", "eps", "momentum", "dampening", "alpha")

Check = Callable[[Any], bool]


def check_run(checkpoint: Mapping[str, Any], path: str) -> None:
    """Raise InputError if a checkpoint holds no run, or one that cannot be resumed, with the entry's name.

    Args:
        checkpoint: as :func:`flashkat.checkpoints.read` gives it. Entries may be missing.
        path: what errors call it.
    """
    run = checkpoint.get("run", {})
    if not isinstance(run, dict) or "epoch" not in checkpoint:
        raise InputError(
            f"{path} holds weights, but not the state of a run: start from the weights, with --initial-checkpoint"
        )
    for where, entries, rules in (
        ("", checkpoint, _CHECKPOINT),
        ("args.", checkpoint.get("args", {}), _ARGUMENTS),
        ("run.", run, _RUN),
    ):
        for name, holds in rules.items():
            if name in entries and not holds(entries[name]):
                raise _refusal(path, f"{where}{name}", entries[name])
    for name, value in checkpoint.get("args", {}).items():
        if not _is_flag(value):
            raise _refusal(path, f"args.{name!s:.80}", value)


def _refusal(path: str, name: str, value: Any) -> InputError:
    return InputError(
        f"{path} is no checkpoint to go on with, its {name} is {_shown(value)}: "
        "start from its weights, with --initial-checkpoint"
    )


def _shown(value: Any) -> str:
    is_short = value is None or isinstance(value, (bool, int, float, str))
    return f"{value!r:.80}" if is_short else f"not what training writes there, a {type(value).__name__}"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_rate(value: Any) -> bool:
    return _is_number(value) and 0 <= value < math.inf


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_none(holds: Check) -> Check:
    return lambda value: value is None or holds(value)


def _list_of(holds: Check) -> Check:
    return lambda value: isinstance(value, (list, tuple)) and all(map(holds, value))


def _is_setting(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, Tensor, torch.dtype))


def _is_flag(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_text(name) and _is_flag(each) for name, each in value.items())
    return _list_of(_is_flag)(value) or (_is_setting(value) and not isinstance(value, (Tensor, torch.dtype)))


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and _is_count(row.get("epoch"))
        and all(_is_text(name) and _is_number(value) for name, value in row.items())
    )


def _is_best(best: Any) -> bool:
    return best == {} or (
        isinstance(best, dict)
        and _is_number(best.get("metric"))
        and _is_text(best.get("weights"))
        and _or_none(_is_count)(best.get("epoch"))
    )


def _is_schedule(state: Any) -> bool:
    if state == {}:
        return True
    if not isinstance(state, dict) or not _or_none(_list_of(_is_rate))(state.get("without_noise")):
        return False
    plateau = state.get("plateau")
    return (
        isinstance(plateau, dict)
        and plateau.keys() <= _PLATEAU
        and all(_is_setting(value) or _list_of(_is_number)(value) for value in plateau.values())
    )


def _is_state(state: Any, dtype: torch.dtype = torch.uint8) -> bool:
    return isinstance(state, Tensor) and state.dtype == dtype and state.ndim == 1


def _is_process(process: Any) -> bool:
    if not isinstance(process, dict) or not isinstance(process.get("random"), dict):
        return False
    random: dict[str, Any] = process["random"]
    sums: Any = process.get("sums")
    python, numpy = random.get("python"), random.get("numpy")
    return (
        _list_of(_is_number)(sums)
        and len(sums) == 4
        and _is_rate(sums[3])
        and isinstance(python, dict)
        and python.get("version") == 3
        and _is_state(python.get("words"), torch.int64)
        and _or_none(_is_number)(python.get("gauss"))
        and isinstance(numpy, dict)
        and _is_state(numpy.get("keys"), torch.int64)
        and _is_count(numpy.get("position"))
        and numpy.get("has_gauss") in (0, 1)
        and _is_number(numpy.get("cached"))
        and _is_state(random.get("torch"))
        and ("cuda" not in random or _is_state(random["cuda"]))
    )


def _is_average(state: Any) -> bool:
    return isinstance(state, dict) and ("random" not in state or _is_state(state["random"]))


def _is_group(group: Any) -> bool:
    return (
        isinstance(group, dict)
        and _list_of(_is_count)(group.get("params"))
        and all(_is_setting(value) or _list_of(_is_setting)(value) for value in group.values())
        and all(isinstance(group[name], Tensor) or _or_none(_is_rate)(group[name]) for name in _RATES if name in group)
        and ("betas" not in group or _list_of(_is_rate)(group["betas"]))
    )


def _is_optimizer(state: Any) -> bool:
    """Return whether this may be the state_dict of an optimiser. A later check reports types other than dict."""
    return not isinstance(state, dict) or (
        _list_of(_is_group)(state.get("param_groups"))
        and isinstance(state.get("state"), dict)
        and all(isinstance(each, dict) for each in state["state"].values())
        and _are_alike(state["state"].values())
        and state["state"].keys() <= {number for group in state["param_groups"] for number in group["params"]}
    )


def _are_alike(states: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether entries of the same name have the same type in the states of all weights."""
    kinds: dict[str, type] = {}
    for state in states:
        for name, value in state.items():
            if value is None:
                continue
            kind = Tensor if isinstance(value, Tensor) else float if _is_number(value) else type(value)
            if kind is str or kinds.setdefault(name, kind) is not kind:
                return False
    return True


_CHECKPOINT: dict[str, Check] = {
    "epoch": _is_count,
    **dict.fromkeys(("metric", "best_metric"), _or_none(_is_number)),
    "optimizer": _is_optimizer,
    "amp_scaler": lambda state: isinstance(state, dict) and all(map(_is_rate, state.values())),
}
_ARGUMENTS: dict[str, Check] = {"opt": _is_text, "batch_size": _is_count, "grad_accum_steps": _is_count}
_RUN: dict[str, Check] = {
    **dict.fromkeys(("epoch", "batch", "batches", "images", "updates"), _is_count),
    "lr": _is_rate,
    "held_out": _is_text,
    "best": _is_best,
    "history": _list_of(_is_row),
    "scheduler": _is_schedule,
    "ema": _is_average,
    "processes": _list_of(_is_process),
}
