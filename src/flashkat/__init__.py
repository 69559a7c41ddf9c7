"""FlashKAT: Kolmogorov-Arnold Transformers (KATs) with fast kernels for their learnable activation.

Importing the package registers the models with timm and the operators with PyTorch. Triton kernels, training and
plotting are imported when they are first used.
"""

from .system.interrupts import guard_command

guard_command()  # before PyTorch, whose import takes seconds

from importlib.metadata import version

from . import models
from .nn.grkan import GRKAN
from .nn.group_rational import GroupRational
from .nn.lazy import LazyGroupRational
from .ops import rational

__version__ = version("flashkat")

__all__ = ["GRKAN", "GroupRational", "LazyGroupRational", "models", "rational"]
