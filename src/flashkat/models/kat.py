"""The Kolmogorov-Arnold Transformer: timm's Vision Transformer with GR-KANs for MLPs.

"Kolmogorov-Arnold Transformer", Yang & Wang, ICLR 2025, https://arxiv.org/abs/2409.10594. Importing this module
registers the models with timm; the ``flash_kat_`` names are those of the FlashKAT paper (Raffel & Chen, AAAI 2026,
https://arxiv.org/abs/2505.13813) and mean the same models.
"""

from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from ..nn import GRKAN
from .initialisation import kan_mimetic_, variance_preserving_

_INITIALISATIONS = {"kan_mimetic": kan_mimetic_, "variance_preserving": variance_preserving_}
_TIMM_INITIALISATIONS = ("", "jax", "jax_nlhb", "moco", "reset", "skip")


class KolmogorovArnoldTransformer(VisionTransformer):
    """timm's VisionTransformer whose blocks hold a :class:`flashkat.GRKAN` in place of the MLP.

    Args:
        *args: as VisionTransformer's.
        m: numerator coefficients of each rational.
        n: denominator coefficients of each rational.
        num_groups: number of numerators per rational, 1 for a shared one.
        den_groups: number of denominators per rational, 1 for a shared one.
        act_init: starting function of each block's second rational; the first starts as the identity.
        weight_init: "kan_mimetic", "variance_preserving", or one of VisionTransformer's own.
        **kwargs: as VisionTransformer's.
    """

    def __init__(
        self,
        *args: Any,
        m: int = 6,
        n: int = 4,
        num_groups: int = 1,
        den_groups: int = 8,
        act_init: str = "swish",
        weight_init: str = "kan_mimetic",
        **kwargs: Any,
    ) -> None:
        kwargs["mlp_layer"] = partial(
            kwargs.get("mlp_layer", GRKAN), m=m, n=n, num_groups=num_groups, den_groups=den_groups, start=act_init
        )
        if weight_init not in (*_INITIALISATIONS, *_TIMM_INITIALISATIONS):
            known = ", ".join((*_INITIALISATIONS, *filter(None, _TIMM_INITIALISATIONS)))
            raise ValueError(f"unknown weight_init {weight_init!r}: choose one of {known}")
        super().__init__(*args, weight_init="skip", **kwargs)
        if weight_init != "skip":
            self.weight_init_mode = weight_init
            self.init_weights(needs_reset=False)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise all weights; see the class for the modes."""
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

default_cfgs: dict[str, dict[str, Any]] = {}


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> KolmogorovArnoldTransformer:
    return build_model_with_cfg(
        KolmogorovArnoldTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **kwargs,
    )


def _register(name: str, size: str, start: str) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> KolmogorovArnoldTransformer:
        arguments = {"patch_size": 16, "depth": 12, "act_init": start, **_SIZES[size], **kwargs}
        return _create(name, pretrained=pretrained, **arguments)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"KAT-{size.capitalize()}, 16-pixel patches, second rational starting as {start}."
    default_cfgs[name] = {
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
    }
    globals()[name] = register_model(entrypoint)


for _prefix in ("kat", "flash_kat"):
    for _size in _SIZES:
        for _suffix, _start in _STARTS.items():
            _register(f"{_prefix}_{_size}{_suffix}_patch16_224", _size, _start)
