"""Contenders by name: a model, and where its recipe differs from that of the data set.

``kat,degrees=5-4,opt=muon`` is a KAT with other degrees and another optimiser. What a name leaves out has the data
set's default. ``vit,lr=5e-4+1e-3,wd=all`` is a grid. Levels stand between plus signs, and ``all`` is every listed one.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..cifar10 import RECIPE

__all__ = ["DATA_SETS", "FACTORS", "Contender", "DataSet", "expand", "parse"]

_MODELS = {"kat": "kat_tiny_patch16_224", "vit": "vit_tiny_patch16_224"}

FACTORS: dict[str, dict[str, str]] = {
    "degrees": {"3-2": "m=4 n=2", "5-4": "m=6 n=4", "2-2": "m=3 n=2", "3-0": "m=4 n=0"},
    "start": {name: f"act_init={name}" for name in ("swish", "gelu", "leaky_relu", "identity")},
    "attention": {"timm": "weight_init=", "published": ""},
    "groups": {"8": "8", "1": "1", "4": "4", "16": "16", "channel": "0"},
    "numerators": {"shared": "", "separate": ""},
    "rlr": {rate: f"--rational-lr-scale {rate}" for rate in ("1", "0.1", "0.3", "3")},
    "rwd": {"same": "", "0": "--rational-weight-decay 0"},
    "opt": {"adamw": "--opt adamw", "muon": "--opt muon"},
    "lr": {rate: f"--lr {rate}" for rate in ("1e-3", "5e-4", "2e-3")},
    "wd": {decay: f"--weight-decay {decay}" for decay in ("0.05", "0.2")},
    "mixing": {"on": "--mixup 0.8 --cutmix 1.0", "off": "--mixup 0 --cutmix 0"},
    "from": {"scratch": "", "vit": ""},
}
"""The factors: their levels, and the flags or arguments of the model that each level stands for.

- degrees: of numerator and denominator.
- start: the function that the second rational of each block starts as.
- attention: how attention starts.
- groups: the groups of a rational; ``channel`` gives each channel its own.
- numerators: whether the groups share a numerator.
- rlr: the coefficients' learning rate, as a multiple of the others'.
- rwd: the coefficients' weight decay, the same as the others' or none.
- from: ``vit`` starts from the weights of the ViT of the same seed.

