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
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError, explain

if TYPE_CHECKING:
    import numpy as np

__all__ = ["compare", "describe", "from_google", "model_name"]


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
