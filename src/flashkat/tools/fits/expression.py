"""Functions of x written as text, such as ``x*sin(x)``: read without being run as Python.

Python's parser gives a tree, and only the nodes listed here are computed, in float64. There are no attributes, no
subscripts and no names but those below. Numbers are float64 from the beginning, so that no power grows without bound.
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError, did_you_mean
from ...nn.functions import FUNCTIONS

__all__ = ["Expression"]

# Characters of a text, and levels of its tree: Python's stack must hold them.
_LONGEST, _DEEPEST = 400, 64

_CONSTANTS = {"pi": math.pi, "e": math.e}

_CALLS: dict[str, tuple[Callable[..., Tensor], int]] = {
    **{name: (function, 1) for name, function in FUNCTIONS.items() if name.isidentifier()},
    **{
        name: (getattr(torch, name), 1)
        for name in (
            *("abs", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "square", "sign", "floor"),
            *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"),
            *("erf", "erfc", "sinc"),
        )
    },
    "atan2": (torch.atan2, 2),
    "min": (torch.minimum, 2),
    "max": (torch.maximum, 2),
    "where": (lambda condition, yes, no: torch.where(condition != 0, yes, no), 3),
}

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: torch.pow,
}
_SIGNS: dict[type, Callable[[Tensor], Tensor]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Expression:
    """A function of x that a text describes.

    Args:
        text: numbers, x, pi, e, ``+ - * / **``, comparisons, which are 1 or 0, and calls of the functions above.

    Attributes:
        name: the text, with Python's spaces.

    Raises:
        InputError: the text is too long, no formula, or has something else in it.
    """

    def __init__(self, text: str) -> None:
        if len(text) > _LONGEST:
            raise InputError(f"an expression has at most {_LONGEST} characters, not {len(text):,}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in strings, which are refused anyway
                self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise InputError(f"{text[:60]!r} is no formula: write it as in 'x*sin(x) + 2*x**3'") from error
        self._check(self._tree)
        self.name = ast.unparse(self._tree)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the value at each element of a float64 tensor."""
        return self._value(self._tree, x).expand_as(x)

    def _check(self, node: ast.expr, level: int = 0) -> None:
        """Raise InputError for a node that is not listed here, or nested too deep."""
        wrong = f"it is nested more than {_DEEPEST} levels deep" if level > _DEEPEST else ""
        parts: list[ast.expr] = []
        match node:
            case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
                pass
            case ast.Name(id=name):
                if name in _CALLS:
                    wrong = f"{name} is a function: write {name}(x)"
                elif name != "x" and name not in _CONSTANTS:
                    wrong = f"{name} is unknown: {did_you_mean(name, _CALLS, 'the variable is x')}"
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                parts = [left, right]
            case ast.BinOp(op=ast.BitXor()):
                wrong = "^ is no power: write x**2"
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _SIGNS:
                parts = [operand]
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
                parts = [left, right]
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                count = _CALLS[name][1] if name in _CALLS else -1
                if count < 0:
                    wrong = f"there is no function {name}: {did_you_mean(name, _CALLS, f'there are {_known()}')}"
                elif len(args) != count:
                    wrong = f"{name} takes {count} argument{'s' * (count > 1)}, not {len(args)}"
                parts = args
            case ast.Call(func=ast.Attribute(attr=name)) if name in _CALLS:
                wrong = f"write {name}(x) without a module's name"
            case _:
                wrong = "it may have numbers, x, + - * / **, comparisons and functions alone"
        if wrong:
            raise InputError(f"cannot read the expression: {wrong}")
        for part in parts:
            self._check(part, level + 1)

    def _value(self, node: ast.expr, x: Tensor) -> Tensor:
        match node:
            case ast.Constant(value=int() | float() as number):
                return x.new_tensor(_float(number))
            case ast.Name(id=name):
                return x if name == "x" else x.new_tensor(_CONSTANTS[name])
            case ast.BinOp(left=left, op=op, right=right):
                return _OPERATORS[type(op)](self._value(left, x), self._value(right, x))
            case ast.UnaryOp(op=op, operand=operand):
                return _SIGNS[type(op)](self._value(operand, x))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return _COMPARISONS[type(op)](self._value(left, x), self._value(right, x)).to(x)
            case ast.Call(func=ast.Name(id=name), args=args):
                return _CALLS[name][0](*(self._value(each, x) for each in args))
        raise AssertionError(node)


def _float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf


def _known() -> str:
    return ", ".join(sorted(_CALLS))
