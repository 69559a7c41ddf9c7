"""Write the results of the study of recipes: choices, claims, fine-tuning and learned functions."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..parts.common import Row, read
from ..recipes.paired import Difference, difference, groups, scores, tuned
from .markdown import markdown, provenance, verdict

__all__ = ["STUDIES", "pairs", "studied"]

STUDIES = {
    "recipes_cifar10": "CIFAR-10",
    "recipes_cifar10_narrow": "CIFAR-10, narrow models",
    "recipes_digits": "digits",
}
"""The parts of the study, by the names of their results."""

_FROM_VIT = ",from=vit"


def studied(results: Path) -> str:
    """Return the generated part of the study's page."""
    return "\n\n".join(
        _section(name, label, read(results / f"{name}.json"))
        if (results / f"{name}.json").exists()
        else f"### {label[0].upper()}{label[1:]}\n\nNot measured yet."
        for name, label in STUDIES.items()
    )


def _section(name: str, label: str, document: Mapping[str, Any]) -> str:
    settings = document["settings"]
    text = [f"### {label[0].upper()}{label[1:]}"]
    by_setting = groups(document["rows"])
    for (split, epochs, from_epochs), rows in by_setting.items():
        if from_epochs:
            text += [_finetuning(split, epochs, from_epochs, rows)]
        elif split == "test":
            text += _claims(epochs, rows, "gpu" in document["environment"])
        else:
            text += _choices(epochs, rows)
    claimed = [row for (split, *_), rows in by_setting.items() if split == "test" for row in rows]
    if any(any(pairs(rows)) for (split, _, start), rows in by_setting.items() if split == "test" and not start):
        text.insert(1, f"![KAT less ViT by seed, {label}](../figures/{name}.svg)")
    text += [_functions(claimed)] if any(row["functions"] for row in claimed) else []
    recipe = ", ".join(f"{factor} {level}" for factor, level in settings["recipe"].items())
    text += [
        f"Levels that a name leaves out: {recipe}. The models have the size *{settings['size']}* "
        f"(`{settings['model']}`). Flags that all trainings share: `{settings['flags']}`.",
        verdict(document),
        provenance(document["environment"]),
    ]
    return "\n\n".join(filter(None, text))


def pairs(rows: Sequence[Row], metric: str = "top1") -> Iterator[tuple[str, str, Difference]]:
    """Yield each KAT and each ViT with several common seeds, and their difference, from the test images."""
    found = scores(rows, metric)
    for kat in (name for name in found if name.startswith("kat")):
        for vit in (name for name in found if name.startswith("vit")):
            seen = difference(found[kat], found[vit])
            if seen is not None and seen.seeds > 1:
                yield kat, vit, seen


def _claims(epochs: int, rows: Sequence[Row], is_timed: bool) -> list[str]:
    """Return the comparison of KATs with ViTs on the test images. Speeds are shown if they were measured on a GPU."""
    found, averaged = scores(rows), scores(rows, "ema_top1")
    means = []
    for name, by_seed in found.items():
        own = [row for row in rows if row["contender"] == name]
        speed = [f"{statistics.median(row['images_per_second'] for row in own):,.0f}"] if is_timed else []
        accuracies = _percent(by_seed), _percent(averaged[name])
        means.append([f"`{name}`", str(len(by_seed)), *accuracies, f"{own[0]['gflops']:.4f}", *speed])
    of_averages = {(kat, vit): seen for kat, vit, seen in pairs(rows, "ema_top1")}
    table = [
        [f"`{kat}`", f"`{vit}`", str(seen.seeds), _interval(seen), _counts(seen), _interval(of_averages[kat, vit])]
        for kat, vit, seen in pairs(rows)
    ]
    header = ["KAT", "ViT", "seeds", "difference", "KAT better, equal, worse", "difference, averaged weights"]
    return [
        f"Test images, {epochs} epochs on all training images. Top-1 of the last epoch, as means over the seeds:",
        markdown(["", "seeds", "top-1", "top-1, averaged", "GFLOPs", *(["images/s"] if is_timed else [])], means),
        *([_PAIRED, markdown(header, table)] if table else []),
    ]


