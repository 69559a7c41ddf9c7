"""What other programs call the same weights: every format of checkpoint that is read or written, in one place.

A checkpoint's weights are a dictionary from names to tensors, D being the width, G the number of groups:

``timm``
    This package's own models, in timm's registry. As timm's Vision Transformer, with two rationals in each MLP:
    ``blocks.N.mlp.act1.numerator`` (1 or G, m) and ``.denominator`` (1 or G, n), and the same for ``act2``.
``kat``
    KAT (Yang & Wang, ICLR 2025): the published weights and what its code trains. The rationals' coefficients are
    ``weight_numerator`` (1, 6) and ``weight_denominator`` (8, 4); every other name is the same.
``flashkat``
    The FlashKAT paper's code (Raffel & Chen, AAAI 2026). They are ``numerator_v`` (1 or G, 6) and ``denominator_v``
    (1 or G, 4); every other name is the same.
timm's ViT
    The same names without ``act1`` and ``act2``: an MLP is ``mlp.fc1`` and ``mlp.fc2``.
Google's ViT
    NumPy's ``.npz``, as in the original Vision Transformer (Dosovitskiy et al., ICLR 2021) and "How to train your
    ViT?" (Steiner et al., 2021): ``Transformer/encoderblock_N/...``, kernels with inputs first, attention per head.
    Some files have all names behind ``opt/target/``.

The files around the weights are read in :mod:`flashkat.checkpoints`.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import InputError, explain

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "FORMATS",
    "compare",
    "describe",
    "export",
    "from_google",
    "model_name",
    "rational_names",
    "rename_rationals",
    "renamings",
]

FORMATS: dict[str, tuple[str, str]] = {
    "timm": ("numerator", "denominator"),
    "kat": ("weight_numerator", "weight_denominator"),
    "flashkat": ("numerator_v", "denominator_v"),
}
"""What each format calls a rational's two tables of coefficients."""

_ROLES = {name: role for pair in FORMATS.values() for role, name in enumerate(pair)}


def renamings(names: Iterable[str], wanted: Collection[str]) -> dict[str, str]:
    """Which of the names are coefficients that ``wanted`` has under another format's name: old name to new."""
    names = list(names)
    taken, found = set(names), {}
    for old in names:
        owner, dot, last = old.rpartition(".")
        if old in wanted or last not in _ROLES:
            continue
        for pair in FORMATS.values():
            new = f"{owner}{dot}{pair[_ROLES[last]]}"
            if new in wanted and new not in taken:
                found[old] = new
                taken.add(new)
                break
    return found


def rename_rationals(state: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """A state_dict whose rationals have the names in ``wanted``, whichever format's they had; the rest as it was."""
    new = renamings(state, wanted)
    return {new.get(name, name): value for name, value in state.items()}


def rational_names(names: Iterable[str]) -> list[str]:
    """Those names, of any format, that are a rational's coefficients in a GR-KAN."""
    return [name for name in names if re.search(r"\.act[12]\.[a-z_]+$", name) and name.rpartition(".")[2] in _ROLES]


def export(state: Mapping[str, Tensor], format: str, name: str) -> dict[str, Tensor]:
    """A KAT's weights under the names of a format, every tensor as it is.

    Args:
        state: a KAT's state_dict in any format.
        format: a key of :data:`FORMATS`.
        name: what to call the weights in errors.

    Raises:
        InputError: an unknown format, weights that are no KAT's, or coefficients that the format's code cannot hold.
    """
    if format not in FORMATS:
        raise InputError(f"no format {format!r}: choose one of {', '.join(FORMATS)}")
    found = rational_names(state)
    if not found:
        raise InputError(f"{name} is no KAT's: it holds no rationals")
    expected = _coefficients(state, format)
    renamed = rename_rationals(state, expected)
    differences = describe(compare(dict.fromkeys(expected), {key: renamed[key] for key in rational_names(renamed)}))
    if differences:
        raise InputError(f"the rationals of {name} are not whole: {differences}")
    shapes = {key: (role, tuple(renamed[key].shape)) for key, role in expected.items()}
    misfits = {other: [key for key, each in shapes.items() if not _fits(other, *each)] for other in FORMATS}
    if misfits[format]:
        key = misfits[format][0]
        raise InputError(
            f"{format}'s code has no place for {key} {shapes[key][1]} of {name}, it knows {_LIMITS[format]}: "
            f"give --format {' or '.join(other for other, keys in misfits.items() if not keys)}"
        )
    return renamed


_LIMITS = {
    "kat": "one numerator of 6 coefficients and 8 denominators of 4",
    "flashkat": "numerators of 6 coefficients and denominators of 4",
}


def _fits(format: str, role: int, shape: tuple[int, ...]) -> bool:
    if format == "kat":
        return shape == ((1, 6), (8, 4))[role]
    return format != "flashkat" or (len(shape) == 2 and shape[1] == (6, 4)[role])


def _coefficients(names: Iterable[str], format: str) -> dict[str, int]:
    """All coefficients that GR-KANs with these names have in a format: 0 for a numerator, 1 for a denominator."""
    names = list(names)
    mlps = {match[1]: None for name in names if (match := re.match(r"(blocks\.\d+\.mlp)\.", name))}
    mlps |= {name.rpartition(".act")[0]: None for name in rational_names(names)}
    return {
        f"{mlp}.{act}.{table}": role
        for mlp in mlps
        for act in ("act1", "act2")
        for role, table in enumerate(FORMATS[format])
    }


# --- differences ------------------------------------------------------------------------------------------------------


def model_name(model: Any) -> str:
    """What to call a model: as timm's registry does, or else as its class."""
    configuration = getattr(model, "pretrained_cfg", None) or {}
    return configuration.get("architecture") or type(model).__name__


def compare(
    own: Mapping[str, Any], state: Mapping[str, Any], read: Mapping[str, Any] | None = None
) -> dict[str, list[str]]:
    """What a state_dict lacks, has beside, and has in another shape, than a model's own.

    Values may be None where shapes do not matter. Each list holds names; those of another shape say both shapes, where
    ``read`` is given the one in that, from before the state_dict was made to fit.
    """
    shown = {**state, **(read or {})}
    shared = [key for key in own if key in state]
    return {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{key} {tuple(shown[key].shape)} for {tuple(own[key].shape)}"
            for key in shared
            if own[key] is not None and state[key].shape != own[key].shape
        ],
    }


