"""The operators of a KAT. Each has a file of its name."""

from .add_norm_grkan import add_norm_grkan, takes_one_call
from .add_norm_rational import add_norm_rational
from .dispatch import fuses
from .layout import Layers
from .linear_rational import linear_rational, linear_rational_linear
from .rational import rational
from .reference import rational_reference
from .register import DECOMPOSITIONS
from .sharding import register_shardings

__all__ = [
    "DECOMPOSITIONS",
    "Layers",
    "add_norm_grkan",
    "add_norm_rational",
    "fuses",
    "linear_rational",
    "linear_rational_linear",
    "rational",
    "rational_reference",
    "takes_one_call",
]

register_shardings()
