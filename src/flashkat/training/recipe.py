"""The parts of a run as the flags ask for them: model, learning rate and schedule, loss, mixing."""

import math
import warnings
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import scheduler_kwargs
from torch import Tensor, nn

from .. import checkpoints
from ..errors import InputError, did_you_mean, explain
from ..evaluation.restore import model_arguments
from ..models import create_model

__all__ = [
    "build_loss",
    "build_mixup",
    "build_model",
    "build_schedule",
    "check_schedule_name",
    "length_notes",
    "scaled_lr",
]

# timm scales the learning rate with the square root of the batch for these, linearly for the others.
_ADAPTIVE = ("ada", "lamb")

# To suggest; what there is timm knows, some versions more than others.
_SCHEDULES = ("cosine", "tanh", "step", "multistep", "plateau", "poly", "none")

# What the weights at the start may have of the average in the end.
_WORTH_A_HINT = 0.01


def build_model(args: Namespace, say: Callable[[str], None] = lambda line: None) -> Any:
    """The model, with the weights that it starts from; ``say`` tells what these leave open.

    Raises:
        InputError: there is no such model, or the weights are of another.
    """
    kwargs: dict[str, Any] = {
        **model_arguments(args),
        "drop_rate": args.drop or None,
        "drop_path_rate": args.drop_path,
    }
    if args.pretrained_path:  # in place of the published weights
        kwargs["pretrained"] = None
    if kwargs.get("weight_init") == "skip" and not _takes_weights(args):
        raise InputError("--model-kwargs weight_init=skip leaves weights that are not loaded undefined: leave it out")
    model: Any = create_model(args.model, **kwargs)
    for path in filter(None, (args.pretrained_path, args.initial_checkpoint)):
        for note in checkpoints.start_from(model, path, partial=args.partial):
            say(note)
    _initialise_head(model, args)
    if args.grad_checkpointing:
        with explain(f"{args.model} has no gradient checkpointing"):
            model.set_grad_checkpointing()
    return model


def _takes_weights(args: Namespace) -> bool:
    return bool(args.pretrained or args.pretrained_path or args.initial_checkpoint or args.resume)


def length_notes(args: Namespace, updates: int) -> list[str]:
    """Lines where so many updates are too few: for warm-up to end, or for the average to forget where it started."""
    notes = []
    if args.warmup_epochs >= args.epochs and not args.warmup_prefix and args.sched != "none":
        notes.append(
            f"Warm-up, --warmup-epochs {args.warmup_epochs}, does not end within --epochs {args.epochs}, so that the "
            f"learning rate never is {args.lr:.3g}: try a shorter one"
        )
    share = args.model_ema_decay**updates
    if args.model_ema and not args.model_ema_warmup and share >= _WORTH_A_HINT:
        notes.append(
            f"The averaged weights will be {share:.0%} those at the start: try --model-ema-warmup, or a lower decay"
        )
    return notes


@torch.no_grad()
def _initialise_head(model: Any, args: Namespace) -> None:
    if args.head_init_scale is None and args.head_init_bias is None:
        return
    head = model.get_classifier()
    if not isinstance(head, nn.Linear):
        raise InputError(f"{args.model} has no linear head for --head-init-scale or --head-init-bias")
    if args.head_init_scale is not None:
        head.weight.mul_(args.head_init_scale)
        head.bias.mul_(args.head_init_scale)
    if args.head_init_bias is not None:
        head.bias.fill_(args.head_init_bias)


def scaled_lr(args: Namespace, processes: int) -> float:
    """timm's rule: the learning rate goes with the images of an update, over all processes and accumulated batches."""
    ratio = args.batch_size * processes * args.grad_accum_steps / args.lr_base_size
    scale = args.lr_base_scale or ("sqrt" if any(name in args.opt.lower() for name in _ADAPTIVE) else "linear")
    return args.lr_base * (math.sqrt(ratio) if scale == "sqrt" else ratio)


