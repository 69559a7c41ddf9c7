"""The operator: its definition, its paths (PyTorch operators, Triton kernels) and its registration with PyTorch."""

from .bias_op import linear_rational
from .grkan_layers import Layers
from .grkan_op import add_norm_grkan, takes_one_call
from .norm_op import add_norm_rational
from .op import rational
from .reference import rational_reference

__all__ = [
    "Layers",
    "add_norm_grkan",
    "add_norm_rational",
    "linear_rational",
    "rational",
    "rational_reference",
    "takes_one_call",
]
