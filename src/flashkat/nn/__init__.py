"""Modules: a learnable activation, and the GR-KAN layer in place of an MLP."""

from .fitting import Fit, Tail, fit
from .formats import coefficient_names
from .grkan import GRKAN
from .group_rational import GroupRational
from .lazy import LazyGroupRational
from .starts import FUNCTIONS, Start, starting_coefficients, variance_gain

__all__ = [
    "FUNCTIONS",
    "GRKAN",
    "Fit",
    "GroupRational",
    "LazyGroupRational",
    "Start",
    "Tail",
    "coefficient_names",
    "fit",
    "starting_coefficients",
    "variance_gain",
]
