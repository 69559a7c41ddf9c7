"""The configuration of a training run: a frozen section for each theme."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from ..data.config import Augmentation, Data
from ..defaults import DEFAULT_OUTPUT
from ..models.config import Model
from ..system.compile import Compilation
from ..system.device import Runtime

__all__ = [
    "AUTO",
    "Average",
    "Config",
    "Distillation",
    "Loss",
    "Mixing",
    "Nonfinite",
    "Optimizer",
    "Output",
    "Parallel",
    "Resume",
    "Schedule",
    "Tracking",
    "Wandb",
]

AUTO = "auto"
"""The value of ``resume`` that picks the newest good checkpoint of the run's folder."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimiser and the clipping of gradients. Fields have the names and defaults of timm's flags.

    Attributes:
        opt: name of an optimiser of timm.
        opt_kwargs: more arguments of the optimiser.
        clip_grad: limit of the gradients; None clips nothing.
        clip_mode: ``norm`` of all gradients, ``value``, or ``agc`` (adaptive gradient clipping).
        rational_lr_scale: learning rate of the rationals' coefficients, as a multiple of the other weights'.
        rational_weight_decay: weight decay of the coefficients; None takes the other weights'.
    """

    opt: str = "sgd"
    opt_eps: float | None = None
    opt_betas: Sequence[float] | None = None
    opt_kwargs: Mapping[str, Any] = field(default_factory=dict)
    momentum: float = 0.9
    weight_decay: float = 2e-5
    clip_grad: float | None = None
    clip_mode: str = "norm"
    layer_decay: float | None = None
    layer_decay_min_scale: float = 0.0
    layer_decay_no_opt_scale: float | None = None
    rational_lr_scale: float = 1.0
    rational_weight_decay: float | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate and epochs. Fields have the names and defaults of timm's flags.

    Attributes:
        lr: learning rate; None scales ``lr_base`` to the batch size of an update.
        sched: name of a schedule of timm.
        epochs: epochs to train, without those that cycles and cooldown add.
        start_epoch: number of the first epoch; None is 0, or the next one of a resumed run.
    """

    lr: float | None = None
    lr_base: float = 0.1
    lr_base_size: int = 256
    lr_base_scale: str = ""
    lr_noise: Sequence[float] | None = None
    lr_noise_pct: float = 0.67
    lr_noise_std: float = 1.0
    lr_cycle_mul: float = 1.0
    lr_cycle_decay: float = 0.5
    lr_cycle_limit: int = 1
    lr_k_decay: float = 1.0
    sched: str = "cosine"
    sched_on_updates: bool = False
    epochs: int = 300
    start_epoch: int | None = None
    warmup_epochs: int = 5
    warmup_lr: float = 1e-5
    warmup_prefix: bool = False
    cooldown_epochs: int = 0
    min_lr: float = 0.0
    decay_milestones: Sequence[int] = (90, 180, 270)
    decay_epochs: float | None = None
    decay_rate: float = 0.1
    patience_epochs: int = 10


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The training loss. Fields have the names and defaults of timm's flags."""

    smoothing: float = 0.1
    jsd_loss: bool = False
    bce_loss: bool = False
    bce_sum: bool = False
    bce_target_thresh: float | None = None
    bce_pos_weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Knowledge distillation from a teacher. Fields have the names and defaults of timm's flags."""

    kd_model_name: str | None = None
    kd_distill_type: str = "logit"
    kd_loss_type: str = "kl"
    distill_loss_weight: float | None = None
    task_loss_weight: float | None = None
    kd_temperature: float = 4.0


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixup and cutmix. Fields have the names and defaults of timm's flags."""

    mixup: float = 0.0
    cutmix: float = 0.0
    cutmix_minmax: Sequence[float] | None = None
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: str = "batch"
    mixup_off_epoch: int = 0

    @property
    def is_on(self) -> bool:
        """Whether images are mixed at all."""
        return bool(self.mixup or self.cutmix or self.cutmix_minmax)

    def images(self, batch_size: int) -> int:
        """Return how many images of a batch the model sees. ``half`` drops each image's partner."""
        return batch_size // (2 if self.is_on and self.mixup_mode == "half" else 1)


