"""Drop-in classes: KAT's and FlashKAT's activations, under their own names."""

from .activations import FlashKAT_Group, KAT_Group, KAT_Group2D

__all__ = ["FlashKAT_Group", "KAT_Group", "KAT_Group2D"]
