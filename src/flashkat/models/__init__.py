"""Kolmogorov-Arnold Transformers in timm's model registry."""

from .config import Model
from .create import check_model_name, create_model
from .kat import KolmogorovArnoldTransformer, is_same_model

__all__ = ["KolmogorovArnoldTransformer", "Model", "check_model_name", "create_model", "is_same_model"]