The averaged weights of every run are evaluated too.
"""

_OF_KAT = ("degrees", "start", "attention", "groups", "numerators", "rlr", "rwd")
_NUMBERS = ("rlr", "lr", "wd")  # any other number above 0 is a level too


@dataclass(frozen=True)
class DataSet:
    """A data set with its recipe.

    Attributes:
        name: its name.
        flags: flags of ``flashkat train`` that all contenders share.
        kwargs: arguments of the model, of images of this size.
        sizes: more arguments of the model, by size. The first is the default.
        defaults: the level of each factor that differs from the factor's first level.
        warmup_epochs: the recipe's epochs to warm up. A shorter training warms up in a fifth of its epochs.
        held_out: share of the training images that choices are made on.
        epochs: default epochs.
        batch_size: default batch size.
    """

    name: str
    flags: str
    kwargs: str
    sizes: Mapping[str, str]
    defaults: Mapping[str, str]
    warmup_epochs: int
    held_out: str
    epochs: int
    batch_size: int

    def default(self, factor: str) -> str:
        """Return the level of a factor that a contender has unless its name says another."""
        return self.defaults.get(factor, next(iter(FACTORS[factor])))


DATA_SETS = {
    "cifar10": DataSet(
        name="cifar10",
        flags=" ".join(("--img-size", "32", *RECIPE)),
        kwargs="patch_size=4",
        sizes={
            "tiny": "",
            "narrow": "embed_dim=128 depth=6 num_heads=4",
            "toy": "embed_dim=16 depth=1 num_heads=2",
        },
        defaults={},
        warmup_epochs=10,
        held_out="0.1",
        epochs=100,
        batch_size=256,
    ),
    # The recipe is that of the demo (make demo), with other rates.
    "digits": DataSet(
        name="digits",
        flags="--img-size 16 --sched cosine --warmup-epochs 5 --smoothing 0.1 --clip-grad 1 "
        "--scale 0.8 1 --ratio 0.9 1.1 --hflip 0 --color-jitter 0 --crop-pct 1 "
        "--model-ema --model-ema-decay 0.99 --model-ema-warmup",
        kwargs="patch_size=4",
        sizes={"mini": "embed_dim=64 depth=2 num_heads=4", "toy": "embed_dim=16 depth=1 num_heads=2"},
        defaults={"lr": "3e-3", "mixing": "off"},
        warmup_epochs=5,
        held_out="0.2",
        epochs=40,
        batch_size=64,
    ),
}
"""The data sets, by name."""


@dataclass(frozen=True)
class Contender:
    """A model and its recipe.

    Attributes:
        family: "kat" or "vit".
        levels: the levels that differ from the data set's defaults, in the order of ``FACTORS``.
        data: the data set.
    """

    family: str
    levels: tuple[tuple[str, str], ...]
    data: DataSet = field(repr=False)

    def __str__(self) -> str:
        return ",".join([self.family, *(f"{factor}={level}" for factor, level in self.levels)])

    def level(self, factor: str) -> str:
        """Return the contender's level of a factor."""
        return dict(self.levels).get(factor) or self.data.default(factor)

    def flags(self, size: str) -> tuple[str, ...]:
        """Return the contender's own flags of ``flashkat train``, for a size of the data set."""
        kwargs = f"{self.data.kwargs} {self.data.sizes[size]}"
        if self.family == "kat":
            groups = FACTORS["groups"].get(self.level("groups"), self.level("groups"))
            numerators = groups if self.level("numerators") == "separate" else "1"
            own = [FACTORS[factor][self.level(factor)] for factor in ("degrees", "start", "attention")]
            kwargs = " ".join([kwargs, *own, f"num_groups={numerators} den_groups={groups}"])
        words = ["--model", _MODELS[self.family], "--model-kwargs", *kwargs.split()]
        for factor in ("opt", "lr", "wd", "mixing", *(["rlr", "rwd"] if self.family == "kat" else [])):
            level = self.level(factor)
            flag = next(iter(FACTORS[factor].values())).split()[:1]
            words += FACTORS[factor][level].split() if level in FACTORS[factor] else [*flag, level]
        return tuple(words)


def parse(name: str, data: DataSet) -> Contender:
    """Return the contender of a name.

    Raises:
        ValueError: there is no such model, factor or level, or two levels of a factor.
    """
    family, *pairs = name.split(",")
    if family not in _MODELS:
        raise ValueError(f"no model {family!r} in {name!r}: a contender begins with one of {', '.join(_MODELS)}")
    given: dict[str, str] = {}
    for pair in pairs:
        factor, _, level = pair.partition("=")
        if factor not in FACTORS or (family == "vit" and factor in _OF_KAT):
            known = [each for each in FACTORS if family == "kat" or each not in _OF_KAT]
            raise ValueError(f"no factor {factor!r} of a {family} in {name!r}: choose one of {', '.join(known)}")
        if level not in FACTORS[factor] and not (factor in _NUMBERS and _is_number(level)):
            other = ", or a number above 0" if factor in _NUMBERS else ""
            raise ValueError(
                f"no level {level!r} of {factor} in {name!r}: choose one of {', '.join(FACTORS[factor])}{other}"
            )
        if factor in given:
            raise ValueError(f"{factor} is twice in {name!r}: put plus signs between several levels")
        given[factor] = level
    levels = tuple(
        (factor, given[factor]) for factor in FACTORS if given.get(factor, data.default(factor)) != data.default(factor)
    )
    return Contender(family, levels, data)


def expand(name: str, data: DataSet) -> Iterator[Contender]:
    """Yield the contenders of a name that may have several levels of a factor.

    Raises:
        ValueError: as :func:`parse`.
    """
    family, *pairs = name.split(",")
    choices = []
    for pair in pairs:
        factor, _, level = pair.partition("=")
        levels = FACTORS[factor] if level == "all" and factor in FACTORS else level.split("+")
        choices.append([f"{factor}={each}" for each in levels])
    for combination in itertools.product(*choices):
        yield parse(",".join([family, *combination]), data)


def _is_number(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