def describe(differences: Mapping[str, list[str]], most: int = 2) -> str:
    """Differences in one line, with at most so many names of each kind; empty if there are none."""

    def some(names: list[str]) -> str:
        return ", ".join(names[:most]) + (", ..." if len(names) > most else "")

    return "; ".join(f"{len(keys)} {kind} ({some(keys)})" for kind, keys in differences.items() if keys)


# --- Google's ViT -----------------------------------------------------------------------------------------------------

_GOOGLE_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/")
_GOOGLE_PREFIX = "opt/target/"


def from_google(arrays: Mapping[str, "np.ndarray"], name: str) -> dict[str, Tensor]:
    """The weights of one of Google's original ViTs under timm's names.

    The layer before the head that some files have, ``pre_logits``, has no place in timm's ViTs and is left out.

    Args:
        arrays: the arrays of the file, by name.
        name: what to call the file in errors.

    Raises:
        InputError: arrays are missing, or are there that no ViT has.
    """
    prefix = _GOOGLE_PREFIX if any(key.startswith(_GOOGLE_PREFIX) for key in arrays) else ""
    keys = {key.removeprefix(prefix) for key in arrays if key.startswith(prefix)}
    depth = 1 + max((int(match[1]) for key in keys if (match := _GOOGLE_BLOCK.match(key))), default=-1)
    plan = _google_plan(depth, has_head="head/kernel" in keys or "head/bias" in keys)
    needed = {source for sources, _ in plan.values() for source in sources}
    differences = {
        "missing": sorted(needed - keys),
        "unexpected": sorted(key for key in keys - needed if not key.startswith("pre_logits/")),
    }
    found = describe(differences)
    if found:
        raise InputError(f"{name} is not of one of Google's original ViTs: {found}")
    with explain(f"cannot read {name} as the weights of a ViT"):
        return {
            ours: torch.cat([_google_tensor(arrays[prefix + source], kind) for source in sources])
            for ours, (sources, kind) in plan.items()
        }


def _google_plan(depth: int, has_head: bool) -> dict[str, tuple[list[str], str]]:
    """By timm's name, the arrays that are stacked to make the tensor, and what kind of array they are."""
    plan: dict[str, tuple[list[str], str]] = {
        "cls_token": (["cls"], "as it is"),
        "pos_embed": (["Transformer/posembed_input/pos_embedding"], "as it is"),
    }

    def add(ours: str, theirs: str | list[str], kind: str = "linear") -> None:
        sources = [theirs] if isinstance(theirs, str) else theirs
        scale, bias = ("scale", "bias") if kind == "norm" else ("kernel", "bias")
        plan[f"{ours}.weight"] = ([f"{source}/{scale}" for source in sources], "as it is" if kind == "norm" else kind)
        plan[f"{ours}.bias"] = ([f"{source}/{bias}" for source in sources], "flat")

    add("patch_embed.proj", "embedding", "convolution")
    for index in range(depth):
        ours, theirs = f"blocks.{index}", f"Transformer/encoderblock_{index}"
        attention, mlp = f"{theirs}/MultiHeadDotProductAttention_1", f"{theirs}/MlpBlock_3"
        add(f"{ours}.norm1", f"{theirs}/LayerNorm_0", "norm")
        add(f"{ours}.attn.qkv", [f"{attention}/{part}" for part in ("query", "key", "value")], "to heads")
        add(f"{ours}.attn.proj", f"{attention}/out", "from heads")
        add(f"{ours}.norm2", f"{theirs}/LayerNorm_2", "norm")
        add(f"{ours}.mlp.fc1", f"{mlp}/Dense_0")
        add(f"{ours}.mlp.fc2", f"{mlp}/Dense_1")
    add("norm", "Transformer/encoder_norm", "norm")
    if has_head:
        add("head", "head")
    return plan


def _google_tensor(array: "np.ndarray", kind: str) -> Tensor:
    tensor = torch.from_numpy(array)
    if kind == "flat":
        return tensor.flatten()
    if kind == "linear":  # (in, out)
        return tensor.T.contiguous()
    if kind == "convolution":  # (height, width, in, out)
        return tensor.permute(3, 2, 0, 1).contiguous()
    if kind == "to heads":  # (in, heads, channels of a head)
        return tensor.flatten(1).T.contiguous()
    if kind == "from heads":  # (heads, channels of a head, out)
        return tensor.flatten(0, 1).T.contiguous()
    return tensor
