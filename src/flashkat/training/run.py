"""``flashkat train``: everything is built and checked first, then a folder is made, then the loop runs."""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.utils import ModelEmaV3, random_seed
from torch import nn

from .. import distributed
from ..data import check_same_classes, evaluation_loader, open_split, training_loader
from ..errors import InputError, explain, require
from ..evaluation import autocast, data_config
from ..models import create_model
from .folder import RunFolder
from .loop import run_epochs
from .optimizer import create_optimizer
from .parallel import shard, wrap
from .progress import Progress, open_progress
from .state import TrainingState, load_resumed_weights, read_resumed

__all__ = ["train"]

# timm scales the learning rate with the square root of the batch for these, linearly for the others.
_ADAPTIVE = ("ada", "lamb")
_LR_BASE_BATCH = 256


def train(args: Namespace) -> Path | None:
    """Train as the arguments say (see :mod:`flashkat.arguments`) and return the run's folder.

    Under torchrun all processes call this together; the first one writes and reports, the others return None.

    Raises:
        InputError: something in the arguments or the data does not work; nothing is left behind then.
    """
    require("matplotlib", "rich", extra="training")
    with distributed.joined(args.device) as device:
        return _train(args, device)


def _train(args: Namespace, device: torch.device) -> Path | None:
    random_seed(args.seed)
    train_set, val_set = (open_split(args.data_dir, split) for split in (args.train_split, args.val_split))
    check_same_classes(train_set, val_set)
    args.num_classes = args.num_classes or len(train_set.classes)
    if args.num_classes < len(train_set.classes):
        raise InputError(f"--num-classes {args.num_classes} is less than the data's {len(train_set.classes)} classes")

    resumed = read_resumed(args, train_set.classes)
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
    load_resumed_weights(model, resumed, args)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model.to(device)
    config = data_config(model, args)
    train_loader = training_loader(train_set, config, args, device)
    val_loader = evaluation_loader(val_set, config, args.batch_size, args.workers, device)
    state = _build_state(model, args, device, len(train_loader), train_set.classes, resumed)
    mixup, loss_function = _build_loss(args)

    folder = RunFolder(args, config["input_size"][-1], state.history) if distributed.is_primary() else None
    try:
        batches_done = state.epoch * len(train_loader) + state.batch
        with open_progress(args.epochs, len(train_loader), batches_done) as progress:
            if folder is not None:
                _introduce(progress, args, device, parameters, folder)
            progress.say(f"{len(train_set)} training and {len(val_set)} evaluation images, {args.num_classes} classes")
            if resumed:
                progress.say(f"Continuing {args.resume} in epoch {state.epoch + 1}, after {state.updates} updates")
            run_epochs(
                state, train_loader, val_loader, loss_function, mixup, autocast(args, device), folder, progress, args
            )
    except BaseException:
        if folder is not None:
            folder.discard_if_empty()
        raise
    return None if folder is None else folder.path


def _introduce(progress: Progress, args: Namespace, device: torch.device, parameters: int, folder: RunFolder) -> None:
    several = f" and {args.world_size - 1} more" if args.world_size > 1 else ""
    progress.say(
        f"{args.model}: {parameters:,} parameters on {device}{several}, lr {args.lr:.3g}, writing {folder.path}"
    )


def _build_state(
    model: nn.Module,
    args: Namespace,
    device: torch.device,
    batches: int,
    classes: list[str],
    resumed: dict[str, Any],
) -> TrainingState:
    """The state at the start of the run, or where ``resumed`` left it; the random states of this process with it."""
    args.world_size = distributed.size()
    args.lr = args.lr or _scaled_lr(args)
    ema = None
    if args.model_ema:
        ema = ModelEmaV3(model, decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
        load_resumed_weights(ema.module, resumed, args, use_ema=True)
    if args.fsdp:
        shard(model)
        if ema is not None:
            shard(ema.module)
    optimizer = create_optimizer(model, args)
    updates_per_epoch = -(-batches // args.grad_accum_steps)
    unknown_schedule = f"no schedule {args.sched!r}: try cosine, step, poly or none"
    with explain(unknown_schedule):
        scheduler, _ = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=updates_per_epoch)
    if scheduler is None:
        if args.sched != "none":  # how older timm answers a name it does not know
            raise InputError(unknown_schedule)
        # Otherwise the schedule's part.
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
    state = TrainingState(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(device.type, enabled=args.amp and args.amp_dtype == "float16"),
        ema=ema,
        classes=classes,
        trained=wrap(model, args, device),
    )
    # From here on every process draws numbers of its own; the weights are the same everywhere.
    random_seed(args.seed, distributed.rank())
    if resumed:
        state.restore(resumed, args, updates_per_epoch)
    return state


def _scaled_lr(args: Namespace) -> float:
    """timm's rule: the learning rate goes with the images of an update, over all processes and accumulated batches."""
    ratio = args.batch_size * args.world_size * args.grad_accum_steps / _LR_BASE_BATCH
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
