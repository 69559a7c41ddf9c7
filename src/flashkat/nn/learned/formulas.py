"""A rational as a formula: text, LaTeX, Python, SymPy and NumPy.

Each function takes the coefficients a of the numerator and b of the denominator. The formula is
(a_0 + a_1 x + ...) / (1 + |b_1| |x| + |b_2| |x|^2 + ...).
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import sympy

__all__ = ["latex", "numpy_function", "python", "sympy_expression", "text"]

Terms = Sequence[tuple[float, int]]


def text(a: Sequence[float], b: Sequence[float], digits: int = 4) -> str:
    """Return the formula as plain text, with numbers of so many digits."""

    def term(number: str, base: str, power: int) -> str:
        return number if not power else f"{number} {base}" + (f"^{power}" if power > 1 else "")

    top = _sum(_terms(a), digits, lambda number, power: term(number, "x", power))
    bottom = _sum(_denominator(b), digits, lambda number, power: term(number, "|x|", power))
    return top if bottom == "1" else f"({top}) / ({bottom})"


def latex(a: Sequence[float], b: Sequence[float], digits: int = 4) -> str:
    """Return the formula in LaTeX, with numbers of so many digits."""

    def term(number: str, base: str, power: int) -> str:
        mantissa, _, exponent = number.partition("e")
        number = rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if exponent else mantissa
        return number if not power else rf"{number}\,{base}" + (f"^{{{power}}}" if power > 1 else "")

    top = _sum(_terms(a), digits, lambda number, power: term(number, "x", power))
    bottom = _sum(_denominator(b), digits, lambda number, power: term(number, "|x|", power))
    return top if bottom == "1" else rf"\frac{{{top}}}{{{bottom}}}"


def python(a: Sequence[float], b: Sequence[float]) -> str:
    """Return the formula as a Python expression in ``x``: a number, an array of NumPy or a tensor of PyTorch."""

    def term(number: str, base: str, power: int) -> str:
        return number if not power else f"{number}*{base}" + (f"**{power}" if power > 1 else "")

    # So many digits tell all numbers of float32 apart, or of float64.
    digits = 9 if all(ctypes.c_float(number).value == number for number in (*a, *b)) else 17
    top = _sum(_terms(a), digits, lambda number, power: term(number, "x", power))
    bottom = _sum(_denominator(b), digits, lambda number, power: term(number, "abs(x)", power))
    # A constant has the shape of x too.
    top = f"{top} + 0.0*x" if "x" not in top else top
    return top if bottom == "1" else f"({top}) / ({bottom})"


def sympy_expression(a: Sequence[float], b: Sequence[float]) -> "sympy.Expr":
    """Return the formula as a SymPy expression in the real symbol ``x``."""
    import sympy

    x = sympy.Symbol("x", real=True)
    top = sympy.Add(*(sympy.Float(number) * x**power for number, power in _terms(a)))
    return top / (
        1 + sympy.Add(*(sympy.Float(number) * sympy.Abs(x) ** power for number, power in _denominator(b)[1:]))
    )


def numpy_function(a: Sequence[float], b: Sequence[float]) -> "Callable[[np.typing.ArrayLike], np.ndarray]":
    """Return the function itself, from arrays to float64 arrays of the same shape."""
    import numpy as np

    top, bottom = np.array(a), np.array([1.0, *np.abs(b)])

    def function(x: "np.typing.ArrayLike") -> "np.ndarray":
        points = np.asarray(x, np.float64)
        return np.polynomial.polynomial.polyval(points, top) / np.polynomial.polynomial.polyval(np.abs(points), bottom)

    return function


def _terms(numbers: Sequence[float]) -> list[tuple[float, int]]:
    """Return the numbers that are not zero, with their powers."""
    return [(number, power) for power, number in enumerate(numbers) if number]


def _denominator(b: Sequence[float]) -> list[tuple[float, int]]:
    return _terms([1.0, *map(abs, b)])


def _sum(terms: Terms, digits: int, show: Callable[[str, int], str]) -> str:
    """Join terms with their signs."""
    text = ""
    for number, power in terms:
        shown = show(f"{abs(number):.{digits}g}", power)
        text += (" - " if number < 0 else " + ") + shown if text else ("-" if number < 0 else "") + shown
    return text or "0"
