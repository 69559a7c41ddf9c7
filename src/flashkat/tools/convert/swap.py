"""Convert the activations of a model to rationals, in place, and back."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...errors import InputError
from ...nn.group_rational import GroupRational
from .conversion import Converted, Left, Report
from .fits import Fits, UnfitError
from .forwards import replace_node, rewritten
from .known import Key, Start, Wishes, activation_modules, name_of, what_of
from .places import Finder, Place, Source
from .trial import Trial, difference, reach
from .undo import change, undone_on_error
from .watch import Watch, joined_samples

__all__ = ["check_arguments", "convert", "groups_note", "largest_divisor", "share_hooks"]

# A module's hooks. A rational shares those of the activation that it replaces.
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)

# Two runs of one model may differ so much, relative to the outputs.
_NOISE = 1e-3


def convert(
    model: nn.Module,
    starts: Mapping[Key, Start] | None = None,
    *,
    example: Any,
    groups: int = 8,
    m: int = 6,
    n: int = 4,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    dim: int | None = None,
) -> Report:
    """Replace the activations of a model by rationals that start as they do. The model itself changes.

    The example runs through the model in evaluation, without gradients. It shows the channels of each activation and
    the range of its inputs. Each rational is a :class:`flashkat.GroupRational`, fitted where its inputs lie.

    Args:
        model: any model that is not compiled or wrapped yet.
        starts: what to convert, and as what. A key is a class such as ``nn.GELU``, a function such as ``F.gelu``, or
            a name such as "gelu" or transformers' "gelu_new". All forms of an activation count as one. A value is a
            named start, any function of a tensor, or None for the activation itself. Without ``starts``, every
            activation but gates, such as a sigmoid, is converted as itself.
        example: input for the model: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        groups: number of groups. If it does not divide the channels, their largest divisor below it.
        m: number of numerator coefficients.
        n: number of denominator coefficients.
        include: names of activations to convert, with ``*`` for anything, as in ``"blocks.*.act"``.
        exclude: names of activations to leave.
        dim: the channels' dimension where the layers do not show it.

    Returns:
        What was converted, what not and why, and the largest change of the output. ``print`` shows it.

    Raises:
        InputError: nothing can be converted, the example does not run or gives numbers that are not finite, an argument
            makes no sense, or the channels' dimension is unknown. The model is as it was.
    """
    check_arguments(model, groups, m, n)
    wishes = Wishes(starts)
    activations = activation_modules(model, wishes)
    trial = Trial(model, example)
    before = trial.outputs()
    with Watch(model, activations) as watch:
        watched = trial.outputs()
    if difference(watched, before) > _NOISE * reach(before):
        raise InputError("the model needs activations that write to their input: change that, then convert it")
    decisions = _Decisions(wishes, include, exclude)
    finder = Finder(model, watch.frames, activations, decisions.decide)
    places = sorted(finder.find(), key=lambda place: watch.calls.index(place.calls[0]))
    decisions.check_filters()
    left = [*decisions.left, *finder.left]
    fits, found = Fits(m, n), []
    for place in places:
        try:
            channels, along = _channels(place, dim)
            start = wishes.choose(name_of(place.source)).start
            sample = joined_samples(place.name, place.calls, f", or exclude={place.name!r}")
            found.append((place, fits.choose(start, place.calls[0].function, sample), channels, along))
        except UnfitError as error:
            left.append(Left(place.name, what_of(place.source), str(error)))
    if not found:
        raise InputError(f"nothing to convert in {type(model).__name__}: {_reasons(model, left)}")
    rows = []
    with undone_on_error(model):
        for place, fit, channels, along in found:
            divisor = largest_divisor(channels, groups)
            _put(model, place, fit.rational(channels, divisor, along, place.calls[0].like))
            half = fit.half
            rows.append(
                Converted(
                    place.name, what_of(place.source), fit.name, channels, along, divisor, (-half, half), fit.error
                )
            )
        graphs = {place.attributes[0][0]: place.node.graph for place, *_ in found if place.node is not None}
        for owner, graph in graphs.items():
            change(model, owner, "__class__", rewritten(owner, graph))
        after = trial.outputs("with rationals in place of its activations", "; exclude those that it needs")
    shared = tuple(f"{place.name} serves several calls, as {place.untold}" for place, *_ in found if place.untold)
    notes = groups_note(rows, groups) + shared
    return Report(tuple(rows), tuple(left), difference(after, before), reach(before), notes)


def check_arguments(model: nn.Module, groups: int, m: int, n: int) -> None:
    """Raise InputError if the numbers make no rational, or if a change of the model's modules would not count."""
    if groups < 1 or m < 1 or n < 0:
        raise InputError(f"a rational needs groups >= 1, m >= 1 and n >= 0, not groups={groups}, m={m}, n={n}")
    if not any(True for _ in model.children()) and not any(True for _ in model.parameters()):
        raise InputError(f"the model is a single {type(model).__name__}: put it into nn.Sequential, then convert that")
    if isinstance(model, DistributedDataParallel):
        raise InputError("the model is wrapped in DistributedDataParallel: convert it first, then wrap it")
    if hasattr(model, "_orig_mod"):
        raise InputError("the model is compiled: convert it first, then compile it")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("the model is a TorchScript module, which cannot change: convert it first, then script it")


