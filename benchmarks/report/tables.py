"""Write the tables of README.md and docs/benchmarks/*.md between their markers, from the committed results."""

import argparse
import ast
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import scaling_gpus
from ..parts.common import LABELS, RESULTS, ROOT, Row, read
from ..parts.contenders import SIZES, WAYS
from .markdown import machine, markdown, provenance, verdict
from .several import SUBJECTS, answered
from .study import STUDIES, studied

__all__ = ["SECTIONS", "overview", "pages", "render", "replace", "summary"]

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PAGES = ROOT / "docs" / "benchmarks"
EXPORT = ROOT / "docs" / "how-to" / "ship" / "export.md"
STUDY = PAGES / "recipes" / "index.md"

_KERNEL_WIDTHS = (192, 768, 3072)
_KERNEL_DTYPES = ("bf16", "fp32")

Document = dict[str, Any]


def _kernels(document: Document) -> str:
    rows = [row for row in document["rows"] if row["case"] == "default" and row["numerator_rows"] == 1]
    names = [name for name in LABELS if any(row["contender"] == name for row in rows)]
    table = []
    for direction in ("forward", "backward"):
        for dtype in _KERNEL_DTYPES:
            for width in _KERNEL_WIDTHS:
                found = {
                    row["contender"]: row
                    for row in rows
                    if (row["direction"], row["dtype"], row["shape"][-1]) == (direction, dtype, width)
                }
                if "ours" in found:
                    times = [_microseconds(found[name]["median_us"]) if name in found else "" for name in names]
                    ours = found["ours"]
                    ratio = f"{ours['median_us'] / found['gelu']['median_us']:.2f}"
                    table.append([direction, dtype, str(width), *times, ratio, f"{ours['of_copy']:.0%}"])
    header = ["pass", "dtype", "D", *(LABELS[name] for name in names), "ours / GELU", "of copy bandwidth"]
    text = (
        "Microseconds on the device for everything that a call launches. x has the shape (128, 197, D), with 8 groups "
        "and one numerator. The formula is the definition in PyTorch under autograd."
    )
    return "\n\n".join([text, markdown(header, table), *_outliers(document)])


def _outliers(document: Document) -> list[str]:
    """Return the text and table about the cost of the overflow-safe path."""
    times: dict[tuple[str, str], dict[str, float]] = {}
    for row in document["rows"]:
        if row["case"] == "outliers":
            times.setdefault((row["dtype"], row["direction"]), {})[row["outliers"]] = row["median_us"]
    if not times:
        return []
    table = [
        [*case, *(f"{found[outliers] / found['none']:.2f}" for outliers in ("number", "channel"))]
        for case, found in times.items()
    ]
    text = "The overflow-safe path, at D = 1536. Time with numbers of 10,000 in x, over the time without them:"
    return [text, markdown(["dtype", "pass", "one number", "one channel"], table)]


def _rounding(document: Document) -> str:
    rows: dict[int, dict[str, Row]] = {}
    for row in document["rows"]:
        rows.setdefault(row["batch"], {})[row["contender"]] = row
    batch, largest = min(rows), max(rows)
    table = [
        [LABELS[name], *_errors(row), "yes" if row["same_bits"] else "no", *_errors(rows[largest].get(name))]
        for name, row in _in_order(rows[batch])
    ]
    worst = {
        name: " and ".join(f"{rows[batch][name][f'{error}_max']:.1e}" for error in _ERRORS)
        for name in ("ours", "floor")
    }
    growth = [f"{rows[largest]['ours'][name] / rows[batch]['ours'][name]:.1f}" for name in _ERRORS]
    return "\n\n".join(
        [
            "Mean absolute error of the coefficients' gradients against float64, and its variance in parentheses. "
            f"Medians over {document['settings']['seeds']} draws. x is a float32 tensor ({batch}, 197, 768). "
            "It and the coefficients are drawn from N(0, 1).",
            markdown(["", "da", "db", "same bits every run", *(f"{k}, batch {largest}" for k in ("da", "db"))], table),
            f"The worst draw has errors of {worst['ours']}, the floor's worst draw {worst['floor']}. "
            f"At {largest // batch} times the batch, ours are {' and '.join(growth)} times as large. The sums "
            f"themselves grow as the square root of the batch, {(largest / batch) ** 0.5:.1f} times.",
        ]
    )


