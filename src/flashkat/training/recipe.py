"""Build the parts of a run from its configuration: model, learning rate and schedule, loss, mixing."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import scheduler_kwargs
from torch import Tensor, nn

from .. import checkpoints
from ..data.config import Data
from ..errors import InputError, did_you_mean, explain
from ..evaluation.restore import model_arguments
from ..models import create_model
from ..models.config import Model
from ..nn import GRKAN
from .config import Average, Loss, Mixing, Schedule
from .mixing import Mixer

__all__ = [
    "build_loss",
    "build_mixup",
    "build_model",
    "build_schedule",
    "check_schedule_name",
    "length_notes",
    "scaled_lr",
]

# Optimisers for which timm scales the learning rate with the square root of the batch. Others scale linearly.
_ADAPTIVE = ("ada", "lamb")

# Names to suggest. timm's versions differ in which they have.
_SCHEDULES = ("cosine", "tanh", "step", "multistep", "plateau", "poly", "none")

# Largest share that the initial weights may have in the final average without a hint.
_WORTH_A_HINT = 0.01


def build_model(
    settings: Model, data: Data, *, is_resumed: bool = False, say: Callable[[str], None] = lambda line: None
) -> Any:
    """Build the model, with the weights that it starts from.

    Args:
        settings: the section of the configuration.
        data: the data section of the images that the model will see.
        is_resumed: whether the weights will come from a resumed run.
        say: called with lines about weights that are missing or left out.

    Raises:
        InputError: there is no such model, or the weights do not fit it.
    """
    kwargs: dict[str, Any] = {
        **model_arguments(settings, data),
        "drop_rate": settings.drop or None,
        "drop_path_rate": settings.drop_path,
    }
    if settings.pretrained_path:  # in place of the published weights
        kwargs["pretrained"] = None
    if kwargs.get("weight_init") == "skip" and not (is_resumed or _takes_weights(settings)):
        raise InputError("--model-kwargs weight_init=skip leaves weights that are not loaded undefined: leave it out")
    model: Any = create_model(settings.name, **kwargs)
    for path in filter(None, (settings.pretrained_path, settings.initial_checkpoint)):
        for note in checkpoints.start_from(model, path, partial=settings.partial):
            say(note)
    _initialise_head(model, settings)
    if settings.grad_checkpointing:
        with explain(f"{settings.name} has no gradient checkpointing"):
            model.set_grad_checkpointing()
    if settings.no_recompute_rationals or settings.grad_checkpointing:  # with which nothing is left to save
        for module in model.modules():
            if isinstance(module, GRKAN):
                module.recompute = False
    return model


def _takes_weights(settings: Model) -> bool:
    return bool(settings.pretrained or settings.pretrained_path or settings.initial_checkpoint)


def length_notes(schedule: Schedule, average: Average, updates: int) -> list[str]:
    """Return a hint for each setting that is too slow for the number of updates.

    That is a warm-up that does not end, or an average that is still close to the initial weights.

    Args:
        schedule: the section of the configuration.
        average: the section of the configuration.
        updates: updates of the whole run.
    """
    notes = []
    if schedule.warmup_epochs >= schedule.epochs and not schedule.warmup_prefix and schedule.sched != "none":
        notes.append(
            f"Warm-up takes {schedule.warmup_epochs} of {schedule.epochs} epochs, so the learning rate never "
            f"reaches {schedule.lr:.3g}: give a smaller --warmup-epochs"
        )
    share = average.model_ema_decay**updates
    if average.model_ema and not average.model_ema_warmup and share >= _WORTH_A_HINT:
        notes.append(
            f"The averaged weights will be {share:.0%} those at the start: try --model-ema-warmup, or a lower decay"
        )
    return notes


@torch.no_grad()
def _initialise_head(model: Any, settings: Model) -> None:
    if settings.head_init_scale is None and settings.head_init_bias is None:
        return
    head = model.get_classifier()
    if not isinstance(head, nn.Linear):
        raise InputError(f"{settings.name} has no linear head for --head-init-scale or --head-init-bias")
    if settings.head_init_scale is not None:
        head.weight.mul_(settings.head_init_scale)
        head.bias.mul_(settings.head_init_scale)
    if settings.head_init_bias is not None:
        head.bias.fill_(settings.head_init_bias)


def scaled_lr(schedule: Schedule, opt: str, images: int) -> float:
    """Return the learning rate, scaled by timm's rule to the batch size of an update.

    Args:
        schedule: has the base rate and its batch size.
        opt: the optimiser's name.
        images: images of an update, over all processes and accumulated batches.
    """
    ratio = images / schedule.lr_base_size
    scale = schedule.lr_base_scale or ("sqrt" if any(name in opt.lower() for name in _ADAPTIVE) else "linear")
    return schedule.lr_base * (math.sqrt(ratio) if scale == "sqrt" else ratio)


def check_schedule_name(sched: str) -> None:
    """Raise InputError, with the most similar name, unless timm has a schedule of this name."""
    if sched == "none":
        return
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        known = _timms_schedule(optimizer, sched=sched)[0] is not None  # older timm returns None
    except ValueError:
        known = False
    if not known:
        hint = did_you_mean(sched.lower(), _SCHEDULES, otherwise=f"try {', '.join(_SCHEDULES)}")
        raise InputError(f"no schedule {sched!r} for --sched: {hint}")


def _timms_schedule(optimizer: torch.optim.Optimizer, **options: Any) -> tuple[Scheduler | None, int]:
    """Return timm's schedule and its epochs, without timm's warning about the plateau schedule's unsaved state.

    Our checkpoints do save that state.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PlateauLRScheduler is deprecated", category=FutureWarning)
        return create_scheduler_v2(optimizer, **options)


