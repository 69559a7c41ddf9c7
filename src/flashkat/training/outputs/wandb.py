"""Log a run to Weights & Biases."""

from typing import TYPE_CHECKING, Any

from ...errors import InputError, explain, is_installed
from ..config import Wandb
from .tracker import Tracker

if TYPE_CHECKING:
    import numpy as np

__all__ = ["check_wandb", "open_wandb"]

# Of KAT's code.
_PROJECT = "scale-kan"


def check_wandb(settings: Wandb) -> list[str]:
    """Return a note if logging is on and wandb is not installed.

    Raises:
        InputError: flags of Weights & Biases are given without logging.
    """
    if not settings.log_wandb and (settings.wandb_project or settings.wandb_tags or settings.wandb_resume_id):
        raise InputError("--wandb-project, --wandb-tags and --wandb-resume-id need --log-wandb")
    if not settings.log_wandb or is_installed("wandb"):
        return []
    return ["Nothing goes to Weights & Biases, as --log-wandb needs a package that is not installed: pip install wandb"]


def open_wandb(settings: Wandb, name: str, flags: dict[str, Any]) -> Tracker:
    """Start a run at Weights & Biases if logging is on and wandb is installed.

    Args:
        settings: the section of the configuration.
        name: name of the run.
        flags: settings to store with it.

    Returns:
        What logs an epoch's row.

    Raises:
        InputError: Weights & Biases does not start.
    """
    if not settings.log_wandb or not is_installed("wandb"):
        return Tracker()
    import wandb

    with explain("Weights & Biases does not start", "; WANDB_MODE=offline logs to files"):
        run = wandb.init(
            project=settings.wandb_project or _PROJECT,
            name=name,
            config=flags,
            tags=list(settings.wandb_tags),
            resume="must" if settings.wandb_resume_id else None,
            id=settings.wandb_resume_id or None,
        )
    return _Wandb(run)


class _Wandb(Tracker):
    name, is_on = "Weights & Biases", True

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, row: dict[str, Any], picture: "np.ndarray | None" = None) -> None:
        import wandb

        # One call is one step there.
        self._run.log(row if picture is None else {**row, "functions": wandb.Image(picture)})

    def close(self, has_failed: bool = False) -> None:
        # While this run goes on, wandb.init() returns it to the process's next run.
        self._run.finish(exit_code=int(has_failed))
