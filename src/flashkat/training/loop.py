"""The training loop: it moves a :class:`TrainingState` forward, over what is left of its epochs."""

import math
import time
from argparse import Namespace
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import torch
from timm.data import Mixup
from timm.utils import dispatch_clip_grad
from torch import nn

from .. import distributed
from ..errors import DivergedError
from ..evaluation import Meters, Metrics, evaluate
from ..sampling import start_epoch
from .folder import RunFolder
from .parallel import synchronised
from .progress import Progress
from .state import TrainingState

__all__ = ["TrainingState", "run_epochs"]


def run_epochs(
    state: TrainingState,
    train_loader: Any,
    val_loader: Any,
    loss_function: nn.Module,
    mixup: Mixup | None,
    precision: AbstractContextManager,
    folder: RunFolder | None,
    progress: Progress,
    args: Namespace,
) -> None:
    """Train and evaluate up to ``args.epochs`` epochs; after each, write the summary and the checkpoints.

    Of several processes, all run this together, and the one with a folder writes.
    """
    for epoch in range(state.epoch, args.epochs):
        if not state.batch:
            state.lr = _scheduled_lr(state.optimizer)
        trained, rate = _train_epoch(state, train_loader, loss_function, mixup, precision, folder, progress, args)
        evaluated = {"state_dict": evaluate(state.model, val_loader, precision)}
        if state.ema is not None:
            evaluated["state_dict_ema"] = evaluate(state.ema.module, val_loader, precision)
        _check_finite(evaluated["state_dict"].loss, f"after epoch {epoch + 1}")
        metric = max(metrics.top1 for metrics in evaluated.values())
        is_best = _update_best(state, evaluated)
        if state.scheduler is not None:
            state.scheduler.step(epoch + 1, evaluated["state_dict"].top1)

        row = _summary_row(epoch, trained, evaluated, state.lr, rate)
        state.epoch, state.batch, state.meters = epoch + 1, 0, Meters()
        state.history = [*state.history, row]
        checkpoint = state.checkpoint(args)
        if folder is not None:
            folder.save(checkpoint, is_best, metric)
            folder.record(row)
        progress.say(_epoch_line(row, args.epochs, is_best))


def _train_epoch(
    state: TrainingState,
    loader: Any,
    loss_function: nn.Module,
    mixup: Mixup | None,
    precision: AbstractContextManager,
    folder: RunFolder | None,
    progress: Progress,
    args: Namespace,
) -> tuple[Metrics, float]:
    """What is left of an epoch; returns the whole epoch's average metrics on augmented images, and images/s."""
    state.model.train()
    batches, accumulated, updates = len(loader), args.grad_accum_steps, -(-state.batch // args.grad_accum_steps)
    left = loader if start_epoch(loader, state.epoch, state.batch) else islice(loader, state.batch, None)
    images_seen, rate, start = 0, 0.0, time.perf_counter()
    state.optimizer.zero_grad()
    for index, (images, target) in enumerate(left, start=state.batch):
        if mixup is not None:
            images, target = mixup(images, target)
        first_of_group = index - index % accumulated
        is_update = index + 1 == min(first_of_group + accumulated, batches)
        with synchronised(state.trained, now=is_update):
            with precision:
                output = state.trained(images)
                loss = loss_function(output, target)
            # The average over the group's images; its batches are fewer where the epoch ends.
            state.scaler.scale(loss / min(accumulated, batches - first_of_group)).backward()
        if is_update:
            _update(state, args)
            updates += 1
        # Mixed targets count as the class they hold most of.
        state.meters.update(output, target.argmax(1) if target.ndim == 2 else target, loss)
        state.batch = index + 1
        images_seen += len(images)

        is_last = state.batch == batches
        metrics = state.meters.metrics() if index % args.log_interval == 0 or is_last else None
        rate = images_seen * distributed.size() / (time.perf_counter() - start)
        progress.batch(state.epoch, index, metrics, rate)
        if metrics is not None:
            _check_finite(metrics.loss, f"in epoch {state.epoch + 1}, batch {index + 1}")
        if is_update and args.recovery_interval and updates % args.recovery_interval == 0:
            checkpoint = state.checkpoint(args)
            if folder is not None:
                folder.save_recovery(checkpoint, state.epoch, updates - 1)
    return state.meters.metrics(), rate


def _scheduled_lr(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the schedule, whatever a group's scale of it."""
    group = optimizer.param_groups[0]
    return group["lr"] / (group.get("lr_scale") or 1.0)


def _check_finite(loss: float, when: str) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss is {loss} {when}: try a lower --lr, --clip-grad 1, or bfloat16 in place of float16"
        )


def _update(state: TrainingState, args: Namespace) -> None:
    if args.clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
        dispatch_clip_grad(parameters, args.clip_grad, args.clip_mode)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    state.updates += 1
    if state.ema is not None:
        state.ema.update(state.model, step=state.updates)
    if state.scheduler is not None:
        state.scheduler.step_update(state.updates)


def _update_best(state: TrainingState, evaluated: dict[str, Metrics]) -> bool:
    """Remember the best top-1 so far and which weights had it, the model's own or their average."""
    weights, metrics = max(evaluated.items(), key=lambda item: item[1].top1)
    if state.best and metrics.top1 <= state.best["metric"]:
        return False
    state.best = {"metric": metrics.top1, "weights": weights}
    return True


def _summary_row(epoch: int, trained: Metrics, evaluated: dict[str, Metrics], lr: float, rate: float) -> dict[str, Any]:
    row: dict[str, Any] = {"epoch": epoch, "train_loss": trained.loss}
    for weights, metrics in evaluated.items():
        prefix = "eval_ema" if weights == "state_dict_ema" else "eval"
        row |= {
            f"{prefix}_loss": metrics.loss,
            f"{prefix}_top1": round(metrics.top1, 4),
            f"{prefix}_top5": round(metrics.top5, 4),
        }
    return row | {"lr": lr, "images_per_second": round(rate, 1)}


def _epoch_line(row: dict[str, Any], epochs: int, is_best: bool) -> str:
    average = f"  EMA top-1 {row['eval_ema_top1']:.2f}%" if "eval_ema_top1" in row else ""
    return (
        f"Epoch {row['epoch'] + 1}/{epochs}  train loss {row['train_loss']:.4f}  eval loss {row['eval_loss']:.4f}  "
        f"top-1 {row['eval_top1']:.2f}%  top-5 {row['eval_top5']:.2f}%{average}  lr {row['lr']:.2e}  "
        f"{row['images_per_second']:.0f} images/s{'  best' if is_best else ''}"
    )
