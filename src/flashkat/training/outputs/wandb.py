"""Log a run to Weights & Biases."""

from collections.abc import Callable
from typing import Any

from ...errors import InputError, explain, require_package
from ..config import Wandb

__all__ = ["check_wandb", "open_wandb"]


def check_wandb(settings: Wandb) -> None:
    """Raise InputError if logging is on and wandb is not installed, or if its flags are given without it."""
    if not settings.log_wandb:
        if settings.wandb_project or settings.wandb_tags or settings.wandb_resume_id:
            raise InputError("--wandb-project, --wandb-tags and --wandb-resume-id need --log-wandb")
        return
    require_package("wandb", "--log-wandb", " (without an account, WANDB_MODE=offline logs to files)")


def open_wandb(settings: Wandb, name: str, flags: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Start a run at Weights & Biases if logging is on.

    Args:
        settings: the section of the configuration.
        name: name of the run.
        flags: settings to store with it.

    Returns:
        A function that logs an epoch's row.

    Raises:
        InputError: Weights & Biases does not start.
    """
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
