"""Kolmogorov-Arnold Transformers in timm's model registry."""

from .create import check_model_name, create_model
from .kat import KolmogorovArnoldTransformer, is_same_model

__all__ = ["KolmogorovArnoldTransformer", "check_model_name", "create_model", "is_same_model"]
