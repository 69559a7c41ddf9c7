"""Pictures of the functions that rationals have learned."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...errors import InputError
from ..fitting import FITTED
from ..starts import starting_coefficients
from .rationals import Learned, learned, start_name

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

__all__ = ["NO_RATIONALS", "draw_functions", "draw_rationals", "pixels", "start_of"]

NO_RATIONALS = "the model has no rationals to draw: it needs GroupRational modules, or those of flashkat.compat"

_POINTS = 400


def draw_rationals(model: nn.Module, ranges: dict[str, tuple[float, float]] | None = None, title: str = "") -> "Figure":
    """Draw every rational of a model: a panel per layer, a line per group, the starting function dashed.

    Args:
        model: any module with :class:`flashkat.GroupRational` modules in it, or those of ``flashkat.compat``.
        ranges: (low, high) of x by the rational's module name; [-3, 3] for rationals without one.
        title: title of the figure.

    Returns:
        A matplotlib figure.

    Raises:
        InputError: the model has no such modules.
    """
    return draw_functions(learned(model), ranges, title)


def draw_functions(
    functions: Mapping[str, Learned], ranges: Mapping[str, tuple[float, float]] | None = None, title: str = ""
) -> "Figure":
    """Draw learned functions, as :func:`draw_rationals` does."""
    import matplotlib
    from matplotlib.figure import Figure

    if not functions:
        raise InputError(NO_RATIONALS)
    # Each block of a transformer has two rationals. They share a column.
    rows = 2 if len(functions) > 4 and len(functions) % 2 == 0 else 1
    columns = math.ceil(len(functions) / rows)
    figure = Figure(figsize=(max(5, 2.6 * columns + 0.5), 2.4 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).T.flatten()
    colours = matplotlib.colormaps["viridis"]
    for panel, (name, function) in zip(panels, functions.items(), strict=True):
        low, high = (ranges or {}).get(name, FITTED)
        x = torch.linspace(low, high, _POINTS, dtype=torch.float64)
        lines = function(x)
        for group, y in enumerate(lines):
            panel.plot(x, y, color=colours(group / max(1, len(lines) - 1)), linewidth=1.2)
        start = start_of(function)
        panel.plot(x, start(x)[0], "k--", linewidth=1, label=f"start: {start_name(function.start)}")
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.locator_params(axis="x", nbins=5)  # a narrow range has long labels
        panel.legend(fontsize=7, frameon=False)
        panel.grid(alpha=0.3)
    explanation = "a line per group, dashed: start"
    figure.suptitle(f"{title}\n{explanation}" if title else explanation, fontsize=10)
    return figure


def start_of(function: Learned) -> Learned:
    """Return the one function that all groups of a rational started from."""
    degrees = function.numerator.shape[1], function.denominator.shape[1]
    numerator, denominator = starting_coefficients(function.start, *degrees)
    return Learned(function.start, numerator[None], denominator[None])


def pixels(figure: "Figure", dpi: int = 80) -> "np.ndarray":
    """Return a figure as an RGB image, uint8 of shape (height, width, 3)."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
