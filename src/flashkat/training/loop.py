"""The training loop, and the state that it moves forward."""

import math
import time
from argparse import Namespace
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.data import Mixup
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn

from ..errors import DivergedError
from ..evaluation import Meters, Metrics, evaluate
from .folder import RunFolder
from .progress import Progress

__all__ = ["TrainingState", "run_epochs"]


@dataclass
class TrainingState:
    """Everything that training changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    classes: list[str]
    epoch: int = 0
    updates: int = 0
    best: dict[str, Any] = field(default_factory=dict)

    def checkpoint(self, args: Namespace) -> dict[str, Any]:
        """timm's checkpoint layout; see :mod:`flashkat.checkpoints`."""
        checkpoint = {
            "arch": args.model,
            "args": vars(args),
            "classes": self.classes,
            "epoch": self.epoch,
            "metric": self.best.get("metric"),
            "metric_weights": self.best.get("weights"),
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "version": 2,
        }
        if self.scaler.is_enabled():
            checkpoint["amp_scaler"] = self.scaler.state_dict()
        if self.ema is not None:
            checkpoint["state_dict_ema"] = self.ema.module.state_dict()
        return checkpoint


def run_epochs(
    state: TrainingState,
    train_loader: Any,
    val_loader: Any,
    loss_function: nn.Module,
    mixup: Mixup | None,
    precision: AbstractContextManager,
    folder: RunFolder,
    progress: Progress,
    args: Namespace,
) -> None:
    """Train and evaluate for ``args.epochs`` epochs; after each, write the summary and the checkpoints."""
    for epoch in range(args.epochs):
        state.epoch = epoch
        lr = state.optimizer.param_groups[0]["lr"]
        trained, rate = _train_epoch(state, train_loader, loss_function, mixup, precision, progress, args)
        evaluated = {"state_dict": evaluate(state.model, val_loader, precision)}
        if state.ema is not None:
            evaluated["state_dict_ema"] = evaluate(state.ema.module, val_loader, precision)
        _check_finite(evaluated["state_dict"].loss, f"after epoch {epoch + 1}")
        is_best = _update_best(state, evaluated)
        if state.scheduler is not None:
            state.scheduler.step(epoch + 1, evaluated["state_dict"].top1)

        row = _summary_row(epoch, trained, evaluated, lr, rate)
        folder.save(state.checkpoint(args), is_best)
        folder.record(row)
        progress.say(_epoch_line(row, args.epochs, is_best))


def _train_epoch(
    state: TrainingState,
    loader: Any,
    loss_function: nn.Module,
    mixup: Mixup | None,
    precision: AbstractContextManager,
    progress: Progress,
    args: Namespace,
) -> tuple[Metrics, float]:
    """One epoch; returns its average metrics on augmented images and images/s."""
    state.model.train()
    meters = Meters()
    images_seen, start = 0, time.perf_counter()
    for index, (images, target) in enumerate(loader):
        if mixup is not None:
            images, target = mixup(images, target)
        with precision:
            output = state.model(images)
            loss = loss_function(output, target)
        _update(state, loss, args.clip_grad)
        # Mixed targets count as the class they hold most of.
        meters.update(output, target.argmax(1) if target.ndim == 2 else target, loss)
        images_seen += len(images)

        is_last = index == len(loader) - 1
        metrics = meters.metrics() if index % args.log_interval == 0 or is_last else None
        rate = images_seen / (time.perf_counter() - start)
        progress.batch(state.epoch, index, metrics, rate)
        if metrics is not None:
            _check_finite(metrics.loss, f"in epoch {state.epoch + 1}, batch {index + 1}")
    return meters.metrics(), rate


def _check_finite(loss: float, when: str) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss is {loss} {when}: try a lower --lr, --clip-grad 1, or bfloat16 in place of float16"
        )


def _update(state: TrainingState, loss: torch.Tensor, clip_grad: float | None) -> None:
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()
    if clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        dispatch_clip_grad(state.model.parameters(), clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
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
