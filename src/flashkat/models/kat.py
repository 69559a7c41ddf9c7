"""The Kolmogorov-Arnold Transformer: timm's Vision Transformer with GR-KANs in place of MLPs.

Source: "Kolmogorov-Arnold Transformer", Yang & Wang, ICLR 2025, https://arxiv.org/abs/2409.10594.

Importing this module registers the models with timm. The ``flash_kat_`` names are aliases from the FlashKAT paper
(Raffel & Chen, AAAI 2026, https://arxiv.org/abs/2505.13813).
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..checkpoints.formats import compare, describe, model_name
from ..checkpoints.load import fit, weights
from ..errors import InputError
from ..nn.formats import rational_names
from ..nn.grkan import GRKAN
from ..nn.starts import Start
from .block import KATBlock
from .initialisation import kan_, kan_mimetic_, paper_mimetic_, variance_preserving_

# In KAT's code "mimetic" draws from the same distributions as "kan_mimetic".
_INITIALISATIONS = {
    "kan_mimetic": kan_mimetic_,
    "mimetic": kan_mimetic_,
    "paper_mimetic": paper_mimetic_,
    "kan": kan_,
    "variance_preserving": variance_preserving_,
}
_TIMM_INITIALISATIONS = ("", "jax", "jax_nlhb", "moco", "reset", "skip")


class KolmogorovArnoldTransformer(VisionTransformer):
    """timm's VisionTransformer whose blocks hold a :class:`flashkat.GRKAN` in place of the MLP.

    Args:
        *args: as VisionTransformer's.
        m: numerator coefficients of each rational.
        n: denominator coefficients of each rational.
        num_groups: number of numerators of each rational; with 1, all channels share it, with 0 each has its own.
        den_groups: number of denominators of each rational, likewise.
        act_init: ``start`` of each block's second rational; the first starts as the identity.
        weight_init: "kan_mimetic" as the published models, "mimetic" (the same), "paper_mimetic", "kan",
            "variance_preserving", or one of VisionTransformer's own.
        **kwargs: as VisionTransformer's.
    """

    def __init__(
        self,
        *args: Any,
        m: int = 6,
        n: int = 4,
        num_groups: int = 1,
        den_groups: int = 8,
        act_init: Start = "swish",
        weight_init: str = "kan_mimetic",
        **kwargs: Any,
    ) -> None:
        layer = kwargs.get("mlp_layer", GRKAN)
        kwargs["mlp_layer"] = partial(layer, m=m, n=n, num_groups=num_groups, den_groups=den_groups, start=act_init)
        kwargs.setdefault("block_fn", KATBlock)
        if weight_init not in (*_INITIALISATIONS, *_TIMM_INITIALISATIONS):
            known = ", ".join((*_INITIALISATIONS, *filter(None, _TIMM_INITIALISATIONS)))
            raise ValueError(f"unknown weight_init {weight_init!r}: choose one of {known}, or nothing for timm's start")
        super().__init__(*args, weight_init="skip", **kwargs)
        if isinstance(layer, type) and not all(any(isinstance(m, layer) for m in b.modules()) for b in self.blocks):
            name = getattr(kwargs["block_fn"], "__name__", "block_fn")
            raise ValueError(f"a {name} has no place for a GR-KAN: choose another block_fn")
        for module in self.blocks[-1:].modules():
            if isinstance(module, GRKAN):
                # Its backward pass comes first, while all blocks' memory is taken: more would raise the peak.
                module.recompute = False
        if weight_init != "skip":
            self.weight_init_mode = weight_init
            self.init_weights(needs_reset=False)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise all weights in place.

        Args:
            mode: a ``weight_init`` of the class; "" takes the model's.
            needs_reset: reset modules that have no initialisation of their own, as in timm.
        """
        mode = mode or self.weight_init_mode
        if mode not in _INITIALISATIONS:
            super().init_weights(mode, needs_reset=needs_reset)
            return
        _INITIALISATIONS[mode](self)
        if self.fix_init:
            self.fix_init_weight()


_SIZES = {
    "tiny": {"embed_dim": 192, "num_heads": 3},
    "small": {"embed_dim": 384, "num_heads": 6},
    "base": {"embed_dim": 768, "num_heads": 12},
}
_STARTS = {"": "swish", "_swish": "swish", "_gelu": "gelu"}

