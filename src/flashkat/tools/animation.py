"""Show how the functions of a run changed: ``flashkat plot --animate``."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import InputError, explain, require
from ..evaluation import Config
from ..nn.learned.drawing import draw_functions, pixels
from ..system.files import replaced
from .inspect.history import Snapshot, snapshots
from .inspect.measures import interval
from .inspect.subject import open_subject
from .plot import ANIMATED, check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["animate"]

_DPI = 80
_SECONDS, _SECONDS_AT_THE_END = 0.5, 2.0


def animate(config: Config, output: str | None = None, say: Callable[[str], None] = lambda line: None) -> Path:
    """Draw the rationals of a run's checkpoints, one after the other.

    Args:
        config: ``trained`` names one checkpoint. Those of its run lie beside it. Images in ``data.data_dir``, if given,
            determine the ranges of x.
        output: a .gif or .mp4 file; None writes rationals.gif beside the checkpoint.
        say: called with each line for the user.

    Returns:
        The path of the animation.

    Raises:
        InputError: as for :func:`flashkat.tools.plot.plot`, there is one checkpoint alone, or no ffmpeg for an .mp4.
    """
    require("matplotlib")
    path = Path(output or Path(config.trained.checkpoint).with_name("rationals.gif"))
    check_output(config, path, ANIMATED)
    is_film = path.suffix.lower() == ".mp4"
    if is_film:
        from matplotlib.animation import FFMpegWriter

        if not FFMpegWriter.isAvailable():
            raise InputError(f"cannot write {path}: ffmpeg is not installed. Install it, or give a name ending in .gif")
    subject = open_subject(config, say)
    file = Path(config.trained.checkpoint)
    series = snapshots(file, subject, config.trained.use_ema, say)
    if len(series) < 2:
        raise InputError(
            f"an animation needs several checkpoints of a run, and {file.parent} has one: "
            "flashkat train --checkpoint-hist keeps more"
        )
    ranges = {name: interval(values) for name, values in subject.inputs.items()}
    frames = _frames(series, ranges, f"{subject.name}: learned rationals")
    with explain(f"cannot write {path}"), replaced(path) as partial:
        (_write_film if is_film else _write_gif)(partial, frames)
    return path


def _frames(series: Sequence[Snapshot], ranges: Mapping[str, tuple[float, float]], title: str) -> "Iterator[Figure]":
    """Yield one figure, changed for each snapshot. Its axes stay as they are."""
    figure = draw_functions(series[0].functions, ranges, title)
    panels = {panel.get_title(): panel for panel in figure.axes}
    curves = {}
    for name, panel in panels.items():
        x = torch.as_tensor(panel.lines[0].get_xdata(), dtype=torch.float64)
        start = torch.as_tensor(panel.lines[-1].get_ydata(), dtype=torch.float64)
        curves[name] = [snapshot.functions[name](x) for snapshot in series]
        shown = torch.cat([start, *(each.flatten() for each in curves[name])])
        finite = shown[shown.isfinite()]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        room = 0.05 * (high - low or 1.0)
        panel.set_ylim(low - room, high + room)
    for index, snapshot in enumerate(series):
        for name, panel in panels.items():
            for line, y in zip(panel.lines, curves[name][index], strict=False):  # the last line is the start
                line.set_ydata(y.numpy())
        figure.suptitle(f"{title} {snapshot.label}\na line per group, dashed: start", fontsize=10)
        yield figure


def _write_gif(path: Path, frames: "Iterator[Figure]") -> None:
    from PIL import Image

    first, *others = (Image.fromarray(pixels(figure, _DPI)) for figure in frames)
    durations = [1000 * _SECONDS] * len(others) + [1000 * _SECONDS_AT_THE_END]
    first.save(path, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)


def _write_film(path: Path, frames: "Iterator[Figure]") -> None:
    from matplotlib.animation import FFMpegWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # The partial file's name does not end in .mp4.
    writer = FFMpegWriter(fps=round(1 / _SECONDS), codec="h264", extra_args=["-f", "mp4", "-pix_fmt", "yuv420p"])
    with contextlib.ExitStack() as stack:
        for index, figure in enumerate(frames):
            if not index:
                FigureCanvasAgg(figure)
                stack.enter_context(writer.saving(figure, str(path), _DPI))
            writer.grab_frame()
