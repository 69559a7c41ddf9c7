"""Draw ``docs/benchmarks/figures/*.svg`` from the committed results."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..parts.common import LABELS, RESULTS, ROOT, Row, read
from ..parts.contenders import SIZES, WAYS
from ..recipes.paired import groups, scores
from .study import STUDIES, pairs

__all__ = ["FIGURES", "draw"]

OUTPUT = ROOT / "docs" / "benchmarks" / "figures"

Document = dict[str, Any]

# A fixed salt gives the same file for the same result.
_STYLE: dict[Any, Any] = {"svg.hashsalt": "flashkat", "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False}
_STYLE |= {"axes.spines.right": False, "font.size": 9}
_WAYS = {"eager": "eager", "compiled": "compiled", "graphs": "compiled, CUDA graphs"}
_BACKENDS = {
    "timm": "loading",
    "memory": "from the GPU's memory",
    "dali": "loading, NVIDIA DALI",
    "dali-cpu": "loading, NVIDIA DALI on the CPU",
}
_COLOURS = {name: f"C{index}" for index, name in enumerate(LABELS)}


def _kernels(document: Document) -> Figure:
    """Draw the time by width, for both passes in bf16, with the limit of the copy's bandwidth."""
    figure, panels = _panels(2)
    for axes, direction in zip(panels, ("forward", "backward"), strict=True):
        wanted = {"case": "default", "direction": direction, "dtype": "bf16", "numerator_rows": 1}
        rows = [row for row in document["rows"] if wanted.items() <= row.items()]
        for name, found in _by_contender(rows):
            _line(axes, name, [row["shape"][-1] for row in found], [row["median_us"] for row in found])
        ours = [row for row in rows if row["contender"] == "ours"]
        widths = [row["shape"][-1] for row in ours]
        limits = [row["bytes"] / row["copy_gb_per_s"] / 1e3 for row in ours]
        axes.plot(widths, limits, "k:", label="bytes / copy bandwidth")
        axes.set(xscale="log", yscale="log", xlabel="D", ylabel="microseconds", title=f"{direction}, bf16")
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.minorticks_off()
    _legend_beside(panels)
    return figure


def _scaling(document: Document) -> Figure:
    """Draw the bandwidth by number of elements, for both passes."""
    figure, panels = _panels(2)
    for axes, direction in zip(panels, ("forward", "backward"), strict=True):
        rows = [row for row in document["rows"] if row["direction"] == direction]
        for name, found in _by_contender(rows):
            _line(axes, name, [row["elements"] for row in found], [row["gb_per_s"] / 1e3 for row in found])
        axes.set(xlabel="elements", ylabel="TB/s", title=f"{direction}, bf16", ylim=(0, None))
        axes.set_xscale("log", base=2)
        axes.legend()
    return figure


def _rounding(document: Document) -> Figure:
    """Draw the errors by batch size. Contenders that ran at one size are points."""
    figure, panels = _panels(2)
    for axes, gradient in zip(panels, ("da", "db"), strict=True):
        for name, found in _by_contender(document["rows"]):
            _line(axes, name, [row["batch"] for row in found], [row[f"{gradient}_error"] for row in found])
        axes.set(yscale="log", xlabel="batch", ylabel="mean absolute error", title=f"gradient {gradient}, float32")
        axes.set_xscale("log", base=2)
    _legend_beside(panels)
    return figure


def _host_time(document: Document) -> Figure:
    """Draw bars of the host time of forward and backward."""
    figure, panels = _panels(2)
    dtypes = sorted({row["dtype"] for row in document["rows"]})
    for axes, dtype in zip(panels, dtypes, strict=False):
        wanted = {"what": "forward and backward", "dtype": dtype}
        rows = [row for row in document["rows"] if wanted.items() <= row.items()]
        for name, found in reversed(list(_by_contender(rows))):
            axes.barh(LABELS[name], found[0]["median_us"], color=_COLOURS[name])
        axes.set(xlabel="microseconds on the host", title=f"forward and backward, {dtype}")
    return figure


