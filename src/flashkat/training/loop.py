"""The training loop: it trains a :class:`TrainingState` over the rest of its epochs."""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from timm.data import Mixup
from torch import nn

from ..data.bad_images import list_bad_images
from ..data.order import start_epoch
from ..errors import DivergedError
from ..evaluation.evaluate import evaluate, prepared
from ..evaluation.metrics import Meters, Metrics
from ..system import distributed
from ..system.graph import CapturedForward
from ..system.signals import Stopped, StopRequest
from .config import Average, Config
from .outputs.costs import peak_memory, share_waited
from .outputs.folder import RunFolder
from .outputs.progress import Progress, per_second
from .outputs.recovery import is_finite
from .outputs.summary import PREFIXES, score
from .parallel import distribute_norms
from .state import TrainingState
from .step import TrainingStep

__all__ = ["Parts", "run_epochs"]

_WAIT_WORTH_A_HINT = 0.1
_WAIT_HINT = (
    "Training waited for data {share:.0%} of that epoch: try more --workers, smaller image files or less "
    "augmentation; --fake-data shows how fast it would go without waiting"
)


@dataclass(frozen=True)
class Parts:
    """The parts of the loop that do not change.

    Attributes:
        step: trains the model on a batch.
        train_loader: batches of an epoch.
        val_loader: batches to evaluate on; None evaluates nothing.
        mixup: mixes images and targets.
        precision: the context of the forward passes.
        folder: the run's folder in the first process; None in the others.
        progress: reports progress.
        stop: notices signals to stop.
        datasets: those that the batches are made of.
    """

    step: TrainingStep
    train_loader: Any
    val_loader: Any
    mixup: Mixup | None
    precision: AbstractContextManager
    folder: RunFolder | None
    progress: Progress
    stop: StopRequest = field(default_factory=StopRequest)
    datasets: Sequence[Any] = ()


