"""The names of KAT's and FlashKAT's ``katransformer.py``: its classes and its models."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ..models import kat
from ..models.kat import KolmogorovArnoldTransformer
from ..nn.grkan import GRKAN
from .activations import FlashKAT_Group, KAT_Group

__all__ = ["KAN", "FlashKAT_Group", "KATVisionTransformer", "KAT_Group"]

KATVisionTransformer = KolmogorovArnoldTransformer
"""The class of all KATs here. Its rationals start as swish and its weights as in the published models, by default."""


class KAN(GRKAN):
    """:class:`flashkat.GRKAN` with the arguments of KAT's class, whose ``act_init`` is the second rational's start.

    ``act_layer`` is accepted and ignored, as in GRKAN. The starting functions are this package's fits.

    Args:
        in_features: channels of the input.
        hidden_features: channels between the linear layers; ``in_features`` if not given.
        out_features: channels of the output; ``in_features`` if not given.
        act_layer: ignored.
        norm_layer: as GRKAN's.
        bias: as GRKAN's.
        drop: as GRKAN's.
        use_conv: as GRKAN's.
        act_init: starting function of the second rational.
        **kwargs: GRKAN's arguments by name: ``m``, ``n``, ``num_groups``, ``den_groups`` and the like.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[..., nn.Module] | None = KAT_Group,
        norm_layer: Callable[..., nn.Module] | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
        act_init: str = "gelu",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_features,
            hidden_features,
            out_features,
            act_layer,
            norm_layer,
            bias,
            drop,
            use_conv,
            **{"start": act_init, **kwargs},
        )


def __getattr__(name: str) -> Any:
    """Return the function that makes a registered model, such as ``kat_tiny_patch16_224``."""
    if name.startswith(("kat_", "flash_kat_")) and hasattr(kat, name):
        return getattr(kat, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
