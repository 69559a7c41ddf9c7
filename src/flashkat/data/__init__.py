"""Data sets and the batches made of them."""

from .datasets import FakeImages, check_splits, image_count, open_dataset
from .folders import open_split
from .loaders import Batches, check_augmentation, evaluation_loader, training_loader

__all__ = [
    "Batches",
    "FakeImages",
    "check_augmentation",
    "check_splits",
    "evaluation_loader",
    "image_count",
    "open_dataset",
    "open_split",
    "training_loader",
]