@dataclass(frozen=True, kw_only=True)
class Average:
    """The moving average of the weights. Fields have the names and defaults of timm's flags."""

    model_ema: bool = False
    model_ema_force_cpu: bool = False
    model_ema_decay: float = 0.9998
    model_ema_warmup: bool = False


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Gradient accumulation, and training in several processes.

    Attributes:
        grad_accum_steps: batches per update.
        fsdp: shard weights, gradients and optimiser state over the processes (FSDP2).
        no_ddp_bb: do not broadcast buffers between processes.
        sync_bn: compute the statistics of batch norms over all processes.
        dist_bn: after an epoch ``broadcast`` or ``reduce`` running statistics; empty leaves them.
    """

    grad_accum_steps: int = 1
    fsdp: bool = False
    no_ddp_bb: bool = False
    sync_bn: bool = False
    dist_bn: str = "reduce"


@dataclass(frozen=True, kw_only=True)
class Nonfinite:
    """The handling of updates whose loss or gradients are not finite.

    Attributes:
        max_bad_steps: leave out bad updates, and stop after so many in a row; with 0 none is left out, and training
            stops when it next looks at a loss that is not finite.
        find_nonfinite: look at each update, and run a bad one again to find the layer where it began.
    """

    max_bad_steps: int = 0
    find_nonfinite: bool = False

    @property
    def limit(self) -> int:
        """How many bad updates in a row stop the run; 0 if none is left out."""
        return self.max_bad_steps or int(self.find_nonfinite)


@dataclass(frozen=True, kw_only=True)
class Resume:
    """The run to resume.

    Attributes:
        resume: its checkpoint; empty begins a new run, ``auto`` takes the newest good checkpoint of the run's folder.
        no_resume_opt: do not restore the optimiser and the gradient scaler.
    """

    resume: str = ""
    no_resume_opt: bool = False


@dataclass(frozen=True, kw_only=True)
class Output:
    """The output of a run: its folder, checkpoints, log and evaluations.

    Attributes:
        output: parent of the run's folder.
        experiment: name of the run's folder; empty takes date, model and size.
        log_interval: batches between lines of progress.
        recovery_interval: updates of an epoch between recovery checkpoints; 0 for none.
        checkpoint_hist: how many checkpoints of the best epochs to keep.
        val_interval: epochs between evaluations.
        save_images: save the batches of the logged lines as pictures.
        eval_metric: the metric of the best checkpoint: ``top1``, ``top5`` or ``loss``.
        tta: views of each image, whose outputs evaluation averages.
    """

    output: str = DEFAULT_OUTPUT
    experiment: str = ""
    log_interval: int = 50
    recovery_interval: int = 0
    checkpoint_hist: int = 10
    val_interval: int = 1
    save_images: bool = False
    eval_metric: str = "top1"
    tta: int = 0


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """What TensorBoard and Weights & Biases get beside the rows of the summary.

    Attributes:
        log_tensorboard: log to TensorBoard, in the run's folder.
        log_functions: epochs between pictures of the learned functions; 0 for none.
    """

    log_tensorboard: bool = False
    log_functions: int = 10


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """Logging to Weights & Biases. Fields have the names of timm's flags."""

    log_wandb: bool = False
    wandb_project: str | None = None
    wandb_tags: Sequence[str] = ()
    wandb_resume_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of :func:`flashkat.training.train`. Every section has defaults.

    Attributes:
        unused: flags that only the command line reads, kept for ``args.yaml``.
    """

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    runtime: Runtime = field(default_factory=Runtime)
    compilation: Compilation = field(default_factory=Compilation)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: Loss = field(default_factory=Loss)
    distillation: Distillation = field(default_factory=Distillation)
    mixing: Mixing = field(default_factory=Mixing)
    average: Average = field(default_factory=Average)
    parallel: Parallel = field(default_factory=Parallel)
    nonfinite: Nonfinite = field(default_factory=Nonfinite)
    resume: Resume = field(default_factory=Resume)
    output: Output = field(default_factory=Output)
    tracking: Tracking = field(default_factory=Tracking)
    wandb: Wandb = field(default_factory=Wandb)
    unused: Mapping[str, Any] = field(default_factory=dict)

    def flags(self) -> dict[str, Any]:
        """Return every setting by the name of its flag, for ``args.yaml`` and checkpoints."""
        found = dict(self.unused)
        for section in fields(self):
            if section.name != "unused":
                values = getattr(self, section.name)
                found |= {each.name: _plain(getattr(values, each.name)) for each in fields(values)}
        return found


def _plain(value: Any) -> Any:
    """Return a setting as plain types, which YAML and ``torch.load(weights_only=True)`` take."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Real):  # such as NumPy's
        return int(value) if isinstance(value, Integral) else float(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
