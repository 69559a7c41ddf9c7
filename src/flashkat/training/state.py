"""The state of a run: everything that a checkpoint needs to resume it exactly."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from .. import checkpoints
from ..checkpoints.formats import compare, describe
from ..checkpoints.run_entries import check_run
from ..errors import InputError, explain
from ..evaluation.metrics import Meters
from ..models import is_same_model
from ..nn.formats import rename_rationals
from ..system import distributed
from ..system.random import random_state, set_random_state
from ..system.terminal import printable_name
from .config import Resume
from .optimizer import check_shapes, with_order_of, with_settings_of
from .outputs.summary import best_of
from .parallel import full, like

__all__ = ["FinishedError", "TrainingState", "load_resumed_weights", "read_resumed"]

# Flags that decide which images an epoch has, and in which order and batches.
_ORDER = (
    "batch_size",
    "grad_accum_steps",
    "seed",
    "epoch_repeats",
    "aug_repeats",
    "val_fraction",
    "dataset",
    "class_map",
)


class FinishedError(InputError):
    """The run to resume has already trained all its epochs."""


@dataclass
class TrainingState:
    """Everything that training changes, except for the process's random state, which checkpoints save too.

    The seed, the epoch and the batch determine the order of images.

    Attributes:
        model: the plain model, which is saved and evaluated.
        scaler: the gradient scaler, disabled without float16.
        ema: the moving average of the weights, if any.
        classes: names of the classes, by label.
        epochs: number of epochs to train.
        batches: batches of an epoch.
        images: training images, of all processes together.
        held_out: digest of the names of the held-out images, see :class:`flashkat.data.scan.Images`.
        name: name of the model, for checkpoints.
        flags: all settings, for checkpoints.
        epoch: the current epoch, from 0.
        batch: how many of its batches are done.
        updates: updates of the optimiser so far.
        lr: the learning rate at the start of the epoch.
        best: the best value of the metric so far, with its weights and epoch.
        history: the summary's row of each epoch.
        meters: metrics of the epoch's batches so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    classes: list[str]
    epochs: int
    batches: int = 0
    images: int = 0
    held_out: str = ""
    name: str = ""
    flags: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    batch: int = 0
    updates: int = 0
    lr: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    meters: Meters = field(default_factory=Meters)

    def checkpoint(self) -> dict[str, Any]:
        """Return a checkpoint in timm's layout. Entries that timm does not have are under ``run``.

        All processes call this together, between any two updates. The first one gets the complete checkpoint.
        """
        checkpoint = {
            "arch": self.name,
            "args": self.flags,
            "classes": self.classes,
            # As in timm, the epoch that trained these weights.
            "epoch": self.epoch if self.batch else max(self.epoch - 1, 0),
            **self._metrics(),
            "state_dict": full(self.model.state_dict()),
            "optimizer": full(self.optimizer.state_dict()),
            "version": 2,
        }
        if self.scaler.is_enabled():
            checkpoint["amp_scaler"] = self.scaler.state_dict()
        if self.ema is not None:
            checkpoint["state_dict_ema"] = full(self.ema.module.state_dict())
        checkpoint["run"] = {
            "epoch": self.epoch,
            "batch": self.batch,
            "batches": self.batches,
            "images": self.images,
            "held_out": self.held_out,
            "updates": self.updates,
            "lr": self.lr,
            "best": self.best,
            "history": self.history,
            "scheduler": _scheduler_state(self.scheduler),
            "ema": _ema_state(self.ema),
            "processes": distributed.gather({"random": random_state(), "sums": self.meters.sums()}),
        }
        return checkpoint

    def _metrics(self) -> dict[str, Any]:
        """Return the metric of the epoch that has just ended, if it was evaluated, and the best one so far."""
        is_over = not self.batch and bool(self.history) and self.history[-1]["epoch"] == self.epoch - 1
        own = best_of(self.history[-1:], self.flags.get("eval_metric", "top1")) if is_over else {}
        return {
            "metric": own.get("metric"),
            "metric_weights": own.get("weights"),
            "best_metric": self.best.get("metric"),
        }

    def start(
        self,
        checkpoint: dict[str, Any],
        resume: Resume,
        *,
        opt: str,
        start_epoch: int | None,
        eval_metric: str,
        updates_per_epoch: int,
    ) -> None:
        """Begin a new run, or resume a checkpoint of ours or of timm.

        The flags of this run decide about epochs, learning rate and schedule, not the checkpoint's.

        Args:
            checkpoint: from :func:`read_resumed`, empty for a new run. Its weights are already loaded.
            resume: names the checkpoint.
            opt: the optimiser's name.
            start_epoch: the first epoch; None continues after the checkpoint.
            eval_metric: the metric of the best checkpoint.
            updates_per_epoch: updates of an epoch in this run, also for the epochs that the checkpoint has.

        Raises:
            InputError: the checkpoint has another optimiser, or ``start_epoch`` is after the last epoch.
            FinishedError: the checkpoint has all its epochs.
        """
        run: dict[str, Any] = checkpoint.get("run", {})
        has_metric = checkpoint.get("args", {}).get("eval_metric", eval_metric) == eval_metric
        has_rates = False
        if checkpoint:
            with explain(f"cannot continue from {resume.resume}"):
                self._restore(checkpoint, run, resume, opt, start_epoch, updates_per_epoch, has_metric)
                has_rates = not resume.no_resume_opt and _has_first_rates(self.optimizer, checkpoint)
        if start_epoch is not None:
            self.epoch, self.batch, self.meters = start_epoch, 0, Meters()
            self._forget_later_epochs(eval_metric)
            self.updates = self.epoch * updates_per_epoch
        if self.epoch >= self.epochs:
            if start_epoch is not None:
                raise InputError(f"--start-epoch {self.epoch} is after the last of {self.epochs} epochs")
            raise FinishedError(f"{resume.resume} has all of its {self.epoch} epochs: give more --epochs to go on")
        if self.scheduler is not None and (checkpoint or self.epoch):
            _set_schedule(self.scheduler, checkpoint, self.epoch, self.updates, has_rates, has_metric)

    def _forget_later_epochs(self, metric: str) -> None:
        """Drop the rows of epochs that will be trained again, and a best metric that comes from them."""
        kept = [row for row in self.history if row["epoch"] < self.epoch]
        before, after = best_of(self.history, metric), best_of(kept, metric)
        # Keep a best that no row has. Rows are rounded.
        if before != after and round(before["metric"], 4) == round(self.best.get("metric", math.nan), 4):
            self.best = after
        self.history = kept

    def _restore(
        self,
        checkpoint: dict[str, Any],
        run: dict[str, Any],
        resume: Resume,
        opt: str,
        start_epoch: int | None,
        updates_per_epoch: int,
        has_metric: bool,
    ) -> None:
        self.epoch = run.get("epoch", checkpoint["epoch"] + 1)
        self.batch = run.get("batch", 0)
        self.updates = self.epoch * updates_per_epoch
        if self.batch:
            self.updates = run.get("updates", self.updates)
        self.lr = run.get("lr", self.lr)
        self.history = run.get("history", [])
        self.best = run.get("best", {}) if has_metric else best_of(self.history, self.flags["eval_metric"])
        if not resume.no_resume_opt:
            self._restore_optimizer(checkpoint, resume.resume, opt)
        _set_ema_state(self.ema, run.get("ema", {}))
        if self.batch and start_epoch is None:
            self._check_same_epoch(checkpoint.get("args", {}), run, resume.resume)
        processes = run.get("processes", [])
        if len(processes) == distributed.size():
            own = processes[distributed.rank()]
            set_random_state(own["random"])
            self.meters.add(own["sums"])

    def _check_same_epoch(self, saved: dict[str, Any], run: dict[str, Any], path: str) -> None:
        """Raise InputError if an epoch would go on with other batches than it began with."""
        now, before = distributed.size(), len(run.get("processes", []))
        for name in _ORDER:
            value = saved.get(name, self.flags[name])
            # None, 0 and an empty text all leave a flag out.
            if (value or None) != (self.flags[name] or None):
                flag = f"--{name.replace('_', '-')}"
                begun = f"without {flag}: leave it out"
                if value not in (None, ""):
                    begun = f"with {flag} {printable_name(str(value))}: give that"
                raise InputError(f"{path} is from the middle of an epoch {begun}, or resume from last.pth.tar")
        if before != now:
            raise InputError(
                f"{path} is from the middle of an epoch of {before} processes, not {now}: start as many, or resume "
                "from last.pth.tar"
            )
        # Older checkpoints do not count an epoch's batches and images.
        batches, images = run.get("batches"), run.get("images")
        if self.batch > self.batches or batches not in (None, self.batches) or images not in (None, self.images):
            begun = "" if batches is None else f", not {images} in {batches}"
            raise InputError(
                f"{path} is from after batch {self.batch} of an epoch, and this data has {self.images} images in "
                f"{self.batches} batches{begun}: give the run's data, or resume from last.pth.tar"
            )

    def _restore_optimizer(self, checkpoint: dict[str, Any], path: str, opt: str) -> None:
        saved = checkpoint.get("args", {}).get("opt", opt)
        if saved.lower() != opt.lower():
            raise InputError(f"{path} was trained with --opt {saved}: give that, or --no-resume-opt")
        if not isinstance(checkpoint.get("optimizer"), dict):
            raise InputError(f"{path} holds no state of an optimiser: give --no-resume-opt")
        with explain(f"{path} has an optimiser with other parameters: give its flags, or --no-resume-opt"):
            names = rename_rationals(checkpoints.weights(checkpoint), self.model.state_dict().keys())
            saved = with_order_of(self.optimizer, checkpoint["optimizer"], self.model, list(names))
            given = {*(checkpoint.get("args", {}).get("opt_kwargs") or ()), *(self.flags.get("opt_kwargs") or ())}
            saved = with_settings_of(self.optimizer, saved, more=given, keeps_rates=_is_plateau(self.scheduler))
            check_shapes(self.optimizer, saved)
            self.optimizer.load_state_dict(like(saved, self.optimizer))
        if self.scaler.is_enabled() and checkpoint.get("amp_scaler"):
            self.scaler.load_state_dict(checkpoint["amp_scaler"])


