"""The activations that are known by name, as modules and as functions, and those that a user asks for."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import InputError, did_you_mean
from ...nn.functions import FUNCTIONS

__all__ = ["Choice", "Key", "Start", "Wishes", "activation_modules", "is_known_function", "name_of", "what_of"]

Key = type[nn.Module] | Callable[..., Tensor] | str
"""An activation: a module's class, a function, or a name such as "gelu" or transformers' "gelu_new"."""

Start = str | Callable[[Tensor], Tensor] | None
"""What a rational starts as: a named start, any function, or None for the function that it replaces."""

# The names of PyTorch's functions, without underscores. Values of a gate, or their exponentials, stay within [0, 1].
_GATES = frozenset({"sigmoid", "hardsigmoid", "logsigmoid"})
_FUNCTIONS = _GATES | {
    *("relu", "relu6", "leakyrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign", "tanh"),
    *("hardswish", "hardtanh", "tanhshrink", "softshrink"),
}
_LEARNED = frozenset({"prelu", "xielu"})
_HOMES = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me", "transformers.act")
_SYNONYMS = {"swish": "silu"}


class Choice(NamedTuple):
    """Whether an activation becomes a rational: its start, or the reason why not."""

    start: Start = None
    reason: str = ""


def name_of(key: Any) -> str:
    """Return one name for the forms of an activation: nn.GELU, F.gelu, "gelu" and GELUActivation are "gelu"."""
    name = what_of(key)
    name = name.lower().replace("_", "").removesuffix("activation").removesuffix("me")
    return _SYNONYMS.get(name, name)


def what_of(key: Any) -> str:
    """Return the name of a class or a function, or of a module's class. A name stays as it is."""
    return key if isinstance(key, str) else getattr(key, "__name__", type(key).__name__)


def is_known_function(function: Any) -> bool:
    """Return whether a function of PyTorch, or a tensor's method, is an activation."""
    return name_of(function) in _FUNCTIONS


class Wishes:
    """What a user asks to convert, and as what.

    Args:
        starts: a start for each activation. None takes every activation but gates, each as itself.

    Raises:
        InputError: no mapping, a key that names no activation, or an unknown start.
    """

    def __init__(self, starts: Mapping[Key, Start] | None) -> None:
        if starts is not None and not isinstance(starts, Mapping):
            raise InputError(
                f"the second argument maps activations to starts, such as {{nn.GELU: 'gelu'}}, not {starts!r}"
            )
        self.named = starts is not None
        self.classes: set[type] = {key for key in starts or () if isinstance(key, type)}
        self.starts: dict[str, Start] = {}
        for key, start in (starts or {}).items():
            self.starts[_name_of_key(key)] = start
            if isinstance(start, str) and start not in FUNCTIONS:
                known = ", ".join(FUNCTIONS)
                raise InputError(f"no start is called {start!r}: {did_you_mean(start, FUNCTIONS, known)}")

    def choose(self, name: str) -> Choice:
        """Decide about the activation of a name."""
        if name in self.starts:
            return Choice(self.starts[name])
        if self.named:
            return Choice(reason="it is not among the activations asked for")
        if name in _LEARNED:
            return Choice(reason="it has parameters of its own: name it with a start to convert it")
        if name in _GATES:
            return Choice(reason="it is a gate: name it to convert it")
        return Choice()


def activation_modules(model: nn.Module, wishes: Wishes) -> dict[nn.Module, str]:
    """Return the activations among a model's modules, with their names in the model. None lies within another."""
    found: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found.values())
        if not inside and (type(module) in wishes.classes or _is_activation(module)):
            found[module] = name
    return found


def _name_of_key(key: Key) -> str:
    if isinstance(key, str):
        # transformers may not be imported. Then no model is its own.
        classes = getattr(sys.modules.get("transformers.activations"), "ACT2CLS", {})
        found = classes.get(key)
        name = name_of(found[0] if isinstance(found, tuple) else found) if found else name_of(key)
        if not found and name not in _FUNCTIONS:
            known = sorted(_FUNCTIONS | classes.keys())
            raise InputError(f"no activation is called {key!r}: {did_you_mean(key, known, ', '.join(known))}")
        return name
    if isinstance(key, type):
        if not issubclass(key, nn.Module):
            raise InputError(f"{key.__name__} is no class of modules: give one such as nn.GELU")
        return name_of(key)
    if not is_known_function(key):
        raise InputError(f"calls of {key!r} cannot be found: give the class of a module, or a function of PyTorch")
    return name_of(key)


def _is_activation(module: nn.Module) -> bool:
    """Return whether a module of PyTorch, timm or transformers is a function of each element of its input."""
    if not type(module).__module__.startswith(_HOMES):
        return False
    if any(True for _ in module.parameters()):
        return name_of(type(module)) in _LEARNED
    return name_of(type(module)) not in _OTHERS and _is_elementwise(module)


# These have no parameters, but are no functions of one number. The last gives its input back.
_OTHERS = frozenset({"softmax", "softmax2d", "softmin", "logsoftmax", "glu", "rrelu", "linear"})


@torch.no_grad()
def _is_elementwise(module: nn.Module) -> bool:
    x = torch.linspace(-2, 2, 8)
    try:
        whole, half = module(x.clone()), module(x[:4].clone())
    except (TypeError, RuntimeError, ValueError):
        return False
    return isinstance(whole, Tensor) and whole.shape == x.shape and torch.equal(whole[:4], half)
