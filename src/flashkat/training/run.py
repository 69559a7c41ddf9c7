"""Train a model: build and check everything first, then make a folder, then run the loop."""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.utils import random_seed
from torch import nn

from ..data.augment import check_mode
from ..data.config import Data, data_config
from ..data.datasets import check_splits, image_count, open_dataset
from ..data.loaders import check_augmentation, evaluation_loader, training_loader
from ..errors import DivergedError, InputError, Stopped, require
from ..evaluation.config import check_values
from ..evaluation.restore import about_held_out
from ..models import check_model_name
from ..system import distributed
from ..system.compile import captures_steps, choose_for_training, compile_in_place
from ..system.device import autocast, place, prepare_process, training_products
from ..system.heartbeat import watched
from ..system.signals import StopRequest
from ..system.stalls import explain_workers
from .average import MovingAverage
from .config import AUTO, Config, Tracking, Wandb
from .distillation import Distillation, build_distillation
from .loop import Parts, run_epochs
from .optimizer import check_optimizer_name, create_optimizer
from .outputs.background import Background
from .outputs.folder import RunFolder, discard_if_empty, folder_of
from .outputs.progress import open_progress
from .outputs.recovery import differences, newest_good
from .outputs.tensorboard import check_tensorboard
from .outputs.wandb import check_wandb
from .parallel import shard, with_common_norms
from .recipe import (
    build_loss,
    build_mixup,
    build_model,
    build_schedule,
    check_schedule_name,
    length_notes,
    scaled_lr,
)
from .state import FinishedError, TrainingState, load_resumed_weights, read_resumed
from .step import TrainingStep

