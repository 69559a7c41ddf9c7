"""Show what a checkpoint's rationals have learned: ``flashkat inspect``."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...errors import InputError, explain
from ...evaluation import Config
from ...nn.learned.formulas import latex, python, text
from ...nn.learned.rationals import start_name
from ...system.files import check_writable, replaced
from .history import curves, snapshots
from .measures import measure, table
from .report import page
from .subject import open_subject

__all__ = ["inspect_model"]


def inspect_model(
    config: Config, html: str | None = None, as_json: bool = False, say: Callable[[str], None] = lambda line: None
) -> str:
    """Measure the functions of a checkpoint, and write a report if asked to.

    Args:
        config: ``trained`` names the checkpoint. Images in ``data.data_dir``, if given, are what the rationals see.
        html: the report's file; None writes none.
        as_json: return JSON, which has the formulas too, in place of a table.
        say: called with each line for the user.

    Returns:
        A line for each group of each rational.

    Raises:
        InputError: the checkpoint or the data cannot be used, the model has no rationals, or the report cannot be
            written.
    """
    path = Path(config.trained.checkpoint)
    if not path.exists():
        raise InputError(f"no checkpoint at {path}")
    target = None if html is None else Path(html)
    if target is not None:
        if target.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"cannot write {target}: give --html a name that ends in .html")
        check_writable(target)
    subject = open_subject(config, say)
    measures = measure(subject.functions, subject.inputs)
    if target is not None:
        series = snapshots(path, subject, config.trained.use_ema, say)
        content = page(subject, path.name, measures, series, curves(path.parent, say))
        with explain(f"cannot write {target}"), replaced(target) as partial:
            partial.write_text(content, encoding="utf-8")
    if not as_json:
        return table(measures)
    rows = [
        {
            **asdict(each),
            "start": start_name(function.start),
            "numerator": a,
            "denominator": b,
            "formula": text(a, b),
            "latex": latex(a, b),
            "python": python(a, b),
        }
        for each in measures
        for function in [subject.functions[each.layer]]
        for a, b in [function.rows[each.group]]
    ]
    return json.dumps({"model": subject.name, "groups": _finite(rows)}, indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return nested values with None for what is not finite, as JSON has no word for that."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