class _Writer:
    """Writes checkpoints, and refuses to write numbers that are not finite. All processes call it together."""

    def __init__(self, state: TrainingState, parts: Parts) -> None:
        self._state, self._folder, self._say, self._datasets = state, parts.folder, parts.progress.say, parts.datasets
        self._fault: OSError | None = None

    def write_epoch(self, row: dict[str, Any], is_best: bool) -> None:
        """Write an epoch's checkpoint and its row of the summary."""
        checkpoint = self._checkpoint()
        with self._going_on():
            if self._folder is not None:
                self._folder.save(checkpoint, row, is_best)
                self._folder.record(row)
        with self._going_on():
            for note in list_bad_images(self._datasets, None if self._folder is None else self._folder.path):
                self._say(note)

    def write_recovery(self, update: int) -> None:
        """Write a checkpoint from within an epoch."""
        checkpoint = self._checkpoint()
        with self._going_on():
            if self._folder is not None:
                self._folder.save_recovery(checkpoint, self._state.epoch, update)

    def finish(self) -> None:
        """Raise the error of the last checkpoint if it could not be written."""
        if self._fault is not None:
            raise self._fault

    def _checkpoint(self) -> dict[str, Any]:
        state, self._fault = self._state, None
        ema = None if state.ema is None else state.ema.module.state_dict()
        if distributed.total([not is_finite([state.model.state_dict(), state.optimizer.state_dict(), ema])])[0]:
            good = None if self._folder is None else self._folder.newest()
            advice = "try a lower --lr, --clip-grad 1, or bfloat16 in place of float16"
            raise DivergedError(
                f"weights are no longer finite after update {state.updates}, at the learning rate {state.lr:.3g}: "
                + (advice if good is None else f"go on with --resume {good}, and {advice}")
            )
        return state.checkpoint()

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Report a file that cannot be written, and let training go on."""
        try:
            yield
        except OSError as error:
            self._fault = error
            self._say(
                f"Cannot write to {error.filename or 'the folder of the run'}: {error.strerror or error}. Training "
                "goes on, and writes again at its next checkpoint"
            )


def run_epochs(state: TrainingState, parts: Parts, config: Config) -> None:
    """Train and evaluate the rest of ``state.epochs`` epochs. After each, write the summary and the checkpoints.

    All processes of a run call this together. The one with a folder writes.

    Args:
        state: changed in place.
        parts: the step, the loaders and the output.
        config: the configuration.

    Raises:
        DivergedError: the loss or the weights are no longer finite.
        Stopped: a signal asked the run to stop.
    """
    output, average, progress = config.output, config.average, parts.progress
    writer, models = _Writer(state, parts), _averages(state, average)
    to_evaluate = _to_evaluate(models, parts, config)
    hint: str | None = _WAIT_HINT

    def stop_in_between(index: int, meters: Meters) -> None:
        if parts.stop.after_step():
            # All batches of the epoch are done. Only its evaluation is left.
            writer.write_recovery(-(-state.batch // config.parallel.grad_accum_steps) - 1)
            raise _stopped(parts)

    for epoch in range(state.epoch, state.epochs):
        if not state.batch:
            state.lr = _scheduled_lr(state.optimizer)
        if parts.mixup is not None and config.mixing.mixup_off_epoch:
            parts.mixup.mixup_enabled = epoch < config.mixing.mixup_off_epoch
        start = time.perf_counter()
        trained, rate = _train_epoch(state, parts, config, writer)
        wait = share_waited(parts.train_loader, time.perf_counter() - start)
        evaluated: dict[str, Metrics] = {}
        for model in models.values():
            distribute_norms(model, config.parallel.dist_bn)
        is_due = (epoch + 1) % output.val_interval == 0 or epoch + 1 == state.epochs
        if parts.val_loader is not None and is_due:
            evaluated = evaluate(
                to_evaluate, parts.val_loader, parts.precision, stop_in_between, config.data.skip_bad_images
            )
            _check_finite(evaluated["state_dict"].loss, f"after epoch {epoch + 1}")
        is_best = bool(evaluated) and _update_best(state, evaluated, output.eval_metric)
        if state.scheduler is not None:
            metric = getattr(evaluated["state_dict"], output.eval_metric) if evaluated else state.best.get("metric")
            state.scheduler.step(epoch + 1, metric)

        costs = {"images_per_second": round(rate, 1)}
        if wait is not None:
            costs["data_wait"] = round(wait, 4)
        costs |= {"seconds": round(time.perf_counter() - start, 3), **peak_memory(state.model)}
        row = _summary_row(epoch, trained, evaluated, state.lr, costs)
        state.epoch, state.batch = epoch + 1, 0
        state.meters.reset()
        state.history = [*state.history, row]
        writer.write_epoch(row, is_best)
        progress.say(_epoch_line(row, state.epochs, is_best))
        if state.scaler.is_enabled() and (skipped := parts.step.skipped()):
            progress.say(f"{skipped} updates so far were left out: gradients were not finite in float16")
        if hint and wait is not None and wait > _WAIT_WORTH_A_HINT:
            progress.say(hint.format(share=wait))
            hint = None
    writer.finish()


def _averages(state: TrainingState, average: Average) -> dict[str, nn.Module]:
    """Return the model and its average, by their names in a checkpoint. An average on the CPU is left out."""
    models = {"state_dict": state.model}
    if state.ema is not None and not average.model_ema_force_cpu:
        models["state_dict_ema"] = state.ema.module
    return models


def _to_evaluate(models: dict[str, nn.Module], parts: Parts, config: Config) -> dict[str, nn.Module]:
    """Return the modules that evaluation calls. They use CUDA graphs if the training step does."""
    captured, is_compiled = parts.step.captured, bool(config.compilation.torchcompile)
    return {
        name: prepared(
            model if captured is None else CapturedForward(model, parts.progress.say, share=captured),
            is_compiled,
            config.output.tta,
        )
        for name, model in models.items()
    }


def _train_epoch(state: TrainingState, parts: Parts, config: Config, writer: _Writer) -> tuple[Metrics, float]:
    """Train the rest of an epoch.

    Returns:
        The whole epoch's metrics on augmented images, and the images per second of all processes.
    """
    state.model.train()
    loader, mixup, folder = parts.train_loader, parts.mixup, parts.folder
    output, accumulated = config.output, config.parallel.grad_accum_steps
    batches, updates = len(loader), -(-state.batch // accumulated)
    images_seen, rate, start = 0, 0.0, time.perf_counter()
    for index, (images, target) in enumerate(_left(loader, state), start=state.batch):
        if mixup is not None:
            images, target = mixup(images, target)
        first_of_group = index - index % accumulated
        is_update = index + 1 == min(first_of_group + accumulated, batches)
        update = state.updates + 1 if is_update else None
        parts.step(images, target, group=min(accumulated, batches - first_of_group), update=update)
        if update is not None:
            updates, state.updates = updates + 1, update
            if state.scheduler is not None:
                state.scheduler.step_update(update)
            if config.runtime.synchronize_step and images.is_cuda:
                torch.cuda.synchronize(images.device)
        state.batch = index + 1
        images_seen += len(images)

        is_last = state.batch == batches
        metrics = state.meters.metrics() if index % output.log_interval == 0 or is_last else None
        rate = images_seen * distributed.size() / (time.perf_counter() - start)
        parts.progress.batch(state.epoch, index, metrics, rate)
        if metrics is not None:
            if output.save_images and folder is not None:
                folder.save_images(images, state.epoch, index)
            _check_finite(metrics.loss, f"in epoch {state.epoch + 1}, batch {index + 1}")
        is_asked_to_stop = is_update and parts.stop.after_step()
        is_due = output.recovery_interval and updates % output.recovery_interval == 0
        if is_update and (is_due or is_asked_to_stop):
            writer.write_recovery(updates - 1)
        if is_asked_to_stop:
            raise _stopped(parts)
    return state.meters.metrics(), rate


def _stopped(parts: Parts) -> Stopped:
    """Return what ends the run. All processes know how to go on, since any of them may be the one that says it."""
    message = "" if parts.folder is None else parts.folder.how_to_go_on()
    return Stopped(distributed.gather(message)[0], parts.stop.number)


def _left(loader: Any, state: TrainingState) -> Iterable[Any]:
    """Return the rest of an epoch's batches."""
    if state.batch == len(loader):
        return ()  # older timm's loaders cannot make an empty pass
    return loader if start_epoch(loader, state.epoch, state.batch) else islice(loader, state.batch, None)


