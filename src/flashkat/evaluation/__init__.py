"""Evaluation: loss and accuracy of models on data sets.

>>> from flashkat.evaluation import Config, Data, Trained, validate
>>> result = validate(Config(data=Data(data_dir="digits"), trained=Trained(checkpoint="run/last.pth.tar")))
>>> result.top1
"""

from ..data.config import Data
from ..models.config import Model
from ..system.compile import Compilation
from ..system.device import Runtime
from .config import Config, Evaluation, Trained
from .evaluate import evaluate
from .many import validate_all
from .metrics import Metrics
from .results import Result
from .validate import validate

__all__ = [
    "Compilation",
    "Config",
    "Data",
    "Evaluation",
    "Metrics",
    "Model",
    "Result",
    "Runtime",
    "Trained",
    "evaluate",
    "validate",
    "validate_all",
]
