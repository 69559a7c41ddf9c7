"""Kolmogorov-Arnold Transformers in timm's model registry."""

from .factory import check_model_name, create_model
from .kat import KolmogorovArnoldTransformer

__all__ = ["KolmogorovArnoldTransformer", "check_model_name", "create_model"]