def _curves(document: Document) -> Figure:
    """Draw the difference of the losses' running means, a panel per model and initialisation."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(document["rows"], key=lambda row: row["pair"]):
        groups.setdefault(row["pair"].partition("-")[0], []).append(row)
    figure, panels = _panels(len(groups))
    length = document["settings"]["mean_over"]
    for axes, rows in zip(panels, groups.values(), strict=True):
        for row in rows:
            one, other = map(np.asarray, row["curves"])
            apart = np.abs(np.convolve(one - other, np.full(length, 1 / length), "valid"))
            label = " ".join(row["pair"].split("-")[:0:-1])
            axes.plot(np.arange(length, len(one) + 1), apart, linewidth=1, label=label)
        model = ", ".join(rows[0]["other"].split(", ")[:2])
        axes.set(
            xlabel="step", ylabel=f"difference of losses, means of {length} steps", yscale="log", ylim=(1e-7, 1),
            title=f"{model}, against eager",
        )  # fmt: skip
        axes.legend(fontsize=7, loc="lower right")
    return figure


def _cifar10(document: Document) -> Figure:
    """Draw accuracy and training loss over the epochs. Averaged weights are dashed."""
    figure, (accuracy, loss) = _panels(2)
    names = list(dict.fromkeys(row["contender"] for row in document["rows"]))
    for row in document["rows"]:
        name, curve = row["contender"], row["curve"]
        colour = f"C{names.index(name)}"
        accuracy.plot(curve["epoch"], curve["eval_top1"], color=colour, label=_once(accuracy, name))
        averaged = _once(accuracy, f"{name}, averaged")
        accuracy.plot(curve["epoch"], curve["eval_ema_top1"], "--", color=colour, label=averaged)
        loss.plot(range(1, row["epochs"] + 1), row["train_losses"], color=colour, label=_once(loss, name))
    accuracy.set(xlabel="epoch", ylabel="top-1 in %", title="CIFAR-10, test images")
    loss.set(xlabel="epoch", ylabel="training loss", title="augmented and mixed images")
    for axes in (accuracy, loss):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    return figure


def _recipes(document: Document) -> Figure:
    """Draw the difference of each KAT from each ViT on the test images: points by seed, the mean with its interval."""
    settings = [(epochs, rows) for (split, epochs, start), rows in groups(document["rows"]).items()
                if split == "test" and not start and any(pairs(rows))]  # fmt: skip
    figure, panels = _panels(max(1, len(settings)))
    for axes, (epochs, rows) in zip(panels, settings, strict=False):
        found = scores(rows)
        names = []
        for place, (kat, vit, seen) in enumerate(pairs(rows)):
            names.append(f"{kat}\n{vit}")
            points = [found[kat][seed] - found[vit][seed] for seed in found[kat].keys() & found[vit].keys()]
            axes.plot(sorted(points), [place] * len(points), "o", color="C0", alpha=0.4, markersize=4)
            axes.errorbar(seen.mean, place, xerr=seen.high - seen.mean, fmt="D", color="C3", capsize=3, markersize=4)
        axes.axvline(0, color="k", linewidth=0.8)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set(xlabel="points of top-1", title=f"KAT less ViT, {epochs} epochs", ylim=(-0.6, len(names) - 0.4))
    return figure


def _once(axes: Axes, label: str) -> str:
    """Return a label for the legend, or none if another seed's line has it already."""
    return "_nolegend_" if label in axes.get_legend_handles_labels()[1] else label


def _training(document: Document) -> Figure:
    """Draw the speed over the ViT's by size, a panel per way, in bf16 at the usual batch."""
    return _models([row for row in document["rows"] if row["case"] == "bf16"])


def _inference(document: Document) -> Figure:
    """Draw the speed over the ViT's by size, a panel per way, at the largest batch."""
    largest = max(row["batch"] for row in document["rows"])
    return _models([row for row in document["rows"] if row["batch"] == largest])


