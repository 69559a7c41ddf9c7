"""Kolmogorov-Arnold Transformers in timm's model registry."""

from .factory import create_model
from .kat import KolmogorovArnoldTransformer

__all__ = ["KolmogorovArnoldTransformer", "create_model"]
