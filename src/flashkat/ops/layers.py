"""The layers of a block's second half, in order."""

from typing import Any, NamedTuple

__all__ = ["Layers"]


class Layers(NamedTuple):
    """LayerNorm, rational, linear, rational, linear: their tensors, or what is known of each tensor.

    With C channels, H in between and D at the end: ``scale`` (C,) and ``shift`` (C,) of the LayerNorm; ``numerator1``
    and ``denominator1``, see :func:`flashkat.rational`; ``weight1`` (H, C) and ``bias1`` (H,); ``numerator2`` and
    ``denominator2``; ``weight2`` (D, H) and ``bias2`` (D,).
    """

    scale: Any
    shift: Any
    numerator1: Any
    denominator1: Any
    weight1: Any
    bias1: Any
    numerator2: Any
    denominator2: Any
    weight2: Any
    bias2: Any
