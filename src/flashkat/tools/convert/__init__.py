"""Turn the activations of any model into rationals, and the MLPs of timm's models into GR-KANs."""

from .conversion import Converted, Left, Report
from .mlps import mlp_to_grkan
from .swap import convert
from .undo import revert

__all__ = ["Converted", "Left", "Report", "convert", "mlp_to_grkan", "revert"]
