"""Training: the configuration of a run, its parts, the loop and its output.

>>> from flashkat.training import Config, Data, Optimizer, Schedule, train
>>> config = Config(
...     data=Data(data_dir="digits", img_size=32),
...     optimizer=Optimizer(opt="adamw"),
...     schedule=Schedule(lr=1e-3, epochs=5),
... )
>>> train(config).best
"""

from ..data.config import Augmentation, Data
from ..models.config import Model
from ..system.compile import Compilation
from ..system.device import Runtime
from .config import (
    Average,
    Config,
    Distillation,
    Loss,
    Mixing,
    Nonfinite,
    Optimizer,
    Output,
    Parallel,
    Resume,
    Schedule,
    Tracking,
    Wandb,
)
from .run import Result, train

__all__ = [
    "Augmentation",
    "Average",
    "Compilation",
    "Config",
    "Data",
    "Distillation",
    "Loss",
    "Mixing",
    "Model",
    "Nonfinite",
    "Optimizer",
    "Output",
    "Parallel",
    "Result",
    "Resume",
    "Runtime",
    "Schedule",
    "Tracking",
    "Wandb",
    "train",
]
