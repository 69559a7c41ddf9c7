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

from ..data import set_epoch
from ..errors import DivergedError
from ..evaluation import Meters, Metrics, evaluate, with_views
from .extras import distribute_norms, save_images, share_waited, synchronize
from .folder import RunFolder
from .progress import Progress

__all__ = ["TrainingState", "run_epochs"]

_WAIT_WORTH_A_HINT = 0.1
_WAIT_HINT = (
    "Training waited for data {share:.0%} of that epoch: try more --workers, smaller image files or less augmentation; "
    "--fake-data shows how fast it would go without waiting"
)


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
    epochs: int = 0
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
    """Train and evaluate for ``state.epochs`` epochs; after each, write the summary and the checkpoints."""
    state.epochs = state.epochs or args.epochs
    hint: str | None = _WAIT_HINT
    for epoch in range(state.epoch, state.epochs):
        state.epoch = epoch
        lr = state.optimizer.param_groups[0]["lr"]
        set_epoch(train_loader, epoch)
        if mixup is not None and args.mixup_off_epoch:
            mixup.mixup_enabled = epoch < args.mixup_off_epoch
        start = time.perf_counter()
        trained, rate = _train_epoch(state, train_loader, loss_function, mixup, precision, folder, progress, args)
        wait = share_waited(train_loader, time.perf_counter() - start)
        distribute_norms(state.model, args)
        evaluated = {}
        if (epoch + 1) % args.val_interval == 0 or epoch + 1 == state.epochs:
            evaluated = _evaluate(state, val_loader, precision, args)
            _check_finite(evaluated["state_dict"].loss, f"after epoch {epoch + 1}")
        is_best = bool(evaluated) and _update_best(state, evaluated, args.eval_metric)
        if state.scheduler is not None:
            metric = getattr(evaluated["state_dict"], args.eval_metric) if evaluated else state.best.get("metric")
            state.scheduler.step(epoch + 1, metric)

        row = _summary_row(epoch, trained, evaluated, lr, rate, wait)
        folder.save(state.checkpoint(args), is_best)
        folder.record(row)
        progress.say(_epoch_line(row, state.epochs, is_best))
        if hint and wait is not None and wait > _WAIT_WORTH_A_HINT:
            progress.say(hint.format(share=wait))
            hint = None


def _evaluate(
    state: TrainingState, loader: Any, precision: AbstractContextManager, args: Namespace
) -> dict[str, Metrics]:
    """Metrics of the model's own weights and, where it can be, of their average, by the names in a checkpoint."""
    evaluated = {"state_dict": evaluate(with_views(state.model, args.tta), loader, precision)}
    if state.ema is not None and not args.model_ema_force_cpu:
        evaluated["state_dict_ema"] = evaluate(with_views(state.ema.module, args.tta), loader, precision)
    return evaluated


def _train_epoch(
    state: TrainingState,
    loader: Any,
    loss_function: nn.Module,
    mixup: Mixup | None,
    precision: AbstractContextManager,
    folder: RunFolder,
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
        _update(state, loss, args.clip_grad, args.clip_mode)
        if args.synchronize_step:
            synchronize(images.device)
        # Mixed targets count as the class they hold most of.
        meters.update(output, target.argmax(1) if target.ndim == 2 else target, loss)
        images_seen += len(images)

        is_last = index == len(loader) - 1
        metrics = meters.metrics() if index % args.log_interval == 0 or is_last else None
        rate = images_seen / (time.perf_counter() - start)
        progress.batch(state.epoch, index, metrics, rate)
        if metrics is not None:
            if args.save_images:
                save_images(images, folder.path / f"train-batch-{state.epoch}-{index}.jpg")
            _check_finite(metrics.loss, f"in epoch {state.epoch + 1}, batch {index + 1}")
    return meters.metrics(), rate


def _check_finite(loss: float, when: str) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss is {loss} {when}: try a lower --lr, --clip-grad 1, or bfloat16 in place of float16"
        )


def _update(state: TrainingState, loss: torch.Tensor, clip_grad: float | None, clip_mode: str) -> None:
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()
    if clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        dispatch_clip_grad(state.model.parameters(), clip_grad, clip_mode)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.updates += 1
    if state.ema is not None:
        state.ema.update(state.model, step=state.updates)
    if state.scheduler is not None:
        state.scheduler.step_update(state.updates)


def _update_best(state: TrainingState, evaluated: dict[str, Metrics], name: str) -> bool:
    """Remember the best value of a metric so far and which weights had it, the model's own or their average."""
    sign = -1 if name == "loss" else 1
    weights, metrics = max(evaluated.items(), key=lambda item: sign * getattr(item[1], name))
    metric = getattr(metrics, name)
    if state.best and sign * metric <= sign * state.best["metric"]:
        return False
    state.best = {"metric": metric, "weights": weights}
    return True


def _summary_row(
    epoch: int, trained: Metrics, evaluated: dict[str, Metrics], lr: float, rate: float, wait: float | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"epoch": epoch, "train_loss": trained.loss}
    for weights, metrics in evaluated.items():
        prefix = "eval_ema" if weights == "state_dict_ema" else "eval"
        row |= {
            f"{prefix}_loss": metrics.loss,
            f"{prefix}_top1": round(metrics.top1, 4),
            f"{prefix}_top5": round(metrics.top5, 4),
        }
    row |= {"lr": lr, "images_per_second": round(rate, 1)}
    return row if wait is None else row | {"data_wait": round(wait, 4)}


def _epoch_line(row: dict[str, Any], epochs: int, is_best: bool) -> str:
    line = f"Epoch {row['epoch'] + 1}/{epochs}  train loss {row['train_loss']:.4f}  "
    if "eval_loss" in row:
        line += f"eval loss {row['eval_loss']:.4f}  top-1 {row['eval_top1']:.2f}%  top-5 {row['eval_top5']:.2f}%  "
    if "eval_ema_top1" in row:
        line += f"EMA top-1 {row['eval_ema_top1']:.2f}%  "
    line += f"lr {row['lr']:.2e}  {row['images_per_second']:.0f} images/s"
    if "data_wait" in row:
        line += f"  data wait {row['data_wait']:.0%}"
    return line + ("  best" if is_best else "")