def _models(rows: list[Row]) -> Figure:
    ways = [way for way in WAYS if any(row["way"] == way for row in rows)]
    sizes = [size for size in SIZES if any(row["size"] == size for row in rows)]
    figure, panels = _panels(len(ways))
    names = [name for name, _ in _by_contender(rows)]
    width = 0.8 / len(names)
    highest = 1.15 * max(row["over_vit"] or 0 for row in rows)  # room for the label of the highest bar
    for axes, way in zip(panels, ways, strict=True):
        for index, name in enumerate(names):
            found = [row for row in rows if (row["way"], row["contender"]) == (way, name) and row["over_vit"]]
            places = [sizes.index(row["size"]) + (index - (len(names) - 1) / 2) * width for row in found]
            heights = [row["over_vit"] for row in found]
            bars = axes.bar(places, heights, width, color=_COLOURS[name], label=LABELS[name])
            rates = [f"{row['images_per_s']:,.0f}" for row in found]
            axes.bar_label(bars, rates, fontsize=6, rotation=90, padding=2)
        axes.set_xticks(range(len(sizes)), [size.capitalize() for size in sizes])
        axes.set(title=_WAYS[way], ylabel="images/s over ViT's; images/s above", ylim=(0, highest))
    # Patches, as not every panel has every contender.
    patches = [Patch(color=_COLOURS[name], label=LABELS[name]) for name in names]
    panels[-1].legend(handles=patches, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _loading(document: Document) -> Figure:
    """Draw the images per second by number of workers, a panel per kind of images."""
    kinds = list(dict.fromkeys(row["images"] for row in document["rows"]))
    figure, panels = _panels(len(kinds))
    for axes, kind in zip(panels, kinds, strict=True):
        rows = [row for row in document["rows"] if row["images"] == kind]
        workers = sorted({row["workers"] for row in rows})
        for backend, label in _BACKENDS.items():
            own = [row for row in rows if row["backend"] == backend]
            if own:
                rates = [row["images_per_s"] for row in own]
                axes.plot([row["workers"] for row in own], rates, marker="o", markersize=3, label=label)
        if rows[0]["step_images_per_s"]:
            step = [rows[0]["step_images_per_s"]] * len(workers)
            axes.plot(workers, step, "k:", label="step, KAT-Tiny, CUDA graphs")
        axes.legend(fontsize=7)
        axes.set(xlabel="workers", ylabel="images/s", title=f"{kind}, {rows[0]['pixels']} px", ylim=(0, None))
        axes.set_xscale("log", base=2)
        axes.set_xticks(workers, [str(number) for number in workers])
        axes.minorticks_off()
    return figure


def _scaling_gpus(document: Document) -> Figure:
    """Draw the images per second by number of GPUs, a panel per size, with a line for perfect scaling."""
    rows = [row for row in document["rows"] if row["way"] == "default"]
    sizes = [size for size in SIZES if any(row["size"] == size for row in rows)]
    figure, panels = _panels(len(sizes))
    for axes, size in zip(panels, sizes, strict=True):
        for name, found in _by_contender([row for row in rows if row["size"] == size]):
            found.sort(key=lambda row: row["gpus"])
            numbers = [row["gpus"] for row in found]
            _line(axes, name, numbers, [row["images_per_s"] / 1e3 for row in found])
            if name == "ours" and numbers[0] == 1:
                one = found[0]["images_per_s"] / 1e3
                axes.plot(numbers, [one * number for number in numbers], "k:", label="one GPU times their number")
        axes.set(xlabel="GPUs", ylabel="thousand images/s", title=size.capitalize(), ylim=(0, None))
        axes.set_xticks(sorted({row["gpus"] for row in rows}))
    _legend_beside(panels)
    return figure


FIGURES: dict[str, Callable[[Document], Figure]] = {
    "training": _training,
    "scaling_gpus": _scaling_gpus,
    "inference": _inference,
    "loading": _loading,
    "kernels": _kernels,
    "rounding": _rounding,
    "host_time": _host_time,
    "scaling": _scaling,
    "curves": _curves,
    "cifar10": _cifar10,
    **dict.fromkeys(STUDIES, _recipes),
}
"""The function that draws a result, by the name of its benchmark."""


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.5 * count, 3.2), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _by_contender(rows: list[Row]) -> Iterable[tuple[str, list[Row]]]:
    for name in LABELS:
        found = [row for row in rows if row["contender"] == name]
        if found:
            yield name, found


def _legend_beside(panels: list[Axes]) -> None:
    """Put one legend of all panels' lines beside the last one, as not every panel has every line."""
    lines = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[-1].legend(lines.values(), lines.keys(), fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def _line(axes: Axes, name: str, x: list[float], y: list[float]) -> None:
    width = 2.5 if name == "ours" else 1.2
    axes.plot(x, y, marker="o", markersize=3, linewidth=width, color=_COLOURS[name], label=LABELS[name])


def draw(results: Path, output: Path) -> list[Path]:
    """Draw all results of a folder, and return the paths of the figures."""
    paths = []
    for name, figure in FIGURES.items():
        if (results / f"{name}.json").exists():
            output.mkdir(parents=True, exist_ok=True)
            paths.append(output / f"{name}.svg")
            with matplotlib.rc_context(_STYLE):
                figure(read(results / f"{name}.json")).savefig(paths[-1], metadata={"Date": None})
    return paths


def main(argv: Sequence[str] | None = None) -> None:
    """Draw all figures, and print their paths."""
    argparse.ArgumentParser(prog="python -m benchmarks.report.figures", description=__doc__).parse_args(argv)
    for path in draw(RESULTS, OUTPUT):
        print(path)


if __name__ == "__main__":
    main()