@dataclass(frozen=True, kw_only=True)
class _ForTimm(Schedule):
    """The settings, and the two others that timm reads from the same object."""

    eval_metric: str
    seed: int


def build_schedule(
    optimizer: torch.optim.Optimizer,
    settings: Schedule,
    updates_per_epoch: int,
    *,
    eval_metric: str = "top1",
    seed: int = 42,
) -> tuple[Scheduler | None, int]:
    """Build the schedule of the learning rate, and count its epochs.

    Args:
        optimizer: the optimiser whose learning rates it sets.
        settings: the section of the configuration.
        updates_per_epoch: updates of the optimiser in an epoch.
        eval_metric: the metric that a plateau schedule watches.
        seed: seed of the noise on the learning rate.

    Returns:
        The schedule, None for a constant rate, and the epochs to train. Cycles and cooldown add epochs.

    Raises:
        InputError: the schedule does not take its arguments.
    """
    options = scheduler_kwargs(_ForTimm(**vars(settings), eval_metric=eval_metric, seed=seed))
    if options["decay_epochs"] is None:  # timm's default differs between schedules
        del options["decay_epochs"]
    if settings.sched == "plateau" and settings.sched_on_updates:
        raise InputError("--sched plateau changes the rate after evaluations: leave out --sched-on-updates")
    if settings.lr_noise is not None and len(settings.lr_noise) > 2:
        raise InputError(f"--lr-noise takes one or two shares of the epochs, not {len(settings.lr_noise)} numbers")
    for flag, numbers in (("--lr-noise", settings.lr_noise or ()), ("--decay-milestones", settings.decay_milestones)):
        if list(numbers) != sorted(numbers):
            given = " ".join(f"{number:g}" for number in numbers)
            raise InputError(f"{flag} {given}: give the numbers in their order")
    with explain(f"cannot make --sched {settings.sched}"):
        scheduler, epochs = _timms_schedule(optimizer, **options, updates_per_epoch=updates_per_epoch)
    _check_cycles(scheduler, settings, epochs)
    if scheduler is None:
        # A schedule would apply the scale of each group.
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
    return scheduler, epochs


def _check_cycles(scheduler: Scheduler | None, settings: Schedule, epochs: int) -> None:
    """Raise InputError if cycles that become shorter end before the run: timm takes a logarithm, which has no value."""
    factor = settings.lr_cycle_mul
    last = epochs - (settings.warmup_epochs if settings.warmup_prefix else 0)
    # The lengths of all cycles, without end, sum to this.
    if hasattr(scheduler, "cycle_mul") and factor < 1 and last * (1 - factor) >= settings.epochs:
        raise InputError(
            f"--lr-cycle-mul {factor:g} lets all cycles end in epoch {settings.epochs / (1 - factor):g}, before the "
            f"last of {last}: give fewer --cooldown-epochs, or a factor nearer to 1"
        )


