"""The configuration of an evaluation, and the sections that only evaluation has."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from typing import Any

from ..data.config import Data
from ..defaults import CHOICES, EVALUATION_BATCH_SIZE, LENGTHS, MODEL_FLAGS, RANGES, wanted
from ..errors import InputError
from ..models.config import Model
from ..system.compile import Compilation
from ..system.device import Runtime

__all__ = ["Config", "Evaluation", "Trained", "check_values"]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The file of a trained model.

    Attributes:
        checkpoint: the file; empty takes the model's published weights.
        use_ema: take the averaged weights from the file.
    """

    checkpoint: str = ""
    use_ema: bool = False


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a model is evaluated. Fields have the names of timm's flags.

    Attributes:
        use_train_size: use the image size of training, not the one for tests.
        crop_mode: ``center``, ``squash`` or ``border``; None takes the model's.
        crop_border_pixels: pixels to cut off around an image before resizing.
        tta: views of each image, whose outputs are averaged; 0 and 1 are the image alone.
        real_labels: JSON file of ImageNet's reassessed labels.
        valid_labels: file with the indices of the outputs to evaluate.
        metrics_avg: report precision, recall and F1 too, averaged as ``micro``, ``macro`` or ``weighted``.
        num_gpu: GPUs that share each batch.
        retry: retry with smaller batches if the device runs out of memory.
        log_freq: batches between two lines of progress.
    """

    use_train_size: bool = False
    crop_mode: str | None = None
    crop_border_pixels: int | None = None
    tta: int = 0
    real_labels: str = ""
    valid_labels: str = ""
    metrics_avg: str | None = None
    num_gpu: int = 1
    retry: bool = False
    log_freq: int = 10


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of :func:`flashkat.evaluation.validate`. ``data.val_split`` names the split to evaluate."""

    data: Data = field(default_factory=lambda: Data(batch_size=EVALUATION_BATCH_SIZE))
    model: Model = field(default_factory=lambda: Model(model=None))
    trained: Trained = field(default_factory=Trained)
    evaluation: Evaluation = field(default_factory=Evaluation)
    runtime: Runtime = field(default_factory=Runtime)
    compilation: Compilation = field(default_factory=Compilation)


def check_values(config: Any) -> None:
    """Raise InputError for a value that its flag would refuse, as a program may give it.

    Args:
        config: a configuration, whose sections are dataclasses.
    """
    sections = [getattr(config, each.name) for each in fields(config)]
    for section in filter(is_dataclass, sections):
        for each in fields(section):
            if problem := _problem(each.name, getattr(section, each.name), each.type):
                raise InputError(f"--{each.name.replace('_', '-')} {problem}")


def _problem(name: str, value: Any, annotation: Any) -> str:
    """Return what is wrong with a setting, or nothing."""
    if value is None:
        return "" if "None" in str(annotation) else "must not be None"
    if name in CHOICES and value not in CHOICES[name]:
        return f"must be one of {', '.join(map(repr, CHOICES[name]))}, not {value!r:.80}"
    if name == "model_kwargs":
        return next((f"{key}: use {MODEL_FLAGS[key]}" for key in value if key in MODEL_FLAGS), "")
    if name not in RANGES:
        return ""
    length = LENGTHS.get(name)
    if length is None:
        return _problem_of_number(name, value)
    if not (isinstance(value, Sequence) and value and length in (0, len(value))):
        return f"takes {length or 'several'} numbers, not {value!r:.80}"
    return next(filter(None, (_problem_of_number(name, number) for number in value)), "")


def _problem_of_number(name: str, number: Any) -> str:
    """Return what is wrong with a number, or nothing."""
    kind, low, high, above = RANGES[name]
    is_number = isinstance(number, Integral if kind is int else Real)
    if not is_number or not math.isfinite(number):
        return f"must be a {'whole ' if kind is int else ''}number, not {number!r:.80}"
    if low <= number <= high and not (above and number == low):
        return ""
    return f"must be {wanted(low, high, above)}, not {number!r:.80}"
