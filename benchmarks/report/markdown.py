"""Parts of the pages: tables in Markdown, and where their numbers come from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..parts.common import Row

__all__ = ["machine", "markdown", "provenance", "verdict"]


def provenance(environment: Row) -> str:
    """Return a line of where and with what something was measured."""
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "triton") if environment[name])
    commit = f", commit {environment['commit'][:7]}" if environment["commit"] else ""
    changed = " with uncommitted changes" if environment["uncommitted_changes"] else ""
    return f"*{machine(environment)}, {versions}, {environment['date']}{commit}{changed}.*"


def machine(environment: Row) -> str:
    """Return the name of the GPU, or of the CPU without one."""
    return environment.get("gpu") or f"{environment['cpu']}, {environment['cpu_threads']} threads"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(document: Mapping[str, Any]) -> str:
    """Return how many targets were met, and a table of the others."""
    targets = document["targets"]
    if not targets:
        return ""
    missed = [target for target in targets if not target["met"]]
    verdict = f"{len(targets) - len(missed)} of {len(targets)} targets were met."
    if not missed:
        return verdict
    rows = [
        [
            target["name"],
            "not measured" if target["value"] is None else str(target["value"]),
            f"{target['bound']} {target['limit']}",
        ]
        for target in missed
    ]
    return f"{verdict} The others:\n\n{markdown(['target', 'measured', 'wanted'], rows)}"
