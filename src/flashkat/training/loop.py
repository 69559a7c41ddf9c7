"""The training loop: it trains a :class:`TrainingState` over the rest of its epochs."""

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..data.order import start_epoch
from ..errors import DivergedError, Stopped
from ..evaluation.evaluate import evaluate, prepared
from ..evaluation.metrics import Meters, Metrics
from ..evaluation.nonfinite import nonfinite_names
from ..system import distributed
from ..system.graph import CapturedForward
from ..system.signals import StopRequest
from .config import Average, Config
from .mixing import Mixer
from .outputs.background import Background
from .outputs.costs import peak_memory, share_waited
from .outputs.folder import RunFolder
from .outputs.progress import Progress, per_second
from .outputs.recovery import is_finite, newest_good
from .outputs.summary import PREFIXES, score
from .outputs.writer import Writer
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
        background: writes files beside training.
    """

    step: TrainingStep
    train_loader: Any
    val_loader: Any
    mixup: Mixer | None
    precision: AbstractContextManager
    folder: RunFolder | None
    progress: Progress
    stop: StopRequest = field(default_factory=StopRequest)
    datasets: Sequence[Any] = ()
    background: Background = field(default_factory=Background)


class _Watch:
    """Ends a run whose numbers are no longer finite. All processes call it together."""

    def __init__(self, state: TrainingState, parts: Parts, config: Config) -> None:
        self._state, self._parts = state, parts
        self._limit, self._finds = config.nonfinite.limit, config.nonfinite.find_nonfinite
        self._lr, self._bad = state.lr, 0

    def after_batch(self, index: int, metrics: Metrics | None, is_update: bool) -> None:
        """Look at a training batch, before the schedule sets the next learning rate.

        Args:
            index: the batch in the epoch, from 0.
            metrics: metrics of the epoch so far; None if the host does not wait for the device now.
            is_update: whether an update came after it.
        """
        if is_update:
            self._lr = _scheduled_lr(self._state.optimizer)
        if not self._limit:
            if metrics is not None:
                self.loss(metrics.loss, f"in epoch {self._state.epoch + 1}, batch {index + 1}")
        elif metrics is not None or (self._finds and is_update):
            self._updates(index)

    def loss(self, loss: float, when: str) -> None:
        """Raise DivergedError if a loss is not finite."""
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss} {when}", self._origin() if self._finds else "")

    def weights(self) -> None:
        """Raise DivergedError if numbers of a checkpoint are not finite."""
        state = self._state
        ema = None if state.ema is None else state.ema.module.state_dict()
        weights = state.model.state_dict()
        if distributed.total([not is_finite([weights, state.optimizer.state_dict(), ema])])[0]:
            names: list[str] = next(filter(None, distributed.gather(nonfinite_names(weights))), [])
            origin = f" ({names[0]} is the first of {len(names)})" if names else ""
            raise self._diverged(f"weights are no longer finite after update {state.updates}{origin}")

    def _updates(self, index: int) -> None:
        bad, longest, after = self._parts.step.bad_updates.read()
        new, self._bad = bad - self._bad, bad
        if not new:
            return
        last, origin = self._state.updates - after, self._origin() if self._finds else ""
        if longest >= self._limit:
            these = f"update {last}" if longest == 1 else f"updates {last - longest + 1} to {last}"
            raise self._diverged(
                f"the loss or gradients are not finite in {these} (epoch {self._state.epoch + 1}, batch {index + 1})",
                origin,
            )
        self._parts.progress.say(
            f"Left out {bad} of the updates up to {self._state.updates}: the loss or gradients were not finite{origin}"
        )

    def _origin(self) -> str:
        """Return words on the layer where the last update's numbers stopped being finite."""
        try:
            own, is_short = self._parts.step.find(), False
        except torch.OutOfMemoryError:
            # Graphs keep the memory of a step, and the search needs as much again.
            own, is_short = None, True
        results: list[tuple[Any, bool]] = distributed.gather((own, is_short))
        found = min(filter(None, (each for each, _ in results)), default=None)
        if found is None and any(short for _, short in results):
            return ". Memory was too short to find the layer: give --no-compile or a smaller --batch-size to find it"
        if found is None:
            return ". Run again eagerly, with hooks, all numbers of its last update are finite"
        return f". The first number that is not finite is in {found[1]}"

    def _diverged(self, what: str, origin: str = "") -> DivergedError:
        folder = self._parts.folder
        self._parts.background.wait()
        good = distributed.gather("" if folder is None else newest_good(folder.path, self._parts.progress.say)[0])[0]
        go_on = f"go on with the same flags and --resume {good}, and try" if good else "try"
        return DivergedError(
            f"{what}, at the learning rate {self._lr:.3g}{origin}: {go_on} a lower --lr, "
            "--clip-grad 1, or bfloat16 in place of float16"
            + ("" if self._finds else ". --find-nonfinite names the layer where it begins")
        )


