"""Weights & Biases, for those who log there."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from ...errors import InputError, explain, require_package

__all__ = ["check_wandb", "open_wandb"]


def check_wandb(args: Namespace) -> None:
    """Raise InputError where ``--log-wandb`` is asked for and cannot be."""
    if not args.log_wandb:
        if args.wandb_project or args.wandb_tags or args.wandb_resume_id:
            raise InputError("--wandb-project, --wandb-tags and --wandb-resume-id need --log-wandb")
        return
    require_package("wandb", "--log-wandb", " (without an account, WANDB_MODE=offline logs to files)")


def open_wandb(args: Namespace, name: str) -> Callable[[dict[str, Any]], None]:
    """Begin a run of that name, if asked for; returns what logs an epoch's row."""
    if not args.log_wandb:
        return lambda row: None
    import wandb

    with explain("Weights & Biases does not start", "; WANDB_MODE=offline logs to files"):
        run = wandb.init(
            project=args.wandb_project,
            name=name,
            config=vars(args),
            tags=args.wandb_tags,
            resume="must" if args.wandb_resume_id else None,
            id=args.wandb_resume_id or None,
        )
    return run.log
