"""Weights & Biases, for those who log there."""

from collections.abc import Callable
from typing import Any

from ...errors import InputError, explain, require_package
from ..config import Wandb

__all__ = ["check_wandb", "open_wandb"]


def check_wandb(settings: Wandb) -> None:
    """Raise InputError where logging is asked for and cannot be."""
    if not settings.log_wandb:
        if settings.wandb_project or settings.wandb_tags or settings.wandb_resume_id:
            raise InputError("--wandb-project, --wandb-tags and --wandb-resume-id need --log-wandb")
        return
    require_package("wandb", "--log-wandb", " (without an account, WANDB_MODE=offline logs to files)")


def open_wandb(settings: Wandb, name: str, flags: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Begin a run of that name, if asked for; returns what logs an epoch's row. ``flags`` are shown beside it."""
    if not settings.log_wandb:
        return lambda row: None
    import wandb

    with explain("Weights & Biases does not start", "; WANDB_MODE=offline logs to files"):
        run = wandb.init(
            project=settings.wandb_project,
            name=name,
            config=flags,
            tags=list(settings.wandb_tags),
            resume="must" if settings.wandb_resume_id else None,
            id=settings.wandb_resume_id or None,
        )
    return run.log
