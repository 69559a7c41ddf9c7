"""The places of activations in a model: an attribute of a module, or a call in its ``forward``."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import fx, nn

from .conversion import Left
from .forwards import UntraceableError, activation_nodes, source_of, trace
from .known import name_of, what_of
from .watch import Call, Frame

__all__ = ["Finder", "Place", "Source"]

Source = nn.Module | str
"""An activation: a module, or the name of a function."""


@dataclass(eq=False)
class Place:
    """Where a rational goes.

    Args:
        name: its name in the model.
        source: the activation that is there.
        attributes: the modules, each with the name of an attribute, that get the rational.
        calls: the calls that it takes over.
        node: the call in the ``forward`` of the owner, if that must be rewritten.
        untold: why its calls cannot have places of their own, if they should.
    """

    name: str
    source: Source
    attributes: list[tuple[nn.Module, str]]
    calls: list[Call]
    node: fx.Node | None = None
    untold: str = ""


class Finder:
    """Finds the places of activations in a model.

    A module that is called once has one place. If several call it, each has a place of its own. If one calls it
    several times, or calls a function, the ``forward`` of that one is traced.

    Args:
        model: the model.
        frames: its run on the example.
        activations: the modules in it that are activations, with their names.
        decide: takes the name and an activation, and returns whether to convert it.
    """

    def __init__(
        self,
        model: nn.Module,
        frames: Iterable[Frame],
        activations: Mapping[nn.Module, str],
        decide: Callable[[str, Source], bool],
    ) -> None:
        self.left: list[Left] = []
        self._activations = activations
        self._decide = decide
        self._names = {module: name for name, module in model.named_modules()}
        self._homes: dict[Source, list[tuple[nn.Module, str]]] = defaultdict(list)
        for parent in self._names:
            for attribute, child in parent._modules.items():
                if child is not None:
                    self._homes[child].append((parent, attribute))
        self._frames: dict[nn.Module, list[Frame]] = defaultdict(list)
        for frame in frames:
            if frame.calls:
                self._frames[frame.module].append(frame)

    def find(self) -> list[Place]:
        """Return the places. ``left`` has the activations to convert for which there is none."""
        owners: dict[Source, list[nn.Module]] = {}
        functions: list[tuple[nn.Module, str]] = []
        for owner, frames in self._frames.items():
            for source in dict.fromkeys(call.source for frame in frames for call in frame.calls):
                if isinstance(source, str):
                    functions.append((owner, source))
                else:
                    owners.setdefault(source, []).append(owner)
        for module, name in self._activations.items():
            if module not in owners and self._decide(name, module):
                self.left.append(Left(name, what_of(module), "the example does not reach it"))
        places: list[Place] = []
        traced: dict[nn.Module, list[Source]] = defaultdict(list)
        for owner, function in functions:
            if self._decide(self._name(owner, function), function):
                found = self._held(owner, function)
                places += found
                if not found:
                    traced[owner].append(function)
        for source, callers in owners.items():
            if isinstance(source, nn.Module) and self._decide(self._activations[source], source):
                for owner in callers:
                    found = self._by_attribute(owner, source, alone=len(callers) == 1)
                    places += found
                    if not found:
                        traced[owner].append(source)
        for owner, sources in traced.items():
            places += self._by_node(owner, sources)
        return places

    def _name(self, owner: nn.Module, attribute: str) -> str:
        name = self._names[owner]
        return f"{name}.{attribute}" if name else attribute

    def _runs(self, owner: nn.Module, source: Source) -> list[list[Call]]:
        """Return the calls of an activation, for each run of a ``forward`` that makes any."""
        runs = ([call for call in frame.calls if call.source == source] for frame in self._frames[owner])
        return [run for run in runs if run]

    def _held(self, owner: nn.Module, function: str) -> list[Place]:
        """Return the attribute of a module that holds a function, if that is called once."""
        held = [
            name
            for name, value in vars(owner).items()
            if callable(value) and name_of(value) == function and not isinstance(value, type)
        ]
        runs = self._runs(owner, function)
        if len(held) == 1 and max(map(len, runs)) == 1:
            return [self._place(function, [(owner, held[0])], itertools.chain(*runs))]
        return []

    def _by_attribute(self, owner: nn.Module, source: nn.Module, *, alone: bool) -> list[Place]:
        """Return the places of a module that its attributes in the caller tell apart, if they do."""
        runs = self._runs(owner, source)
        homes = [home for home in self._homes[source] if home[0] is owner]
        if max(map(len, runs)) == 1 and (alone or len(homes) == 1):
            return [self._place(source, self._homes[source] if alone else homes, itertools.chain(*runs))]
        if isinstance(owner, nn.Sequential) and all(len(run) == len(homes) for run in runs):
            each = zip(homes, zip(*runs, strict=True), strict=True)
            return [self._place(source, [home], calls) for home, calls in each]
        return []

    def _by_node(self, owner: nn.Module, sources: Collection[Source]) -> list[Place]:
        """Return places that are calls in the ``forward`` of a module.

        If that cannot be traced, all calls of a module have one place.
        """
        frames = self._frames[owner]
        places: list[Place] = []
        own = {source: [home for home in self._homes.get(source, ()) if home[0] is owner] for source in sources}
        try:
            nodes = self._nodes(owner, frames)
        except UntraceableError as error:
            reason = f"the forward of {type(owner).__name__} {error}"
            for source in sources:
                if own[source]:
                    place = self._place(source, own[source], itertools.chain(*self._runs(owner, source)))
                    place.untold = reason
                    places.append(place)
                else:
                    what = what_of(source)
                    self.left.append(Left(self._name(owner, what), what, reason))
            return places
        # The first call of a module keeps its name.
        taken = {*dir(owner), *vars(owner)} - {name for homes in own.values() for _, name in homes}
        for index, node in enumerate(nodes):
            source = frames[0].calls[index].source
            if source in sources:
                first = own[source][0][1] if own[source] else name_of(source)
                name = next(name for name in _numbered(first) if name not in taken)
                taken.add(name)
                calls = [frame.calls[index] for frame in frames]
                places.append(self._place(source, [(owner, name)], calls, node))
        return places

    def _nodes(self, owner: nn.Module, frames: list[Frame]) -> list[fx.Node]:
        """Return the nodes of a module's graph that call activations, in the order of its calls."""
        constants = frames[0].constants
        if any(frame.constants != constants for frame in frames):
            raise UntraceableError("runs with different arguments")
        nodes = activation_nodes(trace(owner, constants), owner, self._activations)
        sources = [source_of(node, owner, self._activations) for node in nodes]
        if any([call.source for call in frame.calls] != sources for frame in frames):
            raise UntraceableError("runs otherwise than torch.fx traces it")
        return nodes

    def _place(
        self,
        source: Source,
        attributes: list[tuple[nn.Module, str]],
        calls: Iterable[Call],
        node: fx.Node | None = None,
    ) -> Place:
        return Place(self._name(*attributes[0]), source, attributes, list(calls), node)


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(1))
