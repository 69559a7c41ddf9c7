"""The pages of benchmarks that answer several questions about one subject, with a plain table for each result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..parts.common import LABELS, Row, read
from .markdown import markdown, provenance, verdict

__all__ = ["SUBJECTS", "answered"]

SUBJECTS: dict[str, dict[str, str]] = {
    "memory": {"recompute": "Values that are computed again", "growth": "A long training"},
    "backends": {"feeding": "Speed of a training on files", "agreement": "The same images, loaded in several ways"},
}
"""The folders of benchmarks with a page each, and the titles of their results."""

_NAMES = {"over_vit": "images/s over ViT's", "peak_gib": "peak GiB", "peak_over_vit": "peak over ViT's"}


def answered(subject: str, results: Path) -> str:
    """Return the generated part of a subject's page, with a section for each result."""
    sections = []
    for name, title in SUBJECTS[subject].items():
        path = results / f"{name}.json"
        text = _section(read(path)) if path.exists() else "Not measured yet."
        sections.append(f"## {title}\n\n{text}")
    return "\n\n".join(sections)


def _section(document: Mapping[str, Any]) -> str:
    parts = [_table(document["rows"]), verdict(document), provenance(document["environment"])]
    return "\n\n".join(filter(None, parts))


def _table(rows: list[Row]) -> str:
    """Return a table with a column for each entry of the rows. Empty columns are left out."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if any(_cell(row, key) for row in rows)]
    header = [_NAMES.get(key, key.replace("_", " ")) for key in keys]
    return markdown(header, [[_cell(row, key) for key in keys] for row in rows])


def _cell(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if key == "contender":
        return LABELS[value]
    return f"{value:,.5g}" if isinstance(value, float) else str(value)
