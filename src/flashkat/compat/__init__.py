"""Drop-in classes: KAT's and FlashKAT's activations and layers, under their own names."""

from .activations import FlashKAT_Group, KAT_Group, KAT_Group2D, KAT_Group_Torch, RationalTriton1DGroup
from .install import install
from .katransformer import KAN, KATVisionTransformer

__all__ = [
    "KAN",
    "FlashKAT_Group",
    "KATVisionTransformer",
    "KAT_Group",
    "KAT_Group2D",
    "KAT_Group_Torch",
    "RationalTriton1DGroup",
    "install",
]
