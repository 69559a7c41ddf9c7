"""``flashkat train``: everything is built and checked first, then a folder is made, then the loop runs."""

import difflib
from argparse import Namespace
from pathlib import Path

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.utils import ModelEmaV3, random_seed
from torch import nn

from ..arguments import resolve_device
from ..data import check_same_classes, evaluation_loader, open_dataset, training_loader
from ..errors import InputError, explain, require
from ..evaluation import autocast, data_config
from ..runtime import compile_in_place, place, prepare_process
from .folder import RunFolder
from .logging import check_wandb
from .loop import TrainingState, run_epochs
from .progress import open_progress
from .recipe import (
    average_notes,
    build_loss,
    build_mixup,
    build_model,
    build_schedule,
    optimizer_options,
    scaled_lr,
)

__all__ = ["train"]


def train(args: Namespace) -> Path:
    """Train as the arguments say (see :mod:`flashkat.arguments`) and return the run's folder.

    Raises:
        InputError: something in the arguments or the data does not work; nothing is left behind then.
    """
    require("matplotlib", "rich", extra="training")
    check_wandb(args)
    prepare_process(args)
    device = resolve_device(args.device)
    random_seed(args.seed)
    train_set = open_dataset(args, args.train_split, is_training=True, num_samples=args.train_num_samples)
    val_set = open_dataset(args, args.val_split, num_samples=args.val_num_samples)
    check_same_classes(train_set, val_set)
    args.num_classes = args.num_classes or len(train_set.classes)
    if not args.num_classes:
        raise InputError(f"{train_set.source} does not list its classes: give --num-classes")
    if args.num_classes < len(train_set.classes):
        raise InputError(f"--num-classes {args.num_classes} is less than the data's {len(train_set.classes)} classes")

    notes: list[str] = []
    model = place(build_model(args, notes.append), args, device)
    config = data_config(model, args)
    train_loader = training_loader(train_set, config, args, device)
    val_loader = evaluation_loader(val_set, config, args, device, args.validation_batch_size)
    mixup, loss_function = build_mixup(args), build_loss(args).to(device)
    state = _build_state(model, args, device, len(train_loader), train_set.classes)

    folder = RunFolder(args, config["input_size"][-1])
    try:
        with open_progress(state.epochs, len(train_loader)) as progress:
            parameters = sum(parameter.numel() for parameter in model.parameters())
            progress.say(
                f"{args.model}: {parameters:,} parameters on {device}, lr {args.lr:.3g}, writing {folder.path}"
            )
            progress.say(f"{len(train_set)} training and {len(val_set)} evaluation images, {args.num_classes} classes")
            updates = state.epochs * -(-len(train_loader) // args.grad_accum_steps)
            for note in (*notes, *average_notes(args, updates)):
                progress.say(note)
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
    args.lr = args.lr or scaled_lr(args)
    optimizer_name = args.opt.lower().removeprefix("lookahead_")
    if optimizer_name not in list_optimizers():
        nearest = difflib.get_close_matches(optimizer_name, list_optimizers(), n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "timm.optim.list_optimizers() has them all"
        raise InputError(f"no optimiser {args.opt!r}: {hint}")
    with explain(f"cannot make the optimiser {args.opt}"):
        optimizer = create_optimizer_v2(model, **optimizer_options(args))
    updates_per_epoch = -(-batches // args.grad_accum_steps)
    scheduler, epochs = build_schedule(optimizer, args, updates_per_epoch)
    ema = None
    if args.model_ema:
        on = torch.device("cpu") if args.model_ema_force_cpu else None
        ema = ModelEmaV3(model, decay=args.model_ema_decay, use_warmup=args.model_ema_warmup, device=on)
        compile_in_place(ema.module, args)
    compile_in_place(model, args)
    return TrainingState(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(device.type, enabled=args.amp and args.amp_dtype == "float16"),
        ema=ema,
        classes=classes,
        epoch=args.start_epoch or 0,
        epochs=epochs,
    )
