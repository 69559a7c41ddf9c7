"""What takes the rows of a run, and pictures of its functions, beside the run's folder."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Tracker"]


class Tracker:
    """Takes nothing. Each service has a subclass.

    Attributes:
        name: the service's name, for messages.
        is_on: whether it takes what it is given.
    """

    name = ""
    is_on = False

    def log(self, row: dict[str, Any], picture: "np.ndarray | None" = None) -> None:
        """Take an epoch's row, and a picture of the learned functions, uint8 of shape (height, width, 3)."""

    def close(self, has_failed: bool = False) -> None:
        """Write what is left, and end the log as one of a run that has failed or not."""