__all__ = ["Result", "train"]


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        folder: the folder of its checkpoints; None in all but the first process.
        history: the summary's row of each epoch.
        best: the best value of ``eval_metric`` as ``metric``, and the ``weights`` that had it; empty without any.
    """

    folder: Path | None
    history: list[dict[str, Any]]
    best: dict[str, Any]


def train(config: Config) -> Result:
    """Train a model, and write its checkpoints and curves to a folder.

    Under torchrun all processes call this together. The first one writes and reports.

    Args:
        config: see :class:`Config`.

    Raises:
        InputError: the configuration or the data cannot be used. No folder is left behind.
            Or the files of the last epoch could not be written; the message names the last good checkpoint.
        DivergedError: loss, gradients or weights are no longer finite.
    """
    require("matplotlib", "rich")
    check_tensorboard(config.tracking)
    check_wandb(config.wandb)
    check_values(config)
    prepare_process(config.runtime)
    _check_names(config)
    _check_nonfinite(config)
    with (
        distributed.joined(config.runtime.device) as device,
        watched(distributed.rank(), distributed.size()),
        training_products(config.runtime, device),
    ):
        return _train(config, device)


def _check_names(config: Config) -> None:
    """Raise InputError for an unknown name, before data and models are loaded, which may take long."""
    for name in filter(None, (config.model.name, config.distillation.kd_model_name)):
        check_model_name(name)
    if callable(config.model.model_kwargs.get("act_init")):
        raise InputError(
            "the act_init of a run has to be a name, which its files keep: give other starts as weights, with "
            "--initial-checkpoint"
        )
    check_optimizer_name(config.optimizer.opt)
    check_schedule_name(config.schedule.sched)
    check_augmentation(config.augmentation.aa)
    if not config.data.fake_data:
        check_mode(config.data, config.augmentation)


def _open_data(config: Config) -> tuple[Any, Any]:
    """Open both splits, the second one if there is one, and check that their classes are the same."""
    data, classes, seed = config.data, config.model.num_classes, config.runtime.seed
    if data.val_fraction and data.val_split not in ("val", "validation"):
        raise InputError("--val-fraction evaluates the images that it holds out: leave out --val-split")
    with distributed.one_by_one(data.dataset_download):
        train_set = open_dataset(
            data,
            data.train_split,
            is_training=True,
            num_samples=data.train_num_samples,
            num_classes=classes,
            seed=seed,
        )
        if not data.val_split:
            if config.schedule.sched == "plateau":
                raise InputError("--sched plateau goes by evaluations: give a --val-split")
            return train_set, None
        val_set = open_dataset(data, data.val_split, num_samples=data.val_num_samples, num_classes=classes, seed=seed)
    check_splits(train_set, val_set)
    return train_set, val_set


def _about_splits(data: Data, train_set: Any, val_set: Any) -> list[str]:
    """Return a line if evaluation sees the images that are trained on, else none."""
    if data.val_fraction or data.fake_data or val_set is None:
        return []
    roots = [getattr(getattr(dataset, "reader", None), "root", None) for dataset in (train_set, val_set)]
    paths = [root.resolve() for root in roots if isinstance(root, Path)]
    if data.train_split != data.val_split and not (len(paths) == 2 and paths[0] == paths[1]):
        return []
    return [
        f"Evaluation sees the images of training, {train_set.source}: give another --val-split, or for folders "
        "--val-fraction 0.1"
    ]


def _count_classes(asked: int | None, dataset: Any) -> int:
    classes = asked or len(dataset.classes)
    if not classes:
        raise InputError(f"{dataset.source} does not list its classes: give --num-classes")
    if classes < len(dataset.classes):
        raise InputError(f"--num-classes {classes} is less than the data's {len(dataset.classes)} classes")
    return classes


def _train(asked: Config, device: torch.device) -> Result:
    compilation, about_compiling = choose_for_training(
        asked.compilation,
        device,
        images=asked.mixing.images(asked.data.batch_size),
        accumulates=asked.parallel.grad_accum_steps > 1,
        is_sharded=asked.parallel.fsdp,
    )
    random_seed(asked.runtime.seed)
    train_set, val_set = _open_data(asked)
    classes = _count_classes(asked.model.num_classes, train_set)
    datasets = [dataset for dataset in (train_set, val_set) if dataset is not None]
    for dataset in datasets:
        dataset.num_classes = classes
    # From here on config has the settled values. asked goes to args.yaml, which another run may read.
    config = replace(asked, model=replace(asked.model, num_classes=classes), compilation=compilation)
    data, runtime = replace(config.data, data_backend=config.data.data_backend or "auto"), config.runtime
    notes = check_wandb(config.wandb)
    notes += dict.fromkeys(note for dataset in datasets for note in dataset.notes)
    notes += _about_splits(data, train_set, val_set)
    if val_set is None:
        notes.append("There is no evaluation, as --val-split is empty, and no best checkpoint")
    is_automatic = config.resume.resume == AUTO
    resumed: dict[str, Any] = {}
    if is_automatic:
        config, resumed = _with_newest(config, notes.append)
    resume = config.resume.resume
    resumed = read_resumed(resume, train_set.classes, resumed)
    model = build_model(config.model, data, is_resumed=bool(resume), say=notes.append)
    load_resumed_weights(model, resumed, resume, config.model.name)
    place(model, runtime, device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    images = data_config(model, data, config.model.name)
    train_loader = training_loader(train_set, images, data, config.augmentation, runtime, device)
    val_loader = None
    if val_set is not None:
        val_loader = evaluation_loader(val_set, images, data, runtime, device, data.validation_batch_size)
    views = config.augmentation.aug_splits
    mixup = build_mixup(
        config.mixing,
        batch_size=data.batch_size,
        size=images["input_size"][-2:],
        classes=classes,
        smoothing=config.loss.smoothing,
        has_views=bool(views),
    )
    loss = build_loss(config.loss, is_mixed=config.mixing.is_on, views=views).to(device)
    about_teacher: list[str] = []
    distillation = build_distillation(
        config.distillation, config.model, data, images, runtime, device, about_teacher.append
    )
    _check_parallel(config, device)
    config = replace(config, schedule=replace(config.schedule, lr=_learning_rate(config)))

    def open_folder(run: Mapping[str, Any], tracking: Tracking, wandb: Wandb) -> RunFolder:
        return RunFolder(
            config.output,
            config.model.name,
            images["input_size"][-1],
            {**config.flags(), **vars(asked.compilation)},
            resume=resume,
            is_automatic=is_automatic,
            history=run.get("history", []),
            best=run.get("best", {}),
            tracking=tracking,
            wandb=wandb,
        )

    try:
        state = _build_state(model, config, device, len(train_loader), train_set, resumed)
    except FinishedError:
        if not is_automatic:
            raise
        run = resumed.get("run", {})
        with open_progress(0, 0) as progress:
            for note in notes:
                progress.say(note)
            if distributed.is_primary() and (fault := _complete(lambda: open_folder(run, Tracking(), Wandb()))):
                progress.say(f"The files of {Path(resume).parent} are left as they are: {fault}")
            progress.say(f"All epochs are done, see {resume}: give more --epochs to go on")
        return Result(
            Path(resume).parent if distributed.is_primary() else None, run.get("history", []), run.get("best", {})
        )

    updates = state.epochs * -(-len(train_loader) // config.parallel.grad_accum_steps)
    notes += [
        *train_loader.notes,
        *_about_resuming(config, resumed, state),
        *about_held_out(train_set, resumed, resume),
        *about_teacher,
        *length_notes(config.schedule, config.average, updates),
        *about_compiling,
    ]
    folder = None
    if distributed.is_primary():
        folder = open_folder({"history": state.history, "best": state.best}, config.tracking, config.wandb)
    made = distributed.gather(None if folder is None else folder.made)[0]
    has_failed, all_end = True, False
    try:
        batches_done = state.epoch * len(train_loader) + state.batch
        with open_progress(state.epochs, len(train_loader), batches_done) as progress:
            if folder is not None:
                several = f" and {distributed.size() - 1} more" if distributed.size() > 1 else ""
                progress.say(
                    f"{config.model.name}: {parameters:,} parameters on {device}{several}, "
                    f"lr {config.schedule.lr:.3g}, writing {folder.path}"
                )
            evaluated = image_count(val_set) if val_set is not None else "no"
            counts = f"{image_count(train_set)} training and {evaluated} evaluation images"
            progress.say(f"{counts}, {classes} classes")
            for note in notes:
                progress.say(note)
            precision = autocast(runtime, device)
            step = _build_step(state, loss, distillation, config, device, precision, progress.say)
            if mixup is not None:
                mixup.buffer = step.buffer
            with (
                contextlib.closing(step),
                StopRequest() as stop,
                explain_workers(),
                Background(beside=device.type != "cpu") as background,
            ):
                parts = Parts(
                    step, train_loader, val_loader, mixup, precision, folder, progress, stop, datasets, background
                )
                run_epochs(state, parts, config)
        has_failed = False
    except BaseException as error:
        all_end = isinstance(error, (DivergedError, Stopped))
        discard_if_empty(made)
        if isinstance(error, KeyboardInterrupt) and folder is not None:
            # The command line prints this after its own message.
            raise KeyboardInterrupt(folder.how_to_go_on()) from None
        raise
    finally:
        if folder is not None:
            folder.close(has_failed)
        if all_end:
            # As soon as one process has ended, torchrun ends the first one, which may still send its logs.
            distributed.gather(None)
    return Result(None if folder is None else folder.path, state.history, state.best)


def _with_newest(config: Config, say: Callable[[str], None]) -> tuple[Config, dict[str, Any]]:
    """Return the configuration that resumes the newest good checkpoint of the run's folder, if there is one.

    The first process also gets the checkpoint, which it has read.

    Raises:
        InputError: the folder has checkpoints, and none is good. A new run would replace them.
    """
    folder = folder_of(config.output, config.model.name)
    faults: list[str] = []
    path, checkpoint = newest_good(folder, faults.append) if distributed.is_primary() else ("", {})
    # Files may change between the reads of two processes.
    path, found = distributed.gather((path, bool(faults)))[0]
    if found and not path:
        raise InputError(
            f"none of the checkpoints in {folder} can be resumed, and a new run would replace them: give another "
            f"--experiment, or remove them{''.join(f'. {fault}' for fault in faults[:1])}"
        )
    for fault in faults:
        say(fault)
    if path:
        # A command that is started again and again would train the same epochs each time.
        config = replace(config, schedule=replace(config.schedule, start_epoch=None))
    return replace(config, resume=replace(config.resume, resume=path)), checkpoint


def _complete(open_folder: Callable[[], RunFolder]) -> str:
    """Complete the files of a run that has all its epochs, and return the reason if that cannot be done.

    It may have been killed at the end of its last epoch. Its folder may be read-only, as in an archive.
    """
    try:
        with contextlib.closing(open_folder()) as folder:
            folder.draw()
    except OSError as error:
        return error.strerror or str(error)
    except InputError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        return str(error)
    return ""


def _about_resuming(config: Config, resumed: dict[str, Any], state: TrainingState) -> list[str]:
    """Return lines on where a resumed run continues, and what it changes; none for a new run."""
    if not resumed:
        return []
    left_out = "state_dict_ema" in resumed and state.ema is None
    processes, before = distributed.size(), len(resumed.get("run", {}).get("processes", []))
    return [
        f"Continuing {config.resume.resume} in epoch {state.epoch + 1}, after {state.updates} updates",
        *differences(resumed.get("args", {}), config.flags()),
        *(
            [f"Differs from the run so far: there are {processes} processes, not {before}"]
            if before not in (0, processes)
            else []
        ),
        *(["Its averaged weights are left out, as this run has no --model-ema"] if left_out else []),
    ]


def _learning_rate(config: Config) -> float:
    images = config.data.batch_size * distributed.size() * config.parallel.grad_accum_steps
    return config.schedule.lr or scaled_lr(config.schedule, config.optimizer.opt, images)


def _build_state(
    model: nn.Module,
    config: Config,
    device: torch.device,
    batches: int,
    train_set: Any,
    resumed: dict[str, Any],
) -> TrainingState:
    """Build the state of a new run, or of a resumed one, and set this process's random state.

    Args:
        model: on its device, with its first weights.
        config: the configuration, with the learning rate set.
        device: where the model computes.
        batches: batches of an epoch.
        train_set: the images to train on.
        resumed: the checkpoint to resume, empty for a new run.
    """
    average, parallel, schedule, runtime = config.average, config.parallel, config.schedule, config.runtime
    scales_loss = runtime.scales_loss
    if parallel.sync_bn and distributed.size() > 1:
        model = with_common_norms(model, device)
    ema = None
    if average.model_ema:
        on = torch.device("cpu") if average.model_ema_force_cpu else None
        ema = MovingAverage(model, decay=average.model_ema_decay, use_warmup=average.model_ema_warmup, device=on)
        load_resumed_weights(ema.module, resumed, config.resume.resume, config.model.name, use_ema=True)
    if parallel.fsdp:
        shard(model)
        if ema is not None:
            shard(ema.module)
    assert schedule.lr is not None
    optimizer = create_optimizer(
        model,
        config.optimizer,
        schedule.lr,
        may_skip=scales_loss or config.nonfinite.limit > 0,
        is_sharded=parallel.fsdp,
    )
    updates_per_epoch = -(-batches // parallel.grad_accum_steps)
    scheduler, epochs = build_schedule(
        optimizer, schedule, updates_per_epoch, eval_metric=config.output.eval_metric, seed=runtime.seed
    )
    for module in (model, *([] if ema is None else [ema.module])):
        compile_in_place(module, config.compilation)
    state = TrainingState(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(device.type, enabled=scales_loss),
        ema=ema,
        classes=train_set.classes,
        epochs=epochs,
        batches=batches,
        images=image_count(train_set),
        held_out=getattr(train_set, "held_out", ""),
        name=config.model.name,
        flags=config.flags(),
    )
    # The initial weights are the same in every process. Later random numbers are not.
    random_seed(runtime.seed, distributed.rank())
    state.start(
        resumed,
        config.resume,
        opt=config.optimizer.opt,
        start_epoch=schedule.start_epoch,
        eval_metric=config.output.eval_metric,
        updates_per_epoch=updates_per_epoch,
    )
    return state


def _build_step(
    state: TrainingState,
    loss: nn.Module,
    distillation: Distillation | None,
    config: Config,
    device: torch.device,
    precision: AbstractContextManager,
    say: Callable[[str], None],
) -> TrainingStep:
    """Build the step. The state has been restored: loading an optimiser replaces its tensors."""
    return TrainingStep(
        state.model,
        loss,
        state.optimizer,
        state.scaler,
        state.meters,
        precision=precision,
        average=state.ema,
        distillation=distillation,
        accumulated=config.parallel.grad_accum_steps,
        clip_grad=config.optimizer.clip_grad,
        clip_mode=config.optimizer.clip_mode,
        broadcast_buffers=not config.parallel.no_ddp_bb,
        leaves_out=config.nonfinite.limit > 0,
        keeps=config.nonfinite.find_nonfinite,
        capture=captures_steps(config.compilation, device),
        resumed="" if config.resume.no_resume_opt else config.resume.resume,
        say=say,
    )


def _check_nonfinite(config: Config) -> None:
    if config.runtime.scales_loss and config.nonfinite.find_nonfinite and not config.nonfinite.max_bad_steps:
        raise InputError(
            "--find-nonfinite would stop at the first update that float16 leaves out, as it does now and then: give "
            "--max-bad-steps 20"
        )


def _check_parallel(config: Config, device: torch.device) -> None:
    """Raise InputError for parallel settings that contradict each other."""
    if not config.parallel.fsdp:
        return
    if config.average.model_ema_force_cpu and device.type != "cpu":
        raise InputError("--fsdp keeps a share of the average on each GPU: leave out --model-ema-force-cpu")
    if config.optimizer.clip_grad is not None and config.optimizer.clip_mode == "agc":
        raise InputError("--clip-mode agc needs whole weights, which --fsdp shards: take another mode")
