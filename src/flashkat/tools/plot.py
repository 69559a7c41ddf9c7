"""Plot the functions that a model's rationals have learned: ``flashkat plot``."""

from collections.abc import Callable
from pathlib import Path

from ..errors import InputError, explain, require
from ..evaluation import Config
from ..nn.learned.drawing import draw_rationals
from ..nn.learned.inputs import input_ranges
from ..system.files import check_writable, replaced
from .inspect.measures import interval
from .inspect.subject import open_subject

__all__ = ["ANIMATED", "check_output", "draw_rationals", "input_ranges", "plot"]

_FORMATS = (".png", ".svg", ".pdf")
ANIMATED = (".gif", ".mp4")
"""The formats of ``--animate``."""


def plot(config: Config, output: str | None = None, say: Callable[[str], None] = lambda line: None) -> Path:
    """Draw the rationals of a checkpoint.

    Args:
        config: ``trained`` names the checkpoint. Images in ``data.data_dir``, if given, determine the ranges of x.
        output: a .png, .svg or .pdf file; None writes rationals.png beside the checkpoint.
        say: called with each line for the user.

    Returns:
        The path of the plot.

    Raises:
        InputError: the checkpoint or the data cannot be used, the model has no rationals, or the file's format is
            unknown.
    """
    require("matplotlib")
    path = Path(output or Path(config.trained.checkpoint).with_name("rationals.png"))
    check_output(config, path, _FORMATS)
    subject = open_subject(config, say)
    ranges = {name: interval(values) for name, values in subject.inputs.items()}
    figure = draw_rationals(subject.model, ranges, subject.title)
    with explain(f"cannot write {path}"), replaced(path) as partial:
        figure.savefig(partial, dpi=120, format=path.suffix[1:].lower())
    return path


def check_output(config: Config, path: Path, formats: tuple[str, ...]) -> None:
    """Raise InputError unless there is a checkpoint, and a picture in one of the formats can be written."""
    if not Path(config.trained.checkpoint).exists():
        raise InputError(f"no checkpoint at {config.trained.checkpoint}")
    if path.suffix.lower() not in formats:
        hint = ", or add --animate" if path.suffix.lower() in ANIMATED else ""
        raise InputError(f"cannot draw to {path}: give a name that ends in {', '.join(formats)}{hint}")
    check_writable(path)
