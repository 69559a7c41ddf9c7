"""Which modules may be computed by one fused operator: plain ones, without hooks."""

from torch import nn

from .group_rational import GroupRational

__all__ = []


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a GroupRational along the last dimension that nobody has hooks in, and no kind of its own."""
    return type(module) is GroupRational and module.dim == -1 and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Whether someone wants to see or change what goes into a module or comes out of it, or what it does."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "forward" in module.__dict__
    )


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear and not is_hooked(module)


def _is_idle(module: nn.Module) -> bool:
    """Whether a module gives back what it gets: dropout of nothing, or where nobody trains."""
    kind = type(module)
    idle = kind is nn.Identity or (kind is nn.Dropout and (module.p == 0 or not module.training))
    return idle and not is_hooked(module)


def hooks_are_global() -> bool:
    """Whether someone wants to see or change what goes into modules or comes out of them, whichever they are."""
    return bool(nn.modules.module._has_any_global_hook())
