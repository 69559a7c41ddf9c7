"""The report of ``flashkat inspect``: one page of HTML with all its data, styles and scripts in it.

Names in a checkpoint come from strangers. They reach the page as escaped text or as JSON, and the page's
Content-Security-Policy runs no script but its own.
"""

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from ...nn.learned.drawing import start_of
from ...nn.learned.formulas import latex, python, text
from ...nn.learned.rationals import Learned, start_name
from .history import Snapshot
from .measures import KNOWN, Measures, interval
from .subject import Subject

__all__ = ["page"]

# Of a rational with more groups, such as one for each channel, the page shows those that moved most.
_MOST_GROUPS = 16
_BINS = 48
_POINTS = 97


def page(
    subject: Subject,
    file: str,
    measures: Sequence[Measures],
    series: Sequence[Snapshot],
    columns: Mapping[str, list[float | None]],
) -> str:
    """Return the report.

    Args:
        subject: the model.
        file: the checkpoint's name.
        measures: of every group.
        series: the functions over the run, the given checkpoint's among them.
        columns: the run's summary by column.
    """
    shown = {name: _shown(name, measures) for name in subject.functions}
    rows = [each for each in measures if each.group in shown[each.layer]]
    data = {
        "steps": [snapshot.label for snapshot in series],
        "now": next(index for index, snapshot in enumerate(series) if snapshot.is_given),
        "layers": [
            _layer(name, function, [each for each in rows if each.layer == name], series, subject.inputs.get(name))
            for name, function in subject.functions.items()
        ],
        "curves": columns,
    }
    flagged = [each for each in measures if each.flags]
    now = next(snapshot.label for snapshot in series if snapshot.is_given)
    left_out = len(measures) - len(rows)
    return _filled(
        "page.html",
        {
            "TITLE": html.escape(f"{subject.name}: learned functions"),
            "MODEL": html.escape(subject.name),
            "SOURCE": html.escape(file if now == file else f"{file}, {now}"),
            "COUNTS": html.escape(
                f"{len(subject.functions)} rationals with {len(measures)} functions"
                + (f". Those of the {len(rows)} groups that moved most are shown" if left_out else "")
            ),
            "FLAGGED": html.escape(_about_flags(flagged)),
            "INPUTS": html.escape(
                "Histograms show real inputs. Curves span them from the 0.1% to the 99.9% quantile."
                if subject.inputs
                else "Curves span [-3, 3]. With --data they span the real inputs, with a histogram of these below."
            ),
            "ROWS": "\n".join(map(_row, sorted(rows, key=_order))),
            "DATA": _embedded(data),
            "STYLE_HASH": _digest(_read("page.css")),
            "SCRIPT_HASH": _digest(_read("page.js")),
            "STYLE": _read("page.css"),
            "SCRIPT": _read("page.js"),
        },
    )


def _shown(layer: str, measures: Sequence[Measures]) -> set[int]:
    found = sorted((each for each in measures if each.layer == layer), key=_order)
    return {each.group for each in found[:_MOST_GROUPS]}


def _order(each: Measures) -> tuple[bool, float]:
    """Return the key that sorts groups from the one that moved most, after those that are not finite."""
    return math.isfinite(each.moved), -each.moved


def _about_flags(flagged: Sequence[Measures]) -> str:
    if not flagged:
        return "No group is dead or exploding."
    listed = "; ".join(f"{each.layer} group {each.group} ({', '.join(each.flags)})" for each in flagged[:10])
    more = f" and {len(flagged) - 10} more" if len(flagged) > 10 else ""
    return f"Flagged: {listed}{more}."


def _layer(
    name: str,
    function: Learned,
    measures: Sequence[Measures],
    series: Sequence[Snapshot],
    samples: Tensor | None,
) -> dict[str, Any]:
    low, high = interval(samples)
    x = torch.linspace(low, high, _POINTS, dtype=torch.float64)
    groups = [each.group for each in measures]
    start = start_of(function)
    return {
        "name": name,
        "start": {"name": start_name(function.start), "rows": _numbers(start.rows[0])},
        "x": [low, high],
        # The rows of each group, at each step.
        "rows": [
            [_numbers(rows[group]) for group in groups] for rows in (step.functions[name].rows for step in series)
        ],
        "known": {known: _numbers(KNOWN[known](x).tolist()) for known in sorted({each.nearest for each in measures})},
        "histograms": None if samples is None else [_histogram(samples[group], low, high) for group in groups],
        "groups": [
            {
                "group": each.group,
                "nearest": each.nearest,
                "factor": _number(each.factor),
                "distance": _number(each.distance),
                "moved": _number(each.moved),
                "inside": each.inside,
                "flags": each.flags,
                "text": text(*function.rows[each.group]),
                "latex": latex(*function.rows[each.group]),
                "python": python(*function.rows[each.group]),
            }
            for each in measures
        ],
    }


def _histogram(samples: Tensor, low: float, high: float) -> list[int]:
    finite = samples[samples.isfinite()]
    return torch.histc(finite, _BINS, low, high).int().tolist() if low < high else [0] * _BINS


def _numbers(values: Any) -> Any:
    return [_numbers(each) for each in values] if isinstance(values, list | tuple) else _number(values)


def _number(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _row(each: Measures) -> str:
    """Return a row of the table. Its numbers are data too, for sorting."""
    low, high = each.interval
    cells = [
        (each.layer, None),
        (str(each.group), each.group),
        ("-" if math.isnan(each.factor) else f"{each.factor:.3g} × {each.nearest}", None),
        (f"{each.distance:.2g}", each.distance),
        (f"{each.moved:.2g}", each.moved),
        (f"{each.slope_at_0:.3g}", each.slope_at_0),
        (f"{each.lowest:.3g} to {each.highest:.3g}", each.highest),
        (f"{each.smallest_q:.3g} to {each.largest_q:.3g}", each.largest_q),
        ("-" if each.inside is None else f"{low:.3g} to {high:.3g}", high),
        ("-" if each.inside is None else f"{each.inside:.1%}", each.inside),
        (", ".join(each.flags), None),
    ]
    return "<tr>" + "".join(map(_cell, cells)) + "</tr>"


def _cell(cell: tuple[str, float | None]) -> str:
    shown, value = cell
    attribute = "" if value is None else f' data-value="{value!r}"'
    return f"<td{attribute}>{html.escape(shown)}</td>"


def _embedded(data: Any) -> str:
    """Return JSON that stands inside a script element: no character of it can end the element."""
    dumped = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return dumped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _filled(name: str, values: Mapping[str, str]) -> str:
    """Fill the places of a template, in one pass: what is filled in may hold the names of places."""
    first, *parts = _read(name).split("{{")
    return first + "".join(values[key] + rest for key, rest in (part.split("}}", 1) for part in parts))


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
