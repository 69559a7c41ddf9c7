"""The formats of weights that are read or written, and how weights differ from a model's.

A checkpoint's weights are a dictionary from names to tensors. G is the number of groups:

``timm``
    This package's own models, in timm's registry. Names are those of timm's Vision Transformer. Each MLP has two
    rationals: ``blocks.N.mlp.act1.numerator`` (1 or G, m) and ``.denominator`` (1 or G, n), and the same for ``act2``.
``kat``
    KAT (Yang & Wang, ICLR 2025): the published weights, and those that its code trains. The rationals' coefficients
    are ``weight_numerator`` (1, 6) and ``weight_denominator`` (8, 4). All other names are the same.
``flashkat``
    The FlashKAT paper's code (Raffel & Chen, AAAI 2026). The coefficients are ``numerator_v`` (1 or G, 6) and
    ``denominator_v`` (1 or G, 4). All other names are the same.
timm's ViT
    The same names without ``act1`` and ``act2``: an MLP is ``mlp.fc1`` and ``mlp.fc2``.
Google's ViT
    NumPy's ``.npz``, as in the original Vision Transformer (Dosovitskiy et al., ICLR 2021) and "How to train your
    ViT?" (Steiner et al., 2021): ``Transformer/encoderblock_N/...``, kernels with inputs first, attention per head.
    In some files all names begin with ``opt/target/``. timm reads them.

:mod:`flashkat.checkpoints.io` reads and writes the files.
"""

import re
from collections.abc import Mapping
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..errors import InputError, explain

__all__ = ["compare", "describe", "from_google", "model_name"]


# --- differences ------------------------------------------------------------------------------------------------------


def model_name(model: Any) -> str:
    """Return a model's name in timm's registry, or else its class's."""
    configuration = getattr(model, "pretrained_cfg", None) or {}
    return configuration.get("architecture") or type(model).__name__


def compare(
    own: Mapping[str, Any], state: Mapping[str, Any], read: Mapping[str, Any] | None = None
) -> dict[str, list[str]]:
    """List the names that a state_dict lacks, has beyond a model's own, has in another shape, or as complex numbers.

    Args:
        own: the model's; a value may be None if its shape does not matter.
        state: to compare.
        read: the weights before they were fitted to the model. Their shapes are reported, if given.
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
        # PyTorch would drop the imaginary part.
        "complex": [
            key for key in shared if own[key] is not None and state[key].is_complex() and not own[key].is_complex()
        ],
    }


def describe(differences: Mapping[str, list[str]], most: int = 2) -> str:
    """Describe differences in one line with at most ``most`` names of each kind; empty if there are none."""

    def some(names: list[str]) -> str:
        return ", ".join(names[:most]) + (", ..." if len(names) > most else "")

    return "; ".join(f"{len(keys)} {kind} ({some(keys)})" for kind, keys in differences.items() if keys)


# --- Google's ViT -----------------------------------------------------------------------------------------------------

_GOOGLE_PREFIX = "opt/target/"
_GOOGLE_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/")
_GOOGLE_LAYERS = (
    *("LayerNorm_0", "LayerNorm_2", "MlpBlock_3/Dense_0", "MlpBlock_3/Dense_1"),
    *(f"MultiHeadDotProductAttention_1/{part}" for part in ("query", "key", "value", "out")),
)


def from_google(path: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read one of Google's original ViTs by timm, under timm's names.

    timm's ViTs lack the layer ``pre_logits`` of some files, which is left out.

    Args:
        path: the file.
        shapes: of its arrays, by name.

    Raises:
        InputError: arrays are missing, do not belong to a ViT, or have shapes that no ViT has.
    """
    prefix = _GOOGLE_PREFIX if any(name.startswith(_GOOGLE_PREFIX) for name in shapes) else ""
    shapes = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    blocks = [int(match[1]) for name in shapes if (match := _GOOGLE_BLOCK.match(name))]
    depth, has_head = 1 + max(blocks, default=0), "head/kernel" in shapes or "head/bias" in shapes
    needed = _google_names(depth, has_head)
    unexpected = {name for name in shapes.keys() - needed if not name.startswith("pre_logits/")}
    found = describe({"missing": sorted(needed - shapes.keys()), "unexpected": sorted(unexpected)})
    if found:
        raise InputError(f"{path} is not of one of Google's original ViTs: {found}")
    with explain(f"cannot read {path} as the weights of a ViT"):
        height, width, channels, features = shapes["embedding/kernel"]
        patches = shapes["Transformer/posembed_input/pos_embedding"][1] - 1
        model = VisionTransformer(
            # A row of patches, one for each position of the file, so that nothing is resampled yet.
            img_size=(height, width * patches),
            patch_size=(height, width),
            in_chans=channels,
            num_classes=shapes["head/bias"][0] if has_head else 0,
            embed_dim=features,
            depth=depth,
            num_heads=1,  # weights are the same for any number
            # timm rounds the product with ``features`` down.
            mlp_ratio=(shapes["Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias"][0] + 0.5) / features,
            # Draws no random numbers.
            device="meta",
        ).to_empty(device="cpu")
        model.load_pretrained(path)
    return model.state_dict()


def _google_names(depth: int, has_head: bool) -> set[str]:
    """Return the names of all arrays of a ViT."""
    layers = ["embedding", "Transformer/encoder_norm", *(["head"] if has_head else [])]
    layers += [f"Transformer/encoderblock_{index}/{layer}" for index in range(depth) for layer in _GOOGLE_LAYERS]
    weights = {f"{layer}/{'scale' if 'norm' in layer.lower() else 'kernel'}" for layer in layers}
    return {"cls", "Transformer/posembed_input/pos_embedding", *weights, *(f"{layer}/bias" for layer in layers)}