_ERRORS = {"da_error": "da_variance", "db_error": "db_variance"}


def _errors(row: Row | None) -> list[str]:
    return ["" if row is None else f"{row[error]:.1e} ({row[variance]:.1e})" for error, variance in _ERRORS.items()]


def _host_time(document: Document) -> str:
    times: dict[str, Row] = {}
    columns = []
    for row in document["rows"]:
        column = f"{row['what']}, {row['dtype']}"
        columns += [column] if column not in columns else []
        times.setdefault(row["contender"], {})[column] = _microseconds(row["median_us"])
    table = [[LABELS[name], *(row[column] for column in columns)] for name, row in _in_order(times)]
    return "\n\n".join(
        [
            "Microseconds that a call takes on the host, on a tiny tensor.",
            markdown(["", *columns], table),
        ]
    )


def _scaling(document: Document) -> str:
    ours = [row for row in document["rows"] if row["contender"] == "ours"]
    largest = max(row["elements"] for row in ours)
    parts = [f"{row['gb_per_s'] / 1e3:.2f} TB/s {row['direction']}" for row in ours if row["elements"] == largest]
    wrong = sorted({row["elements"] for row in ours if not row["right"]})
    where = f"wrong at {', '.join(map(_power, wrong))} elements" if wrong else "right at every size"
    return f"Bandwidth at {_power(largest)} elements: {', '.join(parts)}. The results are {where}."


def _cpu(document: Document) -> str:
    table = [
        [
            row["case"],
            *(f"{row[f'{name} {what} ms']:.2f}" for what in ("forward", "both") for name in ("ours", "gelu", "aten")),
            *(f"{row[f'{what} ratio']:.2f}" for what in ("forward", "both")),
        ]
        for row in document["rows"]
    ]
    times = [
        f"{name}, {what}" for what in ("forward", "both passes") for name in ("ours", "GELU", "PyTorch's operators")
    ]
    return "\n\n".join(
        [
            "Milliseconds of a call, with 8 groups. The path of PyTorch's operators is the one without a C compiler.",
            markdown(["", *times, "ours / GELU, forward", "both passes"], table),
        ]
    )


_PROGRAMS = {"eager": "eager PyTorch", "aoti": "AOTInductor", "onnx": "ONNX Runtime"}


def exported(results: Path) -> str:
    """Return the table of exported models, which has its place on the page about them."""
    document = read(results / "export.json")
    found = {(row["model"], row["way"]): row for row in document["rows"]}
    models = list(dict.fromkeys(model for model, _ in found))
    table = []
    for way, name in _PROGRAMS.items():
        rows = [found[model, way] for model in models if (model, way) in found]
        if rows:
            ratio = rows[0]["ms"] / rows[-1]["ms"]
            errors = [f"{row['difference']:.1e}" if row["difference"] else "" for row in rows]
            table.append([name, *(f"{row['ms']:.1f}" for row in rows), f"{ratio:.2f}", *errors])
    times, errors = ([f"{model}, {what}" for model in models] for what in ("ms", "difference"))
    header = ["", *times, f"{models[0]} / {models[-1]}", *errors]
    return "\n\n".join([markdown(header, table), verdict(document), provenance(document["environment"])])


def _curves(document: Document) -> str:
    settings = document["settings"]
    table = [
        [
            row["one"],
            row["other"],
            "never" if row["apart_at_step"] is None else f"step {row['apart_at_step']}",
            f"{row['largest_difference']:.2g}",
            f"{row['largest_difference_of_means']:.2g}",
            " and ".join(f"{loss:.3f}" for loss in row["last_losses"]),
        ]
        for row in sorted(document["rows"], key=lambda row: row["pair"])
    ]
    means = f"of means of {settings['mean_over']} steps"
    return "\n\n".join(
        [
            f"The same {settings['steps']} steps on CIFAR-10 in batches of {settings['batch_size']}, computed in two "
            "ways. *Nudged* is the same computation from a start whose weights differ by a rounding. It shows how far "
            "training spreads a rounding difference.",
            markdown(
                [
                    "",
                    "against",
                    f"apart by {settings['apart']}",
                    "largest difference",
                    means,
                    f"last {settings['mean_over']} steps' mean",
                ],
                table,
            ),
        ]
    )


