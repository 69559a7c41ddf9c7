"""What an evaluation does: its configuration, and the section of it that is about nothing else."""

from dataclasses import dataclass, field

from ..data.config import Data
from ..models.config import Model
from ..system.compile import Compilation
from ..system.device import Runtime

__all__ = ["BATCH_SIZE", "Config", "Evaluation", "Trained"]

BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model's file.

    Attributes:
        checkpoint: the file; empty takes the model's published weights.
        use_ema: take the averaged weights in it.
    """

    checkpoint: str = ""
    use_ema: bool = False


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a model is evaluated. Fields have the names of timm's flags.

    Attributes:
        use_train_size: the model's size in training, not the one for tests.
        crop_mode: ``center``, ``squash`` or ``border``; None takes the model's.
        crop_border_pixels: pixels to cut off around an image first.
        tta: views of each image, whose outputs are averaged; 0 and 1 are the image alone.
        real_labels: JSON file of ImageNet's reassessed labels.
        valid_labels: file with the indices of the outputs that count.
        metrics_avg: ``micro``, ``macro`` or ``weighted`` precision, recall and F1 too.
        num_gpu: GPUs that share each batch.
        retry: try smaller batches where the memory does not suffice.
        log_freq: batches between two lines.
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
    """All that :func:`flashkat.evaluation.validate` needs. ``data.val_split`` is the split."""

    data: Data = field(default_factory=lambda: Data(batch_size=BATCH_SIZE))
    model: Model = field(default_factory=lambda: Model(model=None))
    trained: Trained = field(default_factory=Trained)
    evaluation: Evaluation = field(default_factory=Evaluation)
    runtime: Runtime = field(default_factory=Runtime)
    compilation: Compilation = field(default_factory=Compilation)
