"""``flashkat train``: everything is built and checked first, then a folder is made, then the loop runs."""

import difflib
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.utils import ModelEmaV3, random_seed
from torch import nn

from ..arguments import resolve_device
from ..data import check_same_classes, evaluation_loader, open_split, training_loader
from ..errors import InputError, explain, require
from ..evaluation import autocast, data_config
from ..models import create_model
from .folder import RunFolder
from .loop import TrainingState, run_epochs
from .progress import open_progress

__all__ = ["train"]

# timm scales the learning rate with the square root of the batch for these, linearly for the others.
_ADAPTIVE = ("ada", "lamb")
_LR_BASE_BATCH = 256


def train(args: Namespace) -> Path:
    """Train as the arguments say (see :mod:`flashkat.arguments`) and return the run's folder.

    Raises:
        InputError: something in the arguments or the data does not work; nothing is left behind then.
    """
    require("matplotlib", "rich", extra="training")
    device = resolve_device(args.device)
    random_seed(args.seed)
    train_set, val_set = (open_split(args.data_dir, split) for split in (args.train_split, args.val_split))
    check_same_classes(train_set, val_set)
    args.num_classes = args.num_classes or len(train_set.classes)
    if args.num_classes < len(train_set.classes):
        raise InputError(f"--num-classes {args.num_classes} is less than the data's {len(train_set.classes)} classes")

    model: Any = create_model(
        args.model,
        num_classes=args.num_classes,
        img_size=args.img_size,
        drop_rate=args.drop or None,
        drop_path_rate=args.drop_path,
        **args.model_kwargs,
    )
    if args.grad_checkpointing:
        with explain(f"{args.model} has no gradient checkpointing"):
            model.set_grad_checkpointing()
    model.to(device)
    config = data_config(model, args)
    train_loader = training_loader(train_set, config, args, device)
    val_loader = evaluation_loader(val_set, config, args.batch_size, args.workers, device)
    state = _build_state(model, args, device, len(train_loader), train_set.classes)
    mixup, loss_function = _build_loss(args)

    folder = RunFolder(args, config["input_size"][-1])
    try:
        with open_progress(args.epochs, len(train_loader)) as progress:
            parameters = sum(parameter.numel() for parameter in model.parameters())
            progress.say(
                f"{args.model}: {parameters:,} parameters on {device}, lr {args.lr:.3g}, writing {folder.path}"
            )
            progress.say(f"{len(train_set)} training and {len(val_set)} evaluation images, {args.num_classes} classes")
            run_epochs(
                state, train_loader, val_loader, loss_function, mixup, autocast(args, device), folder, progress, args
            )
    except BaseException:
        folder.discard_if_empty()
        raise
    return folder.path


def _build_state(
    model: nn.Module, args: Namespace, device: torch.device, batches: int, classes: list[str]
) -> TrainingState:
    args.lr = args.lr or _scaled_lr(args)
    optimizer_name = args.opt.lower().removeprefix("lookahead_")
    if optimizer_name not in list_optimizers():
        nearest = difflib.get_close_matches(optimizer_name, list_optimizers(), n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "timm.optim.list_optimizers() has them all"
        raise InputError(f"no optimiser {args.opt!r}: {hint}")
    with explain(f"cannot make the optimiser {args.opt}"):
        optimizer = create_optimizer_v2(
            model, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay, momentum=args.momentum
        )
    unknown_schedule = f"no schedule {args.sched!r}: try cosine, step, poly or none"
    with explain(unknown_schedule):
        scheduler, _ = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=batches)
    if scheduler is None and args.sched != "none":  # how older timm answers a name it does not know
        raise InputError(unknown_schedule)
    return TrainingState(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(device.type, enabled=args.amp and args.amp_dtype == "float16"),
        ema=ModelEmaV3(model, decay=args.model_ema_decay, use_warmup=args.model_ema_warmup) if args.model_ema else None,
        classes=classes,
    )


def _scaled_lr(args: Namespace) -> float:
    ratio = args.batch_size / _LR_BASE_BATCH
    return args.lr_base * (math.sqrt(ratio) if any(name in args.opt.lower() for name in _ADAPTIVE) else ratio)


def _build_loss(args: Namespace) -> tuple[Mixup | None, nn.Module]:
    if args.mixup or args.cutmix:
        if args.batch_size % 2:
            raise InputError(f"mixup and cutmix pair up images: --batch-size must be even, not {args.batch_size}")
        mixup = Mixup(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            label_smoothing=args.smoothing,
            num_classes=args.num_classes,
        )
        return mixup, SoftTargetCrossEntropy()
    return None, LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()
