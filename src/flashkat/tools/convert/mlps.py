"""Turn the MLPs of a timm model into GR-KANs with the same outputs."""

import math
from collections.abc import Iterable
from typing import Any

import timm.layers
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from ...errors import InputError
from ...models.block import KATBlock
from ...models.kat import KolmogorovArnoldTransformer
from ...nn.grkan import GRKAN
from ...nn.group_rational import GroupRational
from .conversion import Converted, Left, Report
from .fits import Chosen, Fits, UnfitError, coefficient_dtype
from .known import Wishes, activation_modules, what_of
from .swap import check_arguments, groups_note, largest_divisor, share_hooks
from .trial import Trial, difference, reach
from .undo import change, undone_on_error
from .watch import Call, Watch, joined_samples

__all__ = ["mlp_to_grkan"]

_OTHERS = (
    *(timm.layers.GluMlp, timm.layers.SwiGLU, timm.layers.GatedMlp),
    *(timm.layers.ConvMlp, timm.layers.GlobalResponseNormMlp),
)


def mlp_to_grkan(model: nn.Module, *, example: Any, groups: int = 8, m: int = 6, n: int = 4) -> Report:
    """Replace the MLPs of a timm model by GR-KANs with their weights. The model itself changes.

    Each ``timm.layers.Mlp`` becomes a :class:`flashkat.GRKAN`. Its first rational is the identity, its second one a
    fit of the activation. The linear layers stay the same modules. A ``VisionTransformer`` becomes a
    :class:`flashkat.models.KolmogorovArnoldTransformer`, with fused blocks.

    Dropout comes before each linear layer of a GR-KAN. In an MLP it comes after each.

    Args:
        model: a model of timm that is not compiled or wrapped yet.
        example: input for the model: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        groups: number of groups. If it does not divide the channels, their largest common divisor below it.
        m: number of numerator coefficients, at least 2 for the identity.
        n: number of denominator coefficients.

    Returns:
        What was converted, what not and why, and the largest change of the output. ``print`` shows it.

    Raises:
        InputError: the model has no MLP to convert, the example does not run or gives numbers that are not finite, or
            an argument makes no sense. The model is as it was.
    """
    check_arguments(model, groups, m, n)
    if m < 2:
        raise InputError(f"a GR-KAN begins with the identity, which needs m >= 2, not {m}")
    mlps = {module: name for name, module in model.named_modules() if type(module) is timm.layers.Mlp}
    left = [
        Left(name, what_of(module), "it is more than two linear layers and an activation")
        for name, module in model.named_modules()
        if isinstance(module, _OTHERS)
    ]
    if not mlps:
        raise InputError(f"nothing to convert in {type(model).__name__}: it has no timm.layers.Mlp")
    trial = Trial(model, example)
    with Watch(model, activation_modules(model, Wishes(None))) as watch:
        before = trial.outputs()
    calls: dict[nn.Module, list[Call]] = {}
    for call in watch.calls:
        calls.setdefault(call.frame.module, []).append(call)
    fits, rows = Fits(m, n), []
    with undone_on_error(model):
        for mlp, name in mlps.items():
            try:
                fit = _fit(fits, name, calls.get(mlp, []))
            except UnfitError as error:
                left.append(Left(name, what_of(mlp), str(error)))
                continue
            made = _grkan(mlp, fit, groups, calls[mlp][0])
            owner, _, attribute = name.rpartition(".")
            change(model, model.get_submodule(owner), attribute, made)
            second, half = made.act2, fit.half
            rows.append(
                Converted(
                    name, what_of(mlp), fit.name, second.channels, second.dim, second.groups, (-half, half), fit.error
                )
            )
        if not rows:
            raise InputError(
                f"nothing to convert in {type(model).__name__}: {left[0].name} stays because {left[0].reason}"
            )
        blocks = [module for module in model.modules() if type(module) is Block]
        for block in blocks:
            if isinstance(block.mlp, GRKAN):
                change(model, block, "__class__", KATBlock)
        if type(model) is VisionTransformer and blocks and all(isinstance(block.mlp, GRKAN) for block in blocks):
            change(model, model, "__class__", KolmogorovArnoldTransformer)
        after = trial.outputs("with GR-KANs in place of its MLPs", "; use flashkat.convert")
    return Report(tuple(rows), tuple(left), difference(after, before), reach(before), _notes(model, mlps, rows, groups))


def _fit(fits: Fits, name: str, calls: list[Call]) -> Chosen:
    """Return a fit of the activation of an MLP, which it calls once in each run."""
    if not calls:
        raise UnfitError("the example does not reach it, or its activation is unknown")
    return fits.choose(None, calls[0].function, joined_samples(name, calls))


def _grkan(mlp: Any, fit: Chosen, most: int, call: Call) -> GRKAN:
    """Return a GR-KAN with the layers of an MLP."""
    use_conv = isinstance(mlp.fc1, nn.Conv2d)
    rows, columns = mlp.fc1.weight.shape[:2]
    groups = largest_divisor(math.gcd(rows, columns), most)
    dim = 1 if use_conv else -1
    made = GRKAN(columns, rows, use_conv=use_conv, den_groups=groups, device="meta")
    made.fc1, made.norm, made.fc2 = mlp.fc1, mlp.norm, mlp.fc2
    (m, n), dtype = fit.degrees, coefficient_dtype(call.like)
    made.act1 = GroupRational(columns, groups, m=m, n=n, dim=dim, device=call.like.device, dtype=dtype)
    made.act2 = fit.rational(rows, groups, dim, call.like)
    made.drop1.p, made.drop2.p = mlp.drop2.p, mlp.drop1.p
    share_hooks(mlp, made)
    share_hooks(mlp.act, made.act2)
    return made.train(mlp.training)


def _notes(model: nn.Module, mlps: Iterable[Any], rows: list[Converted], groups: int) -> tuple[str, ...]:
    notes = groups_note(rows, groups)
    if isinstance(model, KolmogorovArnoldTransformer):
        notes += ("the model is a KolmogorovArnoldTransformer now",)
    if any(mlp.drop1.p or mlp.drop2.p for mlp in mlps):
        notes += ("dropout comes before each linear layer of a GR-KAN, and came after each of an MLP",)
    return notes
