"""The checkpoint that a run can go on from: the newest one of its folder that is whole and finite."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import checkpoints
from ...errors import InputError

__all__ = ["differences", "is_finite", "newest_good"]

# Flags that say how a run is shown, stored or computed, not what it learns.
_HARMLESS = {
    *("config", "amp_impl", "local_rank", "output", "experiment", "resume", "log_interval", "recovery_interval"),
    *("checkpoint_hist", "val_interval", "save_images", "log_wandb", "wandb_project", "wandb_tags", "wandb_resume_id"),
    *("workers", "pin_mem", "device", "torchcompile", "no_compile", "torchcompile_mode", "synchronize_step"),
    *("validation_batch_size", "data_dir", "start_epoch", "use_multi_epochs_loader", "lr"),
}


def newest_good(folder: Path, say: Callable[[str], None]) -> str:
    """Find the newest checkpoint of a run's folder that is whole and finite; empty if there is none.

    Args:
        folder: may not exist.
        say: told why a newer one is not taken.
    """
    found = [path for pattern in ("last.pth.tar", "recovery-*", "checkpoint-*") for path in folder.glob(pattern)]
    whole = [path for path in found if path.name.endswith(".pth.tar")]
    for path in sorted(whole, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            checkpoint = checkpoints.read(path)
        except InputError as error:
            say(f"Not going on from {path.name}: {error}")
            continue
        if "epoch" in checkpoint and is_finite(checkpoint):
            return str(path)
        say(f"Not going on from {path.name}: its numbers are not finite")
    return ""


def is_finite(value: Any) -> bool:
    """Return whether all numbers of a nested state are finite. Tensors on a GPU are asked all at once."""
    found = [each for each in _tensors(value) if each.is_floating_point() and each.numel()]
    return not found or bool(torch.stack([each.isfinite().all().cpu() for each in found]).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            # A best or a history may hold the loss of a run that has recovered since.
            if name not in ("history", "best"):
                yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the flags that change training and differ from those of the run so far, a line each."""
    return [
        f"Differs from the run so far: --{name.replace('_', '-')} is {now[name]}, it was {before[name]}"
        for name in now
        if name in before and name not in _HARMLESS and before[name] != now[name]
    ]