def run_epochs(state: TrainingState, parts: Parts, config: Config) -> None:
    """Train and evaluate the rest of ``state.epochs`` epochs. After each, write the summary and the checkpoints.

    All processes of a run call this together. The one with a folder writes.

    Args:
        state: changed in place.
        parts: the step, the loaders and the output.
        config: the configuration.

    Raises:
        DivergedError: loss, gradients or weights are no longer finite.
        Stopped: a signal asked the run to stop.
        InputError: the files of the last epoch could not be written.
    """
    output, average, progress = config.output, config.average, parts.progress
    watch, models = _Watch(state, parts, config), _averages(state, average)
    writer = Writer(
        state,
        parts.folder,
        progress.say,
        watch.weights,
        parts.background,
        parts.datasets,
        config.tracking.log_functions,
    )
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
        trained, rate = _train_epoch(state, parts, config, writer, watch)
        wait = None if rate is None else share_waited(parts.train_loader, time.perf_counter() - start)
        evaluated: dict[str, Metrics] = {}
        for model in models.values():
            distribute_norms(model, config.parallel.dist_bn)
        is_due = (epoch + 1) % output.val_interval == 0 or epoch + 1 == state.epochs
        if parts.val_loader is not None and is_due:
            evaluated = evaluate(
                to_evaluate, parts.val_loader, parts.precision, stop_in_between, config.data.skip_bad_images
            )
            watch.loss(evaluated["state_dict"].loss, f"after epoch {epoch + 1}")
        is_best = bool(evaluated) and _update_best(state, evaluated, output.eval_metric)
        if state.scheduler is not None:
            # Without a metric, the plateau schedule counts no epoch. An older one would look like no progress.
            # As in timm, it goes by the averaged weights if there are any.
            watched = evaluated.get("state_dict_ema", evaluated.get("state_dict"))
            metric = None if watched is None else getattr(watched, output.eval_metric)
            state.scheduler.step(epoch + 1, metric)

        costs = {} if rate is None else {"images_per_second": round(rate, 1)}
        if wait is not None:
            costs["data_wait"] = round(wait, 4)
        costs |= {"seconds": round(time.perf_counter() - start, 3), **peak_memory(state.model)}
        row = _summary_row(epoch, trained, evaluated, state.lr, costs)
        state.epoch, state.batch = epoch + 1, 0
        state.meters.reset()
        state.history = [*state.history, row]
        writer.write_epoch(row, is_best)
        progress.say(_epoch_line(row, state.epochs, is_best))
        if state.scaler.is_enabled() and not config.nonfinite.limit and (bad := parts.step.bad_updates.read()[0]):
            progress.say(f"{bad} updates so far were left out: gradients were not finite in float16")
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


def _train_epoch(
    state: TrainingState, parts: Parts, config: Config, writer: Writer, watch: _Watch
) -> tuple[Metrics, float | None]:
    """Train the rest of an epoch.

    Returns:
        The whole epoch's metrics on augmented images, and the images per second of all processes. The latter is None
        if all batches were done before.
    """
    state.model.train()
    loader, mixup = parts.train_loader, parts.mixup
    output, accumulated = config.output, config.parallel.grad_accum_steps
    batches, updates = len(loader), -(-state.batch // accumulated)
    images_seen, start = 0, time.perf_counter()
    rate: float | None = None
    for index, (images, target) in enumerate(_left(loader, state), start=state.batch):
        if mixup is not None:
            images, target = mixup(images, target)
        first_of_group = index - index % accumulated
        is_update = index + 1 == min(first_of_group + accumulated, batches)
        update = state.updates + 1 if is_update else None
        parts.step(images, target, group=min(accumulated, batches - first_of_group), update=update)
        if update is not None:
            updates, state.updates = updates + 1, update
            if config.runtime.synchronize_step and images.is_cuda:
                torch.cuda.synchronize(images.device)
        state.batch = index + 1
        images_seen += len(images)

        is_last = state.batch == batches
        metrics = state.meters.metrics() if index % output.log_interval == 0 or is_last else None
        rate = images_seen * distributed.size() / (time.perf_counter() - start)
        parts.progress.batch(state.epoch, index, metrics, rate)
        if metrics is not None and output.save_images:
            writer.save_images(images, index)
        watch.after_batch(index, metrics, is_update)
        if update is not None and state.scheduler is not None:
            state.scheduler.step_update(update)
        is_asked_to_stop = is_update and parts.stop.after_step()
        is_due = output.recovery_interval and updates % output.recovery_interval == 0
        if is_update and (is_due or is_asked_to_stop):
            writer.write_recovery(updates - 1)
        if is_asked_to_stop:
            raise _stopped(parts)
    return state.meters.metrics(), rate


def _stopped(parts: Parts) -> Stopped:
    """Return what ends the run. All processes know how to go on, since any of them may be the one that says it."""
    parts.background.wait()
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
    """Return an epoch's line, of at most 100 columns. The summary has the other numbers."""
    line = f"Epoch {row['epoch'] + 1}/{epochs}  train loss {row['train_loss']:.3f}"
    if "eval_loss" in row:
        line += f"  eval loss {row['eval_loss']:.3f}  top-1 {row['eval_top1']:.2f}%"
    if "eval_ema_top1" in row:
        line += f"  EMA {row['eval_ema_top1']:.2f}%"
    if "images_per_second" in row:
        line += f"  {per_second(row['images_per_second'])}"
    return line + ("  best" if is_best else "")
