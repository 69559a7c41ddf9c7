"""Fit a rational to a function or to points, and say how well it follows: ``flashkat fit``."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...errors import InputError, did_you_mean, explain, require
from ...nn.fitting import REACH, Fit, Function, fit
from ...nn.functions import FUNCTIONS, named_function
from ...system.files import check_writable, replaced
from .expression import Expression
from .points import read_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_fit", "fit_function", "table"]

_FORMATS = (".png", ".svg", ".pdf")
_Points = tuple[list[float], list[float]]


def fit_function(
    name: str | None = None,
    expression: str | None = None,
    points: str | None = None,
    *,
    m: int = 6,
    n: int = 4,
    interval: tuple[float, float] | None = None,
    method: str = "least-squares",
    tail_weight: float = 0.0,
    max_error: float | None = None,
    output: str | None = None,
    picture: str | None = None,
) -> Fit:
    """Fit one of a named function, an expression and a file of points, and write what is asked for.

    Args:
        name: a key of :data:`flashkat.nn.FUNCTIONS`.
        expression: see :class:`Expression`.
        points: a file, see :func:`read_points`.
        m: number of numerator coefficients.
        n: number of denominator coefficients.
        interval: where the fit matters; None takes that of :func:`flashkat.fit`.
        method: as of :func:`flashkat.fit`.
        tail_weight: likewise.
        max_error: refuse a fit whose largest error is larger.
        output: a file for :meth:`flashkat.nn.Fit.read`.
        picture: a .png, .svg or .pdf file.

    Raises:
        InputError: not one function is given, it cannot be fitted, or a file cannot be read or written.
    """
    if sum(each is not None for each in (name, expression, points)) != 1:
        raise InputError("give one of a function's name, --expr EXPRESSION and --points FILE")
    if name is not None and name not in FUNCTIONS:
        otherwise = f"give a formula with --expr, a file with --points, or one of {', '.join(FUNCTIONS)}"
        raise InputError(f"no function is called {name!r}: {did_you_mean(name.lower(), FUNCTIONS, otherwise)}")
    if picture is not None:
        require("matplotlib")
        if Path(picture).suffix.lower() not in _FORMATS:
            raise InputError(f"cannot draw to {picture}: give a name that ends in {', '.join(_FORMATS)}")
        check_writable(Path(picture))
    if output is not None:
        if picture is not None and Path(output).resolve() == Path(picture).resolve():
            raise InputError(f"--output and --plot both name {output}: give another name to one")
        check_writable(Path(output), begins=r'{\s*"name":')

    source: Function | str | _Points
    weight = None
    if points is not None:
        x, y, weight = read_points(points)
        source = x, y
    else:
        source = name if name is not None else Expression(expression or "")
    found = fit(source, m, n, interval, method, weight, tail_weight)
    if max_error is not None and not found.largest_error <= max_error:
        raise InputError(
            f"the largest error for {found.name} is {found.largest_error:.2g}, at x={found.largest_error_at:.3g}, more "
            f"than --max-error {max_error:g}: raise -m and -n, or give a smaller --interval"
        )
    if output is not None:
        with explain(f"cannot write {output}"), replaced(Path(output)) as partial:
            partial.write_text(f"{found.to_json()}\n")
    if picture is not None:
        figure = draw_fit(found, named_function(source) if isinstance(source, str) else source)
        with explain(f"cannot write {picture}"), replaced(Path(picture)) as partial:
            figure.savefig(partial, dpi=120, format=Path(picture).suffix[1:].lower())
    return found


def table(found: Fit) -> str:
    """Return what ``flashkat fit`` prints of a fit."""
    low, high = found.interval
    left, right = found.tails
    ends = [
        f"{tail.value:.4g} at x={tail.x:.3g}, " + ("error unknown" if tail.error is None else f"error {tail.error:.2g}")
        for tail in (left, right)
    ]
    rows = [
        (f"{found.name} on [{low:g}, {high:g}]", f"m={len(found.numerator)}, n={len(found.denominator)}"),
        ("method", found.method),
        ("largest error", f"{found.largest_error:.3g} at x={found.largest_error_at:.3g}"),
        ("rms error", f"{found.rms_error:.3g}"),
        ("worst of the left tail", ends[0]),
        ("worst of the right tail", ends[1]),
        ("slope at -infinity", f"{found.slopes[0]:.4g}"),
        ("slope at +infinity", f"{found.slopes[1]:.4g}"),
        ("numerator", _listed(found.numerator, 0, found.interval)),
        ("denominator", _listed(found.denominator, 1, found.interval)),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


# A term below this share of the largest one is rounding, which differs between machines.
_ROUNDING = 1e-12


def _listed(coefficients: torch.Tensor, first: int, interval: tuple[float, float]) -> str:
    """Return coefficients as text, of the powers from ``first`` on. Those that only round are 0."""
    reach = max(map(abs, interval))
    values = coefficients.tolist()
    terms = [abs(value) * reach ** (first + power) for power, value in enumerate(values)]
    least = _ROUNDING * max([*terms, float(first)])  # the denominator has a term of 1
    shown = [value if term >= least else 0.0 for value, term in zip(values, terms, strict=True)]
    return " ".join(f"{value:.6g}" for value in shown) or "1"


def draw_fit(found: Fit, source: Function | _Points) -> "Figure":
    """Draw a fit and its function above, and the error below; the tails are grey.

    Args:
        found: the fit.
        source: the function, or the points.
    """
    from matplotlib.figure import Figure

    low, high = found.interval
    reach = (REACH - 1) * (high - low) / 2
    x = torch.linspace(low - reach, high + reach, 2001, dtype=torch.float64)
    figure = Figure(figsize=(6, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    if callable(source):
        with torch.no_grad():
            y, at = source(x), x
        style = {"color": "black", "linewidth": 3, "alpha": 0.35}
    else:
        at, y = (torch.tensor(values, dtype=torch.float64) for values in source)
        style = {"color": "black", "marker": ".", "linestyle": "none", "alpha": 0.6}
    inside = (low <= at) & (at <= high)
    above.plot(at, y, label=found.name, **style)
    above.plot(x, found(x), label=f"fit, m={len(found.numerator)}, n={len(found.denominator)}", color="tab:blue")
    seen = y[inside & y.isfinite()]
    margin = 0.5 * float(seen.max() - seen.min()) or 1.0
    above.set_ylim(float(seen.min()) - margin, float(seen.max()) + margin)
    above.legend(frameon=False)
    error = (found(at) - y)[inside]
    below.plot(at[inside], error, **(style if not callable(source) else {"color": "tab:red"}))
    below.set_ylabel("error")
    below.set_xlabel("x")
    for panel in (above, below):
        panel.set_xlim(float(x[0]), float(x[-1]))
        panel.axvspan(float(x[0]), low, color="0.93")
        panel.axvspan(high, float(x[-1]), color="0.93")
        panel.grid(alpha=0.3)
    figure.suptitle(f"{found.name}: largest error {found.largest_error:.2g}", fontsize=10)
    return figure
