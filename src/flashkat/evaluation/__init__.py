"""Evaluation: loss and accuracy of models on data sets."""

from .evaluate import evaluate, prepared
from .metrics import Meters, Metrics
from .restore import autocast, data_config, model_arguments, model_from_checkpoint

__all__ = [
    "Meters",
    "Metrics",
    "autocast",
    "data_config",
    "evaluate",
    "model_arguments",
    "model_from_checkpoint",
    "prepared",
]
