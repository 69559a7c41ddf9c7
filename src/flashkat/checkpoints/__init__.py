"""Write checkpoint files in one step, read them without running code, and load them into models."""

from .adapt import stated_size
from .io import check_output, read, write, write_weights
from .load import fit, load_weights, notes_on_average, notes_on_fit, start_from, weights

__all__ = [
    "check_output",
    "fit",
    "load_weights",
    "notes_on_average",
    "notes_on_fit",
    "read",
    "start_from",
    "stated_size",
    "weights",
    "write",
    "write_weights",
]
