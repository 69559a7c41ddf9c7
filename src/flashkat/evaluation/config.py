"""The configuration of an evaluation, and the sections that only evaluation has."""

from dataclasses import dataclass, field

from ..data.config import Data
from ..defaults import EVALUATION_BATCH_SIZE
from ..models.config import Model
from ..system.compile import Compilation
from ..system.device import Runtime

__all__ = ["Config", "Evaluation", "Trained"]


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
