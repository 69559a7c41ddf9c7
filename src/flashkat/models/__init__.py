"""Kolmogorov-Arnold Transformers in timm's model registry."""

from .kat import KolmogorovArnoldTransformer

__all__ = ["KolmogorovArnoldTransformer"]
