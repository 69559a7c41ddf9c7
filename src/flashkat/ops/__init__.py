"""The operator: its definition, its paths (PyTorch operators, Triton kernels) and its registration with PyTorch."""

from .op import rational
from .reference import rational_reference

__all__ = ["rational", "rational_reference"]
