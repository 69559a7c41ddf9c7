"""``flashkat train``: everything is built and checked first, then a folder is made, then the loop runs."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from timm.utils import random_seed
from torch import nn

from ..data.datasets import check_same_classes, image_count, open_dataset
from ..data.loaders import check_augmentation, evaluation_loader, training_loader
from ..errors import InputError, require
from ..evaluation.restore import autocast, data_config
from ..models import check_model_name
from ..system import distributed
from ..system.compile import choose_compilation, compile_in_place
from ..system.device import place, prepare_process, training_products
from .average import Average
from .distillation import build_distillation
from .loop import run_epochs
from .optimizer import check_optimizer_name, create_optimizer
from .outputs.folder import RunFolder, discard_if_empty
from .outputs.progress import open_progress
from .outputs.wandb import check_wandb
from .parallel import shard, with_common_norms, wrap
from .recipe import build_loss, build_mixup, build_model, build_schedule, check_schedule_name, length_notes, scaled_lr
from .state import TrainingState, load_resumed_weights, read_resumed

__all__ = ["train"]


def train(args: Namespace) -> Path | None:
    """Train as the arguments say (see :mod:`flashkat.arguments`) and return the run's folder.

    Under torchrun all processes call this together; the first one writes and reports, the others return None.

    Raises:
        InputError: something in the arguments or the data does not work; nothing is left behind then.
    """
    require("matplotlib", "rich")
    check_wandb(args)
    prepare_process(args)
    _check_names(args)
    with distributed.joined(args.device) as device, training_products(args, device):
        return _train(args, device)


def _check_names(args: Namespace) -> None:
    """Raise InputError for a name that nobody knows, before data and models, which may take long."""
    for name in filter(None, (args.model, args.kd_model_name)):
        check_model_name(name)
    check_optimizer_name(args.opt)
    check_schedule_name(args.sched)
    check_augmentation(args.aa)


def _train(args: Namespace, device: torch.device) -> Path | None:
    # What is chosen for this run is not a wish of the next that reads its flags.
    asked = {name: getattr(args, name) for name in ("torchcompile", "torchcompile_mode")}
    about_compiling = choose_compilation(args, device, training=True)
    random_seed(args.seed)
    with distributed.one_by_one(args.dataset_download):
        train_set = open_dataset(args, args.train_split, is_training=True, num_samples=args.train_num_samples)
        val_set = open_dataset(args, args.val_split, num_samples=args.val_num_samples)
    check_same_classes(train_set, val_set)
    args.num_classes = args.num_classes or len(train_set.classes)
    if not args.num_classes:
        raise InputError(f"{train_set.source} does not list its classes: give --num-classes")
    if args.num_classes < len(train_set.classes):
        raise InputError(f"--num-classes {args.num_classes} is less than the data's {len(train_set.classes)} classes")
    train_set.num_classes = val_set.num_classes = args.num_classes

    resumed = read_resumed(args, train_set.classes)
    notes: list[str] = []
    model = build_model(args, notes.append)
    load_resumed_weights(model, resumed, args)
    place(model, args, device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    config = data_config(model, args)
    train_loader = training_loader(train_set, config, args, device)
    val_loader = evaluation_loader(val_set, config, args, device, args.validation_batch_size)
    mixup, loss_function = build_mixup(args), build_loss(args).to(device)
    about_teacher: list[str] = []
    distillation = build_distillation(args, config, device, about_teacher.append)
    state = _build_state(model, args, device, len(train_loader), train_set.classes, resumed)

    folder = RunFolder(args, config["input_size"][-1], state.history, asked) if distributed.is_primary() else None
    made = distributed.gather([] if folder is None else folder.made)[0]
    try:
        batches_done = state.epoch * len(train_loader) + state.batch
        with open_progress(state.epochs, len(train_loader), batches_done) as progress:
            if folder is not None:
                several = f" and {distributed.size() - 1} more" if distributed.size() > 1 else ""
                progress.say(
                    f"{args.model}: {parameters:,} parameters on {device}{several}, lr {args.lr:.3g}, "
                    f"writing {folder.path}"
                )
            images = f"{image_count(train_set)} training and {image_count(val_set)} evaluation images"
            progress.say(f"{images}, {args.num_classes} classes")
            if resumed:
                notes = [f"Continuing {args.resume} in epoch {state.epoch + 1}, after {state.updates} updates"]
                if "state_dict_ema" in resumed and state.ema is None:
                    notes.append("Its averaged weights are left out, as this run has no --model-ema")
            updates = state.epochs * -(-len(train_loader) // args.grad_accum_steps)
            for note in (*notes, *about_teacher, *length_notes(args, updates), *about_compiling):
                progress.say(note)
            run_epochs(
                state,
                train_loader,
                val_loader,
                loss_function,
                distillation,
                mixup,
                autocast(args, device),
                folder,
                progress,
                args,
            )
    except BaseException as error:
        discard_if_empty(made)
        if isinstance(error, KeyboardInterrupt) and folder is not None:
            # What the command line says after its own word.
            raise KeyboardInterrupt(folder.how_to_go_on()) from None
        raise
    return None if folder is None else folder.path


def _build_state(
    model: nn.Module,
    args: Namespace,
    device: torch.device,
    batches: int,
    classes: list[str],
    resumed: dict[str, Any],
) -> TrainingState:
    """The state at the start of the run, or where ``resumed`` left it; the random states of this process with it."""
    _check_parallel(args, device)
    args.lr = args.lr or scaled_lr(args, distributed.size())
    if args.sync_bn and distributed.size() > 1:
        model = with_common_norms(model, device)
    ema = None
    if args.model_ema:
        on = torch.device("cpu") if args.model_ema_force_cpu else None
        ema = Average(model, decay=args.model_ema_decay, use_warmup=args.model_ema_warmup, device=on)
        load_resumed_weights(ema.module, resumed, args, use_ema=True)
    if args.fsdp:
        shard(model)
        if ema is not None:
            shard(ema.module)
    optimizer = create_optimizer(model, args)
    updates_per_epoch = -(-batches // args.grad_accum_steps)
    scheduler, epochs = build_schedule(optimizer, args, updates_per_epoch)
    for module in (model, *([] if ema is None else [ema.module])):
        compile_in_place(module, args)
    state = TrainingState(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(device.type, enabled=args.amp and args.amp_dtype == "float16"),
        ema=ema,
        classes=classes,
        epochs=epochs,
        trained=wrap(model, device, broadcast_buffers=not args.no_ddp_bb),
    )
    # From here on every process draws numbers of its own; the weights are the same everywhere.
    random_seed(args.seed, distributed.rank())
    state.start(resumed, args, updates_per_epoch)
    return state


def _check_parallel(args: Namespace, device: torch.device) -> None:
    """Raise InputError for ways to train that do not go together."""
    if args.fsdp and args.model_ema_force_cpu and device.type != "cpu":
        raise InputError("--fsdp keeps a share of the average on each GPU: leave out --model-ema-force-cpu")
    if args.fsdp and args.clip_grad is not None and args.clip_mode == "agc":
        raise InputError("--clip-mode agc needs whole weights, which --fsdp shards: take another mode")
