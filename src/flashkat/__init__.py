"""FlashKAT: Kolmogorov-Arnold Transformers, from the learnable activation to the trained model.

Importing the package registers the models with timm and the operator with PyTorch; everything heavier (Triton
kernels, training, plotting) is imported when it is first used.
"""

from importlib.metadata import version

from . import models
from .nn.grkan import GRKAN
from .nn.group_rational import GroupRational
from .ops import rational

__version__ = version("flashkat")

__all__ = ["GRKAN", "GroupRational", "models", "rational"]
