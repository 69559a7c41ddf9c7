"""Which modules may be computed by one fused operator: plain ones, without hooks."""

from torch import nn

from ..ops.private import hooks_are_global, is_hooked
from .group_rational import GroupRational

__all__ = ["hooks_are_global", "is_hooked", "is_idle", "is_linear", "is_plain"]


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a GroupRational along the last dimension that nobody has hooks in, and no kind of its own."""
    return type(module) is GroupRational and module.dim == -1 and not is_hooked(module)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer without hooks."""
    return type(module) is nn.Linear and not is_hooked(module)


def is_idle(module: nn.Module) -> bool:
    """Whether a module gives back what it gets: dropout of nothing, or where nobody trains."""
    kind = type(module)
    idle = kind is nn.Identity or (kind is nn.Dropout and (module.p == 0 or not module.training))
    return idle and not is_hooked(module)