def _cifar10(document: Document) -> str:
    settings = document["settings"]
    seeds: dict[str, list[Row]] = {}
    for row in document["rows"]:
        seeds.setdefault(row["contender"], []).append(row)
    columns = {
        "flags": lambda row: f"`{settings['contenders'][row['contender']]}`",
        "parameters": lambda row: f"{row['parameters']:,}",
        "epochs": lambda row: str(row["epochs"]),
        "top-1": lambda row: _mean([each["top1"] for each in seeds[row["contender"]]]),
        "top-1, averaged": lambda row: _mean([each["ema_top1"] for each in seeds[row["contender"]]]),
        "images/s, together": lambda row: _median(row["images_per_second_together"], ",.0f"),
        "seconds per epoch, together": lambda row: _median(row["seconds_per_epoch_together"], ".1f"),
        "of it waiting for data": lambda row: _median(row["data_wait_together"], ".0%"),
        "images/s, alone and without loading": lambda row: _median(row["images_per_second"], ",.0f"),
        "seconds per epoch, alone": lambda row: _median(row["seconds_per_epoch"], ".1f"),
        "peak memory": lambda row: "" if row["peak_memory_gib"] is None else f"{row['peak_memory_gib']:.2f} GiB",
    }
    firsts = [rows[0] for rows in seeds.values()]
    found = {name: [cell(row) for row in firsts] for name, cell in columns.items()}
    found = {name: cells for name, cells in found.items() if any(cells)}
    table = [[row["contender"], *cells] for row, *cells in zip(firsts, *found.values(), strict=True)]
    is_timed = any(name.endswith("alone") for name in found)
    alone = ". *Alone* means with the machine to itself, with an evaluation after each" if is_timed else ""
    return "\n\n".join(
        [
            f"Top-1 of the last epoch, of the weights and of their average{_over_seeds(settings)}. Batches of "
            f"{settings['batch_size']}, compiled with CUDA graphs, mixing in {_mixed(settings)} epochs. The seeds and "
            "all flags but those shown are the same. Speeds are medians over the epochs of the first seed. *Together* "
            f"means that all trainings ran at once on {settings['gpus']} GPUs of one machine, with an evaluation every "
            f"{settings['val_interval']} epochs{alone}.",
            markdown(["", *found], table),
            f"Flags that all trainings share: `{settings['flags']}`.",
        ]
    )


def _mean(values: Sequence[float]) -> str:
    """Return the mean of percentages, and each of several."""
    each = f" ({', '.join(f'{value:.2f}' for value in values)})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}%{each}"


def _over_seeds(settings: Mapping[str, Any]) -> str:
    several = len(settings["seeds"]) > 1
    return f", as the mean over seeds {' and '.join(map(str, settings['seeds']))} (and of each)" if several else ""


def _mixed(settings: Mapping[str, Any]) -> str:
    mixed = settings["mixed_epochs"]
    return "all" if mixed >= settings["epochs"] else f"the first {mixed}"


def _training(document: Document) -> str:
    text = (
        "Images per second, and peak memory in GiB in parentheses. The KATs have our kernels or the published ones. "
        "224 px, batches of 128 unless the case says another number, fused AdamW. bf16 and fp16 are autocast, fp32 is "
        "float32 with TF32."
    )
    return "\n\n".join([text, _models(document["rows"], "case")])


def _inference(document: Document) -> str:
    text = "Images per second, and peak memory in GiB in parentheses. Weights and images are in bf16, 224 px."
    return "\n\n".join([text, _models(document["rows"], "batch")])


def _models(rows: Sequence[Row], key: str) -> str:
    """Return a table with a line per case, and our KAT's speed and memory over the ViT's."""
    cases: dict[tuple[Any, str, str], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row[key], row["size"], row["way"]), {})[row["contender"]] = row
    names = [name for name in LABELS if any(name in found for found in cases.values())]
    firsts, ways = [case[0] for case in cases], list(WAYS)
    table = [
        [
            *map(str, case),
            *(_speed(cases[case][name]) if name in cases[case] else "" for name in names),
            *(_ratio(cases[case].get("ours", {}).get(ratio)) for ratio in ("over_vit", "peak_over_vit")),
        ]
        for case in sorted(cases, key=lambda case: (firsts.index(case[0]), SIZES.index(case[1]), ways.index(case[2])))
    ]
    return markdown([key, "size", "way", *(LABELS[name] for name in names), "ours / ViT", "memory, ours / ViT"], table)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _speed(row: Row) -> str:
    memory = "" if row["peak_gib"] is None else f" ({row['peak_gib']:.2f})"
    return f"{row['images_per_s']:,.0f}{memory}"


