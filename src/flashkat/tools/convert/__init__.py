"""Turn the activations of any model into rationals."""

from .conversion import Converted, Left, Report
from .swap import convert
from .undo import revert

__all__ = ["Converted", "Left", "Report", "convert", "revert"]