def _scheduled_lr(optimizer: torch.optim.Optimizer) -> float:
    """Return the schedule's learning rate, without the scales of parameter groups."""
    group = max(optimizer.param_groups, key=lambda group: group.get("lr_scale", 1.0))
    return group["lr"] / (group.get("lr_scale") or 1.0)


def _check_finite(loss: float, when: str) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss is {loss} {when}: try a lower --lr, --clip-grad 1, or bfloat16 in place of float16"
        )


def _update_best(state: TrainingState, evaluated: dict[str, Metrics], name: str) -> bool:
    """Record the best value of a metric so far, and whether the model's own weights or their average had it.

    Returns:
        Whether this evaluation is the best so far.
    """
    weights, metrics = max(evaluated.items(), key=lambda item: score(name, getattr(item[1], name)))
    metric = getattr(metrics, name)
    if state.best and score(name, metric) <= score(name, state.best["metric"]):
        return False
    state.best = {"metric": metric, "weights": weights, "epoch": state.epoch}
    return True


def _summary_row(
    epoch: int, trained: Metrics, evaluated: dict[str, Metrics], lr: float, costs: dict[str, float]
) -> dict[str, Any]:
    row: dict[str, Any] = {"epoch": epoch, "train_loss": trained.loss}
    for weights, metrics in evaluated.items():
        prefix = PREFIXES[weights]
        row |= {
            f"{prefix}_loss": metrics.loss,
            f"{prefix}_top1": round(metrics.top1, 4),
            f"{prefix}_top5": round(metrics.top5, 4),
        }
    return {**row, "lr": lr, **costs}


def _epoch_line(row: dict[str, Any], epochs: int, is_best: bool) -> str:
    line = f"Epoch {row['epoch'] + 1}/{epochs}  train loss {row['train_loss']:.4f}  "
    if "eval_loss" in row:
        line += f"eval loss {row['eval_loss']:.4f}  top-1 {row['eval_top1']:.2f}%  top-5 {row['eval_top5']:.2f}%  "
    if "eval_ema_top1" in row:
        line += f"EMA top-1 {row['eval_ema_top1']:.2f}%  "
    line += f"lr {row['lr']:.2e}  {per_second(row['images_per_second'])}"
    if "peak_memory_gib" in row:
        line += f"  peak {row['peak_memory_gib']:.2f} GiB"
    if "data_wait" in row:
        line += f"  data wait {row['data_wait']:.0%}"
    return line + ("  best" if is_best else "")