def largest_divisor(channels: int, most: int) -> int:
    """Return the largest divisor of a number of channels that is at most ``most``."""
    return next(groups for groups in range(min(channels, most), 0, -1) if channels % groups == 0)


def groups_note(rows: Sequence[Converted], groups: int) -> tuple[str, ...]:
    """Return a note if places have fewer groups than asked for."""
    fewer = sum(row.groups != groups for row in rows)
    return (f"{fewer} with fewer than {groups} groups, which do not divide the channels",) if fewer else ()


def share_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let a module have the hooks of another one, also those that are removed later."""
    for name in _HOOKS:
        if name in vars(old):
            vars(new)[name] = vars(old)[name]


class _Decisions:
    """Decides about activations, and keeps those that stay.

    Args:
        wishes: what the user asks for.
        include: patterns of names to convert.
        exclude: patterns of names to leave.
    """

    def __init__(self, wishes: Wishes, include: str | Sequence[str], exclude: str | Sequence[str]) -> None:
        self.left: list[Left] = []
        self._wishes = wishes
        self._include = [include] if isinstance(include, str) else list(include)
        self._exclude = [exclude] if isinstance(exclude, str) else list(exclude)
        self._names: list[str] = []

    def decide(self, name: str, source: Source) -> bool:
        """Return whether to convert an activation."""
        self._names.append(name)
        reason = self._wishes.choose(name_of(source)).reason
        if not reason and not _matches(name, self._include):
            reason = "include does not name it"
        if not reason and _matches(name, self._exclude):
            reason = "exclude names it"
        if reason:
            self.left.append(Left(name, what_of(source), reason))
        return not reason

    def check_filters(self) -> None:
        """Raise InputError if a pattern matches no activation."""
        for argument, patterns in (("include", self._include), ("exclude", self._exclude)):
            for pattern in patterns:
                if self._names and not any(fnmatchcase(name, pattern) for name in self._names):
                    raise InputError(
                        f"{argument}={pattern!r} matches no activation: choose among {', '.join(self._names)}"
                    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _channels(place: Place, otherwise: int | None) -> tuple[int, int]:
    """Return the number of channels of a place and their dimension."""
    found = set()
    for call in place.calls:
        if not call.is_shaped:
            raise UnfitError("its output has another shape than its input")
        dims = len(call.shape)
        dim = call.dim if call.dim is not None else dims - 1 if dims < 3 else otherwise
        if dim is None:
            raise InputError(
                f"no layer beside {place.name} shows which dimension of {call.shape} holds the channels: "
                f"give dim, or exclude={place.name!r}"
            )
        if not -dims <= dim < dims:
            raise InputError(f"dim={dim} is out of range for {place.name}, whose input has the shape {call.shape}")
        found.add((call.shape[dim], -1 if dim % dims == dims - 1 else dim % dims))
    if len(found) > 1:
        layouts = " and ".join(f"{channels} channels in dim {dim}" for channels, dim in sorted(found))
        raise UnfitError(f"its calls have {layouts}" + (f", and {place.untold}" if place.untold else ""))
    return found.pop()


def _put(model: nn.Module, place: Place, made: GroupRational) -> None:
    """Put a rational into its place."""
    owner, name = place.attributes[0]
    if isinstance(place.source, nn.Module):
        share_hooks(place.source, made)
        made.train(place.source.training)
    else:
        made.train(owner.training)
    for parent, attribute in place.attributes:
        change(model, parent, attribute, made)
        if hasattr(parent, "activation_relu_or_gelu"):
            # PyTorch's TransformerEncoderLayer would compute the named function in evaluation.
            change(model, parent, "activation_relu_or_gelu", 0)
    if place.node is not None:
        replace_node(place.node, name)


def _reasons(model: nn.Module, left: Sequence[Left]) -> str:
    if not left and any(isinstance(module, GroupRational) for module in model.modules()):
        return "its activations are rationals already"
    if not left:
        return "it calls no activation that is known, so name the class of one in starts"
    return ", ".join(dict.fromkeys(f"{each.what} stays because {each.reason}" for each in left))