# The published weights by size and timm's tag: "" was trained from scratch, "vitft" fine-tuned from a ViT. Each file's
# name ends in its SHA-256.
_HUB_REPOSITORY = "adamdad/kat_pretained"
_HUB_FILES = {
    "tiny": {
        "": "kat_tiny_patch16_224_1f3ad3b2e69821f3d412f2924cf159a0e266f142d739cb68f68f796f5a0fe289.pth",
        "vitft": "kat_tiny_patch16_224-finetune_64f124d003803e4a7e1aba1ba23500ace359b544e8a5f0110993f25052e402fb.pth",
    },
    "small": {
        "": "kat_small_patch16_224_32487885cf13d2c14e461c9016fac8ad43f7c769171f132530941e930aeb5fe2.pth",
        "vitft": "kat_small_patch_224-finetune_3ae087a4c28e2993468eb377d5151350c52c80b2a70cc48ceec63d1328ba58e0.pth",
    },
    "base": {
        "": "kat_base_patch16_224_abff874d925d756d15cde97303f772a3460ddbd44b9c53fb9ce5cf15be230fb6.pth",
        "vitft": "kat_base_patch16_224-finetune_440bf1ead9dd8ecab642078cfb60ae542f1fa33ca65517260501e02c011e38f2.pth",
    },
}


def _configuration(**weights: str) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **weights,
    }


def _configurations(name: str, size: str) -> dict[str, dict[str, Any]]:
    """Return timm's configurations of a model by name and tag.

    A model that starts as GELU has the same weights, as in KAT's code. They replace its start.
    """
    return {
        f"{name}.{tag}" if tag else name: _configuration(hf_hub_id=_HUB_REPOSITORY, hf_hub_filename=file)
        for tag, file in _HUB_FILES[size].items()
    }


_VARIANTS = {
    f"{prefix}_{size}{suffix}_patch16_224": (size, start)
    for prefix in ("kat", "flash_kat")
    for size in _SIZES
    for suffix, start in _STARTS.items()
}


def is_same_model(one: str, other: str) -> bool:
    """Return whether two names mean one architecture. Tags, which pick weights, and aliases are ignored."""
    return _variant_of(one) == _variant_of(other)


def _variant_of(name: str) -> str | tuple[str, str]:
    if not is_model(name):  # on a hub, or in a folder
        return name
    architecture = name.partition(".")[0]
    return _VARIANTS.get(architecture, architecture)


default_cfgs = generate_default_cfgs(
    {key: value for name, (size, _) in _VARIANTS.items() for key, value in _configurations(name, size).items()}
)


def checkpoint_filter(state: dict[str, Any], model: VisionTransformer, *, is_strict: bool = True) -> dict[str, Tensor]:
    """Rename published weights to a model's names, for timm to load.

    timm then adapts the input channels and the classifier. A ViT's weights leave the rationals at their starting
    functions.

    Args:
        state: weights in a format that :mod:`flashkat.checkpoints.formats` knows.
        model: the model to load into.
        is_strict: whether timm is asked for all weights and no others, see its ``pretrained_strict``.

    Returns:
        A state_dict with the model's names.

    Raises:
        InputError: the weights are of another model. timm itself does not notice if the number of classes differs.
    """
    own = model.state_dict()
    state = fit(model, weights(state), "the published weights", is_start=True)
    if not rational_names(state):
        state |= {key: own[key] for key in rational_names(own)}

    def without_head(names: Iterable[str]) -> dict[str, None]:
        return dict.fromkeys(name for name in names if not name.startswith("head."))

    differences = compare(without_head(own), without_head(state))
    if not is_strict:
        differences |= {"missing": [], "unexpected": []}
    if found := describe(differences):
        raise InputError(f"the weights are of another model than {model_name(model)} as asked for: {found}")
    return state


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> KolmogorovArnoldTransformer:
    return build_model_with_cfg(
        KolmogorovArnoldTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=partial(checkpoint_filter, is_strict=kwargs.get("pretrained_strict", True)),
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **kwargs,
    )


def _register(name: str, size: str, start: str) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> KolmogorovArnoldTransformer:
        arguments = {"patch_size": 16, "depth": 12, "act_init": start, **_SIZES[size], **kwargs}
        return _create(name, pretrained=pretrained, **arguments)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"KAT-{size.capitalize()}, 16-pixel patches, second rational starting as {start}."
    globals()[name] = register_model(entrypoint)


for _name, _variant in _VARIANTS.items():
    _register(_name, *_variant)