_PAIRED = "KAT less ViT by seed, in points: the mean ± its standard error [its 95% interval by Student's t]."


def _choices(epochs: int, rows: Sequence[Row]) -> list[str]:
    """Return the choices on held-out training images: each contender against the best-tuned one of its family."""
    found, averaged, best = scores(rows), scores(rows, "ema_top1"), tuned(rows)
    table = []
    for name, by_seed in sorted(found.items(), key=lambda item: (item[0][:3], -statistics.fmean(item[1].values()))):
        base = best.get(name[:3], (name, 1))[0]
        seen = None if base == name else difference(by_seed, found[base])
        cells = [_interval(seen) if seen and seen.seeds > 1 else f"{seen.mean:+.2f}"] if seen else [""]
        table.append([f"`{name}`", str(len(by_seed)), _percent(by_seed), _percent(averaged[name]), *cells])
    header = ["", "seeds", "top-1", "top-1, averaged", "less the best-tuned recipe"]
    return [
        f"Held-out training images, {epochs} epochs on the rest. Choices are made here. The last column compares with "
        "the same model's recipe, at the best learning rate and weight decay tried:",
        markdown(header, table),
    ]


def _finetuning(split: str, epochs: int, from_epochs: int, rows: Sequence[Row]) -> str:
    """Return the table of models that started from a ViT: their accuracy, and when they reached the ViT's."""
    found = scores(rows)
    goals = {row["seed"]: row["top1"] for row in rows if row["contender"] == f"vit{_FROM_VIT}"}
    table = []
    for name, by_seed in found.items():
        reached = [
            _reached(row["curve"], goals[row["seed"]])
            for row in rows
            if row["contender"] == name and row["seed"] in goals
        ]
        times = ", ".join("never" if epoch is None else str(epoch) for epoch in reached)
        table.append([f"`{name}`", str(len(by_seed)), _percent(by_seed), times])
    where = "the test images" if split == "test" else "held-out training images"
    return "\n\n".join(
        [
            f"From a ViT that trained {from_epochs} epochs, {epochs} more epochs with the same flags, on {where}. "
            "The last column has the first evaluated epoch, seed by seed, at which a model was as good as the ViT that "
            "went on was at its end:",
            markdown(["", "seeds", "top-1", "epochs to the ViT's last accuracy"], table),
        ]
    )


def _reached(curve: Mapping[str, list[float]], goal: float) -> int | None:
    return next((int(epoch) for epoch, top1 in zip(curve["epoch"], curve["top1"], strict=True) if top1 >= goal), None)


def _functions(rows: Sequence[Row]) -> str:
    """Return the table of the functions that the KAT with the most seeds has learned."""
    seeds = Counter(row["contender"] for row in rows if row["functions"])
    name = seeds.most_common(1)[0][0]
    layers: dict[str, list[Row]] = {}
    for row in rows:
        if row["contender"] == name:
            for each in row["functions"]:
                layers.setdefault(each["layer"], []).append(each)
    table = []
    for layer, found in layers.items():
        nearest = Counter(each["nearest"] for each in found).most_common()
        slopes = [each["slope_at_0"] for each in found]
        table.append(
            [
                f"`{layer}`",
                ", ".join(f"{function} ({count})" for function, count in nearest),
                *(f"{statistics.fmean(each[key] for each in found):.2f}" for key in ("distance", "moved")),
                f"{statistics.fmean(slopes):.2f} ({min(slopes):.2f} to {max(slopes):.2f})",
            ]
        )
    header = ["", "nearest function (seeds)", "distance from it", "moved from the start", "slope at 0, mean and range"]
    return "\n\n".join([f"The functions that the rationals of `{name}` learned, on [-3, 3]:", markdown(header, table)])


def _percent(by_seed: Mapping[int, float]) -> str:
    return f"{statistics.fmean(by_seed.values()):.2f}%"


def _interval(seen: Difference) -> str:
    return f"{seen.mean:+.2f} ± {seen.error:.2f} [{seen.low:+.2f}, {seen.high:+.2f}]"


def _counts(seen: Difference) -> str:
    return f"{seen.better}, {seen.equal}, {seen.seeds - seen.better - seen.equal}"