def read_resumed(path: str, classes: list[str], checkpoint: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read the checkpoint of a run to resume.

    Args:
        path: the file; "" returns an empty checkpoint.
        classes: names of the data set's classes; empty if it does not list them.
        checkpoint: what the file holds, if it has been read and checked.

    Raises:
        InputError: the file holds no run, or a run with other classes.
    """
    if not path:
        return {}
    if not checkpoint:
        checkpoint = checkpoints.read(path)
        check_run(checkpoint, path)
    trained = checkpoint.get("classes")
    # Without a list of classes there is nothing to compare.
    if trained and classes and trained != classes:
        raise InputError(
            f"{path} is of a run with other classes: {len(trained)} from {trained[0]} to {trained[-1]}, "
            f"not {len(classes)} from {classes[0]} to {classes[-1]}"
        )
    return checkpoint


def load_resumed_weights(
    model: nn.Module, checkpoint: dict[str, Any], path: str, name: str, *, use_ema: bool = False
) -> None:
    """Load the weights of a resumed checkpoint into a model that is not sharded yet.

    Args:
        model: the model to load into, in place.
        checkpoint: from :func:`read_resumed`; an empty one loads nothing.
        path: the checkpoint's path, for errors.
        name: the model's name.
        use_ema: load the averaged weights if the checkpoint has any, and nothing otherwise.

    Raises:
        InputError: the weights are of another architecture, or of another size of this one.
    """
    if not checkpoint or (use_ema and "state_dict_ema" not in checkpoint):
        return
    arch, own = checkpoint.get("arch", name), model.state_dict()
    state = rename_rationals(checkpoints.weights(checkpoint, use_ema), own.keys())
    # No weights are adapted here: to the optimiser's state, an adapted model would be another one.
    differences = describe(compare(own, state))
    if differences and not is_same_model(arch, name):
        raise InputError(f"{path} is of a run of {arch}, not {name}: give --model {arch}")
    if differences:
        raise InputError(
            f"the flags give another model than that of {path}: take the flags of its args.yaml, with -c. "
            f"The weights differ: {differences}"
        )
    model.load_state_dict(state)


def _ema_state(ema: ModelEmaV3 | None) -> dict[str, Any]:
    """Return the random state of an average. Newer timm rounds bfloat16 averages with a generator of its own."""
    generator = getattr(ema, "_sr_generator", None)
    return {} if generator is None else {"random": generator.get_state()}


def _set_ema_state(ema: ModelEmaV3 | None, state: dict[str, Any]) -> None:
    generator = getattr(ema, "_sr_generator", None)
    if generator is not None and "random" in state:
        generator.set_state(state["random"])


def _scheduler_state(scheduler: Any) -> dict[str, Any]:
    """Return the state of a schedule. Only the plateau schedule has one: others depend on the epoch or update alone."""
    if not _is_plateau(scheduler):
        return {}
    return {"plateau": scheduler.lr_scheduler.state_dict(), "without_noise": scheduler.restore_lr}


def _is_plateau(scheduler: Any) -> bool:
    """Return whether a schedule goes by a metric. None is no schedule."""
    return hasattr(scheduler, "lr_scheduler")


def _has_first_rates(optimizer: torch.optim.Optimizer, checkpoint: dict[str, Any]) -> bool:
    """Return whether the optimiser's groups start from the same learning rates as the checkpoint's."""
    saved, own = (
        [(group.get("initial_lr", group.get("lr")), group.get("lr_scale", 1.0)) for group in groups]
        for groups in (checkpoint["optimizer"]["param_groups"], optimizer.param_groups)
    )
    return saved == own


def _set_schedule(
    scheduler: Any, checkpoint: dict[str, Any], epoch: int, updates: int, has_rates: bool, has_metric: bool
) -> None:
    """Bring a schedule to an epoch and update.

    Args:
        scheduler: the schedule.
        checkpoint: that of the resumed run, empty for a new one.
        epoch: the epoch, from 0.
        updates: updates so far.
        has_rates: whether the optimiser has the checkpoint's rates, and the first rates of both runs are the same.
        has_metric: whether the checkpoint went by the metric of this run.
    """
    if not _is_plateau(scheduler):
        # A new run keeps the rates that the schedule was made with until its first update or second epoch.
        if epoch:
            scheduler.step(epoch)
        if updates:
            scheduler.step_update(updates)
        return
    state = checkpoint.get("run", {}).get("scheduler", {})
    if not has_rates:
        # timm has set the first rate of the warm-up. No step after the warm-up would change it.
        share = _share_left(checkpoint, state)
        scheduler.update_groups([rate * share for rate in scheduler.base_values])
    if state:
        # The best value of another metric, and what was counted by it, say nothing about this one. The rest of the
        # state is of flags, and this run has its own.
        names = (*_COUNTED, "_last_lr") if has_metric else ("_last_lr",)
        kept = {name: value for name, value in state["plateau"].items() if name in names}
        scheduler.lr_scheduler.load_state_dict(kept)
        scheduler.restore_lr = state["without_noise"] if has_rates else None
    # Without a metric, this counts no epoch. At epoch 0, timm takes the rate of a warm-up even if there is none.
    if epoch or scheduler.warmup_t:
        scheduler.step(epoch)


# What PyTorch's plateau schedule counts.
_COUNTED = ("best", "cooldown_counter", "num_bad_epochs", "last_epoch")


def _share_left(checkpoint: dict[str, Any], state: dict[str, Any]) -> float:
    """Return the share of the first rate to which a checkpoint's plateau schedule has come; 1 if it is not known."""
    optimizer = checkpoint.get("optimizer")
    groups = optimizer["param_groups"] if isinstance(optimizer, dict) else []
    for rate, group in zip(state.get("plateau", {}).get("_last_lr", ()), groups, strict=False):
        if first := (group.get("lr_scale", 1.0) or 0.0) * (group.get("initial_lr") or 0.0):
            return float(rate / first)
    return 1.0
