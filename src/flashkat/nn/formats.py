"""The names of a rational's coefficients in other programs."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..defaults import FORMATS

__all__ = ["FORMATS", "accept_formats", "rational_names", "rename_rationals", "renamings"]

_ROLES = {name: role for pair in FORMATS.values() for role, name in enumerate(pair)}


def renamings(names: Iterable[str], wanted: Collection[str]) -> dict[str, str]:
    """Map names of coefficients to those that ``wanted`` has in another format."""
    names = list(names)
    taken, found = set(names), {}
    for old in names:
        owner, dot, last = old.rpartition(".")
        if old in wanted or last not in _ROLES:
            continue
        for pair in FORMATS.values():
            new = f"{owner}{dot}{pair[_ROLES[last]]}"
            if new in wanted and new not in taken:
                found[old] = new
                taken.add(new)
                break
    return found


def rename_rationals(state: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Return a state_dict whose rationals have the names in ``wanted``, whatever their format was."""
    new = renamings(state, wanted)
    return {new.get(name, name): value for name, value in state.items()}


def rational_names(names: Iterable[str]) -> list[str]:
    """Return the names, in any format, of coefficients in a GR-KAN."""
    return [name for name in names if re.search(r"\.act[12]\.[a-z_]+$", name) and name.rpartition(".")[2] in _ROLES]


def coefficient_names(model: nn.Module) -> list[str]:
    """Return the names of a model's parameters that are tables of coefficients, in any format.

    A table is no matrix: its rows are functions. Give these names to ``fallback_list`` of timm's
    ``create_optimizer_v2``, so that Muon does not orthogonalise them.
    """
    names = dict(model.named_parameters())
    owners = {name.rpartition(".")[:2] for name in names}
    tables = [[f"{owner}{dot}{last}" for last in pair] for owner, dot in owners for pair in FORMATS.values()]
    found = {name for table in tables if all(name in names for name in table) for name in table}
    return [name for name in names if name in found]


def accept_formats(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename coefficients to a module's own names. A hook for ``register_load_state_dict_pre_hook``."""
    # load_state_dict hands over a copy.
    wanted = [prefix + name for name, _ in module.named_parameters(recurse=False)]
    for old, new in renamings(state_dict, wanted).items():
        state_dict[new] = state_dict.pop(old)