_BACKENDS = {
    "timm": "Pillow",
    "memory": "in the GPU's memory",
    "dali": "NVIDIA DALI",
    "dali-cpu": "NVIDIA DALI, decoding on the CPU",
}


def _loading(document: Document) -> str:
    rates: dict[str, dict[int, Row]] = {}
    for row in document["rows"]:
        name = f"{row['images']}, {row['pixels']} px, {_BACKENDS[row['backend']]}"
        rates.setdefault(name, {})[row["workers"]] = row
    workers = sorted({row["workers"] for row in document["rows"]})
    table = [
        [images, *(_delivered(found[count]) if count in found else "" for count in workers)]
        for images, found in rates.items()
    ]
    return "\n\n".join(
        [
            "Images per second of the training loader alone, with the recipes' augmentation. In parentheses, the share "
            "of what a training step of KAT-Tiny with CUDA graphs consumes.",
            markdown(["", *(f"{count} worker{'s' * (count > 1)}" for count in workers)], table),
        ]
    )


def _delivered(row: Row) -> str:
    share = "" if row["over_step"] is None else f" ({row['over_step']:.0%})"
    return f"{row['images_per_s']:,.0f}{share}"


def _scaling_gpus(document: Document) -> str:
    rows, batch = document["rows"], document["settings"]["batch_per_gpu"]
    ways = list(document["settings"]["ways"])
    rows = sorted(rows, key=lambda row: (SIZES.index(row["size"]), ways.index(row["way"]), row["gpus"]))
    table = []
    for row in rows:
        share = scaling_gpus.efficiency(rows, row) if row["gpus"] > 1 else None
        # Milliseconds of a step on several GPUs that one GPU does not need.
        added = None if share is None else 1e3 * batch * row["gpus"] / row["images_per_s"] * (1 - share)
        table.append(
            [
                *(row["size"], row["way"], str(row["gpus"]), LABELS[row["contender"]]),
                *(f"{row['images_per_s']:,.0f}", _optional(share, ".3f"), _optional(added, ".2f")),
                *(_optional(row.get(key), form) for key, form in (("all_reduce_ms", ".2f"), ("over_vit", ".3f"))),
                _optional(row.get("peak_gib"), ".2f"),
            ]
        )
    header = ["size", "way", "GPUs", "model", "images/s", "efficiency", "added ms", "all-reduce ms", "over ViT", "GiB"]
    text = (
        "Images per second of all GPUs together. *Efficiency* is that over one GPU's times the number of GPUs. "
        "*Added ms* is what a step takes longer than on one GPU. *All-reduce ms* is the time of the sum alone."
    )
    return f"{text}\n\n{markdown(header, table)}"


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


SECTIONS: dict[str, Callable[[Document], str]] = {
    "training": _training,
    "scaling_gpus": _scaling_gpus,
    "inference": _inference,
    "loading": _loading,
    "kernels": _kernels,
    "rounding": _rounding,
    "host_time": _host_time,
    "scaling": _scaling,
    "cpu": _cpu,
    "curves": _curves,
    "cifar10": _cifar10,
}
"""The function that writes a result's text, by the name of its benchmark, in the order of the pages."""


def render(name: str, results: Path) -> str:
    """Return the generated part of a benchmark's page: its tables, its missed targets, and where it was measured."""
    document = read(results / f"{name}.json")
    text = [SECTIONS[name](document), verdict(document), provenance(document["environment"])]
    if (PAGES / "figures" / f"{name}.svg").exists():
        text.insert(0, f"![Results of the benchmark {name}](figures/{name}.svg)")
    return "\n\n".join(filter(None, text))


