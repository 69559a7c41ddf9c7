"""Plot the functions that a model's rationals have learned: ``flashkat plot``."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checkpoints.load import notes_on_average
from ..compat.activations import Activation
from ..data.config import data_config
from ..data.datasets import open_dataset
from ..data.loaders import evaluation_loader
from ..errors import InputError, explain, require
from ..evaluation import Config
from ..evaluation.restore import restore
from ..nn.group_rational import GroupRational
from ..nn.starts import starting_coefficients
from ..ops import rational
from ..system.device import place, resolve_device
from ..system.files import check_writable, replaced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_rationals", "input_ranges", "plot"]

_DEFAULT_RANGE = (-3.0, 3.0)
Rational = GroupRational | Activation

_FORMATS = (".png", ".svg", ".pdf")
# A panel spans the inputs of its rational between these quantiles.
_QUANTILES = (0.001, 0.999)
_BATCHES_FOR_RANGE = 4
# Values drawn from each batch: enough for quantiles in thousandths.
_SAMPLES = 100_000


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
    trained, runtime = config.trained, config.runtime
    path = Path(output or Path(trained.checkpoint).with_name("rationals.png"))
    if not Path(trained.checkpoint).exists():
        raise InputError(f"no checkpoint at {trained.checkpoint}")
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"cannot draw to {path}: give a name that ends in {', '.join(_FORMATS)}")
    check_writable(path)
    found = restore(config.model, trained, config.data, say)
    model, data = found.module, found.data
    for note in notes_on_average(found.checkpoint, trained.use_ema):
        say(note)
    if not _rationals(model):
        raise InputError(f"{found.name} has no rationals to draw")
    ranges = {}
    if data.data_dir:
        images = data_config(model, data, found.name)
        device = resolve_device(runtime.device)
        dataset = open_dataset(data, data.val_split)
        for note in dataset.notes:
            say(note)
        loader = evaluation_loader(dataset, images, data, runtime, device)
        batches = (images for index, (images, _) in enumerate(loader) if index < _BATCHES_FOR_RANGE)
        ranges = input_ranges(place(model, runtime, device), batches)
    epoch = found.checkpoint.get("epoch")
    title = f"{found.name}: learned rationals" + (f" after epoch {epoch + 1}" if isinstance(epoch, int) else "")
    figure = draw_rationals(model.cpu(), ranges, title)
    with explain(f"cannot write {path}"), replaced(path) as partial:
        figure.savefig(partial, dpi=120, format=path.suffix[1:].lower())
    return path


@torch.inference_mode()
def input_ranges(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, tuple[float, float]]:
    """Measure the range of inputs that each rational of a model sees, from the 0.1% to the 99.9% quantile.

    Args:
        model: any module with :class:`flashkat.GroupRational` modules in it, or those of ``flashkat.compat``.
        batches: inputs of the model.

    Returns:
        (low, high) by the rational's module name.
    """
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].flatten()
            if values.numel() > _SAMPLES:
                chosen = torch.randint(values.numel(), (_SAMPLES,), generator=torch.Generator().manual_seed(0))
                values = values[chosen.to(values.device)]
            seen.setdefault(name, []).append(values.float().cpu())

        return hook

    rationals = _rationals(model)
    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in rationals.items()]
    try:
        model.eval()
        for images in batches:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    quantiles = torch.tensor(_QUANTILES)
    return {name: tuple(torch.cat(values).quantile(quantiles).tolist()) for name, values in seen.items()}


def draw_rationals(model: nn.Module, ranges: dict[str, tuple[float, float]] | None = None, title: str = "") -> "Figure":
    """Draw every rational of a model: a panel per layer, a line per group, the starting function dashed.

    Args:
        model: any module with :class:`flashkat.GroupRational` modules in it, or those of
            ``flashkat.compat``, on the CPU.
        ranges: (low, high) of x by the rational's module name; [-3, 3] for rationals without one.
        title: title of the figure.

    Returns:
        A matplotlib figure.

    Raises:
        InputError: the model has no such modules.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rationals = _rationals(model)
    if not rationals:
        raise InputError(
            "the model has no rationals to draw: it needs GroupRational modules, or those of flashkat.compat"
        )
    # Each block of a transformer has two rationals. They share a column.
    rows = 2 if len(rationals) > 4 and len(rationals) % 2 == 0 else 1
    columns = math.ceil(len(rationals) / rows)
    figure = Figure(figsize=(max(5, 2.6 * columns + 0.5), 2.4 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).T.flatten()
    colours = matplotlib.colormaps["viridis"]
    for panel, (name, module) in zip(panels, rationals.items(), strict=True):
        low, high = (ranges or {}).get(name, _DEFAULT_RANGE)
        x = torch.linspace(low, high, 400, dtype=torch.float64)
        tables = _tables(module)
        lines = _curves(x, *tables)
        for group, y in enumerate(lines):
            panel.plot(x, y, color=colours(group / max(1, len(lines) - 1)), linewidth=1.2)
        start = starting_coefficients(module.start, *(table.shape[1] for table in tables))
        start_name = getattr(module.start, "name", module.start)
        panel.plot(x, _curves(x, *(c[None] for c in start))[0], "k--", linewidth=1, label=f"start: {start_name}")
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.locator_params(axis="x", nbins=5)  # a narrow range has long labels
        panel.legend(fontsize=7, frameon=False)
        panel.grid(alpha=0.3)
    explanation = "a line per group, dashed: start"
    figure.suptitle(f"{title}\n{explanation}" if title else explanation, fontsize=10)
    return figure


def _rationals(model: nn.Module) -> dict[str, Rational]:
    """Return the rationals of a model by their module names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Rational)}


def _tables(module: Rational) -> tuple[Tensor, Tensor]:
    return (module.numerator, module.denominator) if isinstance(module, GroupRational) else module.tables


@torch.no_grad()
def _curves(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return F(x) for every group, (groups, points)."""
    groups = max(len(numerator), len(denominator))
    return rational(x.expand(groups, -1), numerator.double(), denominator.double(), dim=0)
