"""Training: building a run from its arguments, the loop, progress on the screen, and what a run leaves behind."""

from .run import train

__all__ = ["train"]