def overview(results: Path) -> str:
    """Return a line per benchmark: how many targets it met, and where it was measured."""
    lines = [(name, f"[{name}]({name}.md)", f"{name}.py") for name in SECTIONS]
    lines += [
        (name, f"[recipes, {label}](recipes/index.md)", "recipes/__init__.py")
        for name, label in STUDIES.items()
        if (results / f"{name}.json").exists()
    ]
    lines += [
        (name, f"[{subject}, {name}]({subject}/index.md)", f"{subject}/{name}.py")
        for subject, found in SUBJECTS.items()
        for name in found
        if (results / f"{name}.json").exists()
    ]
    rows = []
    for name, link, file in lines:
        document = read(results / f"{name}.json")
        targets, environment = document["targets"], document["environment"]
        met = f"{sum(target['met'] for target in targets)} of {len(targets)}" if targets else "no targets"
        source = ast.parse((ROOT / "benchmarks" / file).read_text())
        question = (ast.get_docstring(source) or "").partition("\n")[0]
        rows.append([link, question, met, machine(environment), environment["date"]])
    return markdown(["benchmark", "question", "targets met", "machine", "date"], rows)


_WAYS = {"graphs": "CUDA graphs", "compiled": "compiled", "eager": "eager"}
_SUMMARY: dict[str, list[tuple[str, str, str, Row]]] = {
    "training": [
        *((f"training, {size}", size, "graphs", {"case": "bf16"}) for size in ("base", "small", "tiny")),
        ("training, small", "small", "eager", {"case": "bf16"}),
        ("training, tiny", "tiny", "compiled", {"case": "bf16"}),
    ],
    "inference": [
        ("inference, base, 256 images", "base", "compiled", {"batch": 256}),
        ("inference, base, one image", "base", "compiled", {"batch": 1}),
        ("inference, tiny, one image", "tiny", "eager", {"batch": 1}),
    ],
}
_CONTENDERS = ("ours", "vit", "flashkat paper", "kat")


def summary(results: Path) -> str:
    """Return the README's table: where a KAT is faster than a ViT, and where it is slower."""
    table = []
    for name, lines in _SUMMARY.items():
        rows = read(results / f"{name}.json")["rows"]
        for label, size, way, where in lines:
            case = {"size": size, "way": way, **where}
            rates = {row["contender"]: row["images_per_s"] for row in rows if case.items() <= row.items()}
            speeds = [f"{rates[each]:,.0f}" if each in rates else "" for each in _CONTENDERS]
            table.append([f"{label}, {_WAYS[way]}", *speeds, f"{rates['ours'] / rates['vit']:.2f}"])
    seeds: dict[str, list[float]] = {}
    for row in read(results / "cifar10.json")["rows"]:
        seeds.setdefault(row["contender"], []).append(row["top1"])
    top1 = [f"{statistics.mean(seeds[name]):.2f}%" for name in ("KAT", "ViT")]
    table.append(["top-1 on CIFAR-10, tiny", *top1, "", "", ""])
    header = ["", "KAT", "ViT", "KAT, FlashKAT paper's kernel", "KAT, KAT's kernel", "KAT / ViT"]
    environment = read(results / "training.json")["environment"]
    return f"{markdown(header, table)}\n\n{provenance(environment)}"


def replace(page: str, text: str) -> str:
    """Return a page with the part between its markers replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"a page of results needs the lines {BEGIN} and {END}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def pages(results: Path) -> dict[Path, str]:
    """Return the generated part of each page, by its path."""
    texts = {PAGES / f"{name}.md": render(name, results) for name in SECTIONS}
    others = {ROOT / "README.md": summary(results), PAGES / "index.md": overview(results), EXPORT: exported(results)}
    subjects = {PAGES / subject / "index.md": answered(subject, results) for subject in SUBJECTS}
    return {**others, STUDY: studied(results), **subjects, **texts}


def _in_order(rows: dict[str, Row]) -> Iterable[tuple[str, Row]]:
    return ((name, rows[name]) for name in LABELS if name in rows)


def _median(spread: Row | None, form: str) -> str:
    """Return the formatted median of several rounds, "" without measurements."""
    return "" if spread is None else format(spread["median"], form)


def _microseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _power(elements: int) -> str:
    return f"2^{elements.bit_length() - 1}"


def main(argv: Sequence[str] | None = None) -> None:
    """Rewrite the generated part of each page."""
    argparse.ArgumentParser(prog="python -m benchmarks.report.tables", description=__doc__).parse_args(argv)
    for path, text in pages(RESULTS).items():
        path.write_text(replace(path.read_text(), text))
        print(path)


if __name__ == "__main__":
    main()