class _HalfMixup(Mixer):
    """Mix each image with a partner, and drop the partners: the batch is half as large."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "mode": "elem"})

    def __call__(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        half = len(images) // 2
        images, target = super().__call__(images, target)
        return images[:half], target[:half]


def build_mixup(
    mixing: Mixing,
    *,
    batch_size: int,
    size: Sequence[int],
    classes: int,
    smoothing: float,
    has_views: bool = False,
) -> Mixer | None:
    """Build mixup and cutmix of images and targets; None if they are off.

    Args:
        mixing: the section of the configuration.
        batch_size: images of a batch.
        size: height and width of the images.
        classes: number of classes.
        smoothing: label smoothing of the mixed targets.
        has_views: whether a batch holds several views of each image.

    Raises:
        InputError: the settings contradict each other.
    """
    if not mixing.is_on:
        return None
    if batch_size % 2:
        raise InputError(f"mixup and cutmix pair up images: --batch-size must be even, not {batch_size}")
    if has_views:
        raise InputError("--aug-splits compares views of one image, which mixup and cutmix would mix: leave these out")
    if mixing.cutmix_minmax is not None:
        _check_minmax(mixing.cutmix_minmax, size)
    return (_HalfMixup if mixing.mixup_mode == "half" else Mixer)(
        mixup_alpha=mixing.mixup,
        cutmix_alpha=mixing.cutmix,
        cutmix_minmax=mixing.cutmix_minmax,
        prob=mixing.mixup_prob,
        switch_prob=mixing.mixup_switch_prob,
        mode=mixing.mixup_mode,
        label_smoothing=smoothing,
        num_classes=classes,
    )


def _check_minmax(minmax: Sequence[float], size: Sequence[int]) -> None:
    low, high = minmax
    if low > high:
        raise InputError(f"--cutmix-minmax takes the smaller number first, not {low:g} {high:g}")
    # timm draws whole sides, from the first to below the second.
    if any(int(side * low) >= int(side * high) for side in size):
        height, width = size
        raise InputError(
            f"--cutmix-minmax {low:g} {high:g} leaves no side to draw in images of {height} x {width} pixels: give "
            "numbers further apart"
        )


def build_loss(settings: Loss, *, is_mixed: bool = False, views: int = 0) -> nn.Module:
    """Build the training loss.

    Args:
        settings: the section of the configuration.
        is_mixed: whether mixup gives soft targets (B, classes), smoothed already, in place of labels (B,).
        views: views of each image in a batch; 0 for the image alone.

    Returns:
        A module from logits (B, classes) and targets to a number.

    Raises:
        InputError: the settings contradict each other.
    """
    if settings.jsd_loss:
        if not views:
            raise InputError("--jsd-loss compares views of an image: give --aug-splits 3")
        if settings.bce_loss:
            raise InputError("--jsd-loss and --bce-loss are two losses: leave one out")
        return _Module(JsdCrossEntropy(num_splits=views, smoothing=settings.smoothing))
    if not settings.bce_loss and (
        settings.bce_sum or settings.bce_target_thresh is not None or settings.bce_pos_weight is not None
    ):
        raise InputError("--bce-sum, --bce-target-thresh and --bce-pos-weight need --bce-loss")
    if settings.bce_loss:
        with explain("cannot make the loss"):
            return BinaryCrossEntropy(
                smoothing=0.0 if is_mixed else settings.smoothing,
                target_threshold=settings.bce_target_thresh,
                sum_classes=settings.bce_sum,
                pos_weight=settings.bce_pos_weight,
            )
    if is_mixed:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(settings.smoothing) if settings.smoothing else nn.CrossEntropyLoss()


class _Module(nn.Module):
    """A loss of timm that is a module without ``forward``: it overrides ``__call__``."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.loss(output, target)
