"""Change the attributes of a model's modules, and change them back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from ...errors import InputError

__all__ = ["change", "revert", "undone_on_error"]

# The model keeps its steps under this name, so that copies of it can be reverted too.
_STEPS = "_flashkat_steps"


class _Step(NamedTuple):
    owner: nn.Module
    attribute: str
    old: Any
    was_there: bool


def change(model: nn.Module, owner: nn.Module, attribute: str, new: Any) -> None:
    """Set an attribute of a module in a model, and remember the old one."""
    was_there = attribute == "__class__" or attribute in vars(owner) or attribute in owner._modules
    old = getattr(owner, attribute) if was_there else None
    vars(model).setdefault(_STEPS, []).append(_Step(owner, attribute, old, was_there))
    setattr(owner, attribute, new)


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Undo the changes of a model within ``with``, and no earlier ones, if they end in an error."""
    count = len(vars(model).get(_STEPS, ()))
    try:
        yield
    except BaseException:
        _undo(model, count)
        raise


def revert(model: nn.Module) -> None:
    """Give a model back the modules that ``convert`` and ``mlp_to_grkan`` have replaced, with their functions.

    What the rationals have learned is lost. The other weights stay as they are.

    Args:
        model: a converted model, a copy of one, or a model with one inside.

    Raises:
        InputError: nothing was converted.
    """
    converted = [module for module in model.modules() if vars(module).get(_STEPS)]
    if not converted:
        raise InputError(
            f"nothing to revert in {type(model).__name__}: it was not converted, or only its weights were loaded"
        )
    for module in converted:
        _undo(module, 0)


def _undo(model: nn.Module, count: int) -> None:
    """Undo the steps of a model beyond the first ``count``, the last one first."""
    steps = vars(model).get(_STEPS, [])
    for owner, attribute, old, was_there in reversed(steps[count:]):
        if isinstance(old, nn.Module):
            old.train(getattr(owner, attribute).training)
        elif attribute in owner._modules:
            delattr(owner, attribute)
        if was_there:
            setattr(owner, attribute, old)
    del steps[count:]
    if not steps:
        vars(model).pop(_STEPS, None)
