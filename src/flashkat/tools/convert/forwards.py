"""Rewrite the ``forward`` of single modules through torch.fx, so that each call of an activation has a module.

A module keeps its object, parameters, hooks and base class. Only its class changes, to a subclass with the new
``forward``. Copies and pickles of the module keep it.
"""

import functools
import importlib
import inspect
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

from torch import fx, nn

from .known import is_known_function, name_of

__all__ = ["UntraceableError", "activation_nodes", "replace_node", "rewritten", "source_of", "trace"]


class UntraceableError(Exception):
    """A ``forward`` that cannot be traced. The message is the end of a sentence that begins with its name."""


def trace(module: nn.Module, constants: Mapping[str, Any]) -> fx.Graph:
    """Trace a module's own ``forward``. Its submodules stay calls.

    Args:
        module: the module. Its mode changes meanwhile, and that of its submodules.
        constants: arguments without tensors that decide which way it goes. The graph refuses others.

    Returns:
        A graph for both modes: training flags stay ``self.training``.

    Raises:
        UntraceableError: it cannot be traced, or it depends on the mode otherwise.
    """
    if isinstance(module, fx.GraphModule):
        raise UntraceableError("is a graph already")
    modes = [(each, each.training) for each in module.modules()]
    attributes = set(vars(module))
    try:
        graphs = []
        for training in (False, True):
            module.train(training)
            graphs.append(_with_own_arguments(_Shallow().trace(module, dict(constants)), module))
    except Exception as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise UntraceableError(f"cannot be traced by torch.fx ({reason})") from error
    finally:
        for each, mode in modes:
            each.training = mode
        made = set(vars(module)) - attributes
        for name in made:
            delattr(module, name)
    if made:
        raise UntraceableError("makes tensors, which a trace would fix")
    return _for_both_modes(*graphs)


def activation_nodes(graph: fx.Graph, module: nn.Module, activations: Collection[nn.Module]) -> list[fx.Node]:
    """Return the calls of activations in a graph, in order."""
    return [node for node in graph.nodes if source_of(node, module, activations) is not None]


def source_of(node: fx.Node, module: nn.Module, activations: Collection[nn.Module]) -> nn.Module | str | None:
    """Return the activation that a node calls: a module, the name of a function, or None."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return called if called in activations else None
    if node.op in ("call_function", "call_method") and is_known_function(node.target):
        return name_of(node.target)
    return None


def replace_node(node: fx.Node, name: str) -> None:
    """Let a module of a name compute what a node does with its first argument."""
    x = node.args[0] if node.args else node.kwargs["input"]
    with node.graph.inserting_before(node):
        new = node.graph.call_module(name, (x,))
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def rewritten(module: nn.Module, graph: fx.Graph) -> type[nn.Module]:
    """Return a subclass of a module's class whose ``forward`` computes a graph."""
    code = graph.python_code("self")
    # Functions go by reference, modules by name: both can be pickled.
    names = {
        name: _Module(value.__name__) if isinstance(value, ModuleType) else value
        for name, value in code.globals.items()
    }
    kind: Any = module._source[0] if isinstance(module, _Rewritten) else type(module)
    return _subclass(kind, code.src, tuple(names.items()))


class _Shallow(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Module(str):
    """The name of an imported module."""


class _Rewritten:
    """Lets a rewritten module be copied and pickled: its class is made again from the source of ``forward``."""

    _source: tuple[type[nn.Module], str, tuple[tuple[str, Any], ...]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = super().__reduce_ex__(protocol)[2:]
        return _remade, self._source, *state


def _remade(kind: Any, source: str, names: tuple[tuple[str, Any], ...]) -> nn.Module:
    made: Any = _subclass(kind, source, names)
    return made.__new__(made)


@functools.lru_cache(maxsize=1024)
def _subclass(kind: Any, source: str, names: tuple[tuple[str, Any], ...]) -> type[nn.Module]:
    space = {name: importlib.import_module(value) if isinstance(value, _Module) else value for name, value in names}
    exec(compile(source, "<flashkat.convert>", "exec"), space)
    members = {"forward": space["forward"], "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (_Rewritten, kind), {**members, "_source": (kind, source, names)})


def _with_own_arguments(graph: fx.Graph, module: nn.Module) -> fx.Graph:
    """Give a graph the names and defaults of a ``forward``. torch.fx renames arguments that are constants."""
    parameters = inspect.signature(module.forward).parameters.values()
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node, parameter in zip(inputs, parameters, strict=True):
        node.target = str(parameter.replace(default=parameter.empty, annotation=parameter.empty))  # with its stars
        node.args = () if parameter.default is parameter.empty else (parameter.default,)
    return graph


def _for_both_modes(evaluation: fx.Graph, training: fx.Graph) -> fx.Graph:
    """Return the graph of evaluation. Where it has False and the other True, it asks for the mode."""
    if len(evaluation.nodes) != len(training.nodes):
        raise UntraceableError("does something else in training")
    flags: list[fx.Node] = []

    def flag() -> fx.Node:
        if not flags:
            first = next(node for node in evaluation.nodes if node.op != "placeholder")
            with evaluation.inserting_before(first):
                flags.append(evaluation.get_attr("training"))
        return flags[0]

    def both(one: Any, other: Any) -> Any:
        if isinstance(one, fx.Node) and isinstance(other, fx.Node) and one.name == other.name:
            return one
        if type(one) is not type(other):
            raise UntraceableError("does something else in training")
        if isinstance(one, (tuple, list)) and len(one) == len(other):
            values = [both(*pair) for pair in zip(one, other, strict=True)]
            return type(one)(*values) if hasattr(one, "_fields") else type(one)(values)
        if isinstance(one, dict) and one.keys() == other.keys():
            return {key: both(value, other[key]) for key, value in one.items()}
        if isinstance(one, slice):
            return slice(both(one.start, other.start), both(one.stop, other.stop), both(one.step, other.step))
        if one is False and other is True:
            return flag()
        if one != other:
            raise UntraceableError("does something else in training")
        return one

    for one, other in zip(list(evaluation.nodes), list(training.nodes), strict=True):
        if (one.op, one.target) != (other.op, other.target):
            raise UntraceableError("does something else in training")
        one.args, one.kwargs = both(one.args, other.args), both(one.kwargs, other.kwargs)
    return evaluation