def check_schedule_name(sched: str) -> None:
    """Raise InputError, with the nearest name, unless timm has a schedule of this one."""
    if sched == "none":
        return
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        known = _timms_schedule(optimizer, sched=sched)[0] is not None  # None is how older timm answers
    except ValueError:
        known = False
    if not known:
        hint = did_you_mean(sched.lower(), _SCHEDULES, otherwise=f"try {', '.join(_SCHEDULES)}")
        raise InputError(f"no schedule {sched!r} for --sched: {hint}")


def _timms_schedule(optimizer: torch.optim.Optimizer, **options: Any) -> tuple[Scheduler | None, int]:
    """timm's schedule and its epochs, without its warning that nobody saves the state of plateau's: we do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PlateauLRScheduler is deprecated", category=FutureWarning)
        return create_scheduler_v2(optimizer, **options)


def build_schedule(
    optimizer: torch.optim.Optimizer, args: Namespace, updates_per_epoch: int
) -> tuple[Scheduler | None, int]:
    """The schedule, and how many epochs it goes: cycles and cooldown are more.

    Raises:
        InputError: it does not take its arguments.
    """
    options = scheduler_kwargs(args)
    if options["decay_epochs"] is None:  # timm's own, which differs between schedules
        del options["decay_epochs"]
    if args.sched == "plateau" and args.sched_on_updates:
        raise InputError("--sched plateau goes by evaluations: leave out --sched-on-updates")
    if args.lr_noise is not None and len(args.lr_noise) > 2:
        raise InputError(f"--lr-noise takes where noise begins, and perhaps ends, not {len(args.lr_noise)} numbers")
    with explain(f"cannot make --sched {args.sched}"):
        scheduler, epochs = _timms_schedule(optimizer, **options, updates_per_epoch=updates_per_epoch)
    if scheduler is None:
        # Otherwise the schedule's part.
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
    return scheduler, epochs


class _HalfMixup(Mixup):
    """Every image mixed with a partner that is then left out, so that the batch is half as large."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "mode": "elem"})

    def __call__(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        half = len(images) // 2
        images, target = super().__call__(images, target)
        return images[:half], target[:half]


def _mixes(args: Namespace) -> bool:
    return bool(args.mixup or args.cutmix or args.cutmix_minmax)


def build_mixup(args: Namespace) -> Mixup | None:
    """Mixing of images and targets, if any."""
    if not _mixes(args):
        return None
    if args.batch_size % 2:
        raise InputError(f"mixup and cutmix pair up images: --batch-size must be even, not {args.batch_size}")
    if args.aug_splits:
        raise InputError("--aug-splits compares views of one image, which mixup and cutmix would mix: leave these out")
    return (_HalfMixup if args.mixup_mode == "half" else Mixup)(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=args.num_classes,
    )


def build_loss(args: Namespace) -> nn.Module:
    """The training loss; mixed targets are smoothed where they are mixed."""
    if args.jsd_loss:
        if not args.aug_splits:
            raise InputError("--jsd-loss compares views of an image: give --aug-splits 3")
        if args.bce_loss:
            raise InputError("--jsd-loss and --bce-loss are two losses: leave one out")
        return _Module(JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing))
    if not args.bce_loss and (args.bce_sum or args.bce_target_thresh is not None or args.bce_pos_weight is not None):
        raise InputError("--bce-sum, --bce-target-thresh and --bce-pos-weight need --bce-loss")
    if args.bce_loss:
        with explain("cannot make the loss"):
            return BinaryCrossEntropy(
                smoothing=0.0 if _mixes(args) else args.smoothing,
                target_threshold=args.bce_target_thresh,
                sum_classes=args.bce_sum,
                pos_weight=args.bce_pos_weight,
            )
    if _mixes(args):
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


class _Module(nn.Module):
    """A loss that timm calls without being a module's forward."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.loss(output, target)
