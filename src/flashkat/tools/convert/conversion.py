"""The report of a conversion: what became a rational, what did not and why, and how far the outputs moved."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Converted", "Left", "Report"]


@dataclass(frozen=True)
class Converted:
    """A place that has a rational now.

    Args:
        name: the module's name in the model.
        was: the activation that was there.
        start: the function that the rational starts as; "fit" is one fitted to the activation itself.
        channels: size of the channels' dimension.
        dim: the channels' dimension.
        groups: number of groups.
        interval: the interval of the fit.
        error: largest difference from the activation, on its inputs in the example; None without an example.
    """

    name: str
    was: str
    start: str
    channels: int
    dim: int
    groups: int
    interval: tuple[float, float]
    error: float | None


@dataclass(frozen=True)
class Left:
    """An activation that stays, and the reason."""

    name: str
    what: str
    reason: str


Row = TypeVar("Row", Converted, Left)


@dataclass(frozen=True)
class Report:
    """What a conversion has done. ``print`` shows it as a table.

    Args:
        converted: the places with rationals.
        left: the activations that stay.
        change: largest change of the outputs on the example; None without an example.
        reach: largest magnitude of the outputs before.
        notes: what else there is to know.
    """

    converted: tuple[Converted, ...]
    left: tuple[Left, ...]
    change: float | None
    reach: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("converted", "was", "starts as", "channels", "dim", "groups", "fit on", "error")
        ]
        for names, places in _alike(self.converted, lambda row: dataclasses.replace(row, name="", error=None)):
            row, errors = places[0], [place.error for place in places if place.error is not None]
            sizes = (row.channels, row.dim, row.groups)
            interval = f"[{row.interval[0]:g}, {row.interval[1]:g}]"
            rows.append((names, row.was, row.start, *map(str, sizes), interval, f"{max(errors):.2g}" if errors else ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        for names, others in _alike(self.left, lambda row: (row.what, row.reason)):
            lines.append(f"left: {names} ({others[0].what}): {others[0].reason}")
        count = len(self.converted)
        lines += [*self.notes, f"{count} {'rational' if count == 1 else 'rationals'}, {len(self.left)} left"]
        if self.change is not None:
            lines.append(
                f"largest change of the output on the example: {self.change:.2g}, in outputs up to {self.reach:.2g}"
            )
        return "\n".join(lines)


def _alike(rows: Iterable[Row], rest: Callable[[Row], object]) -> Iterator[tuple[str, list[Row]]]:
    """Yield rows that differ in the numbers of their names alone, as in blocks.*.mlp.act (12 places)."""
    together: dict[tuple[str, object], list[Row]] = {}
    for row in rows:
        together.setdefault((re.sub(r"\d+", "*", row.name), rest(row)), []).append(row)
    for (pattern, _), found in together.items():
        yield (found[0].name if len(found) == 1 else f"{pattern} ({len(found)} places)"), found
