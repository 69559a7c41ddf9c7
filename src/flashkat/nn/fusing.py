"""The modules that a fused operator may compute: plain ones, without hooks."""

from typing import Any

from torch import nn

from ..ops.private import hooks_are_global, is_hooked
from .group_rational import GroupRational

__all__ = ["hooks_are_global", "is_hooked", "is_idle", "is_linear", "is_plain", "two_tensors"]


def is_plain(module: nn.Module) -> bool:
    """Return whether a module is a GroupRational along the last dimension, without hooks, and no subclass."""
    return type(module) is GroupRational and module.dim == -1 and not is_hooked(module)


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer without hooks, and no subclass."""
    return type(module) is nn.Linear and not is_hooked(module)


def is_idle(module: nn.Module) -> bool:
    """Return whether a module returns its input: Identity, or Dropout with p = 0 or in evaluation."""
    kind = type(module)
    idle = kind is nn.Identity or (kind is nn.Dropout and (module.p == 0 or not module.training))
    return idle and not is_hooked(module)


def two_tensors(module: nn.Module, first: str, second: str) -> tuple[Any, Any]:
    """Return two attributes of a module. For parameters, its dictionary takes the host a fraction of the time."""
    own = module._parameters
    if first in own and second in own:
        return own[first], own[second]
    return getattr(module, first), getattr(module, second)
