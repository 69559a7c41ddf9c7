"""The rationals of a model, and their functions as plain numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...ops import rational
from ..formats import rename_rationals
from .formulas import numpy_function, sympy_expression

if TYPE_CHECKING:
    import numpy as np
    import sympy

__all__ = ["Learned", "Rational", "learned", "rationals", "start_name"]


class Rational(nn.Module):
    """A module that applies a rational to each group of channels: GroupRational, and the classes of flashkat.compat.

    Attributes:
        start: the starting function.
        dim: the channel dimension of the input.
    """

    start: Any
    dim: int

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """The coefficients of numerator and denominator, with a row for each group, or one for all."""
        raise NotImplementedError

    def to_sympy(self) -> "list[sympy.Expr]":
        """Return the function of each group as a SymPy expression in the real symbol ``x``."""
        return [sympy_expression(*rows) for rows in _rows(*self.tables)]

    def to_numpy(self) -> "list[Callable[[np.typing.ArrayLike], np.ndarray]]":
        """Return the function of each group, from arrays to float64 arrays. Later training does not change it."""
        return [numpy_function(*rows) for rows in _rows(*self.tables)]


@dataclass(frozen=True)
class Learned:
    """The functions of one rational.

    Attributes:
        start: the function that training started from.
        numerator: float64 on the CPU, (1 or groups, m).
        denominator: float64 on the CPU, (1 or groups, n).
    """

    start: Any
    numerator: Tensor
    denominator: Tensor

    @property
    def groups(self) -> int:
        """The number of functions: 1 if both tables are shared."""
        return max(len(self.numerator), len(self.denominator))

    @cached_property
    def rows(self) -> list[tuple[list[float], list[float]]]:
        """The coefficients of each group."""
        return _rows(self.numerator, self.denominator)

    def __call__(self, x: Tensor) -> Tensor:
        """Return F(x) of every group, (groups, points), for x of shape (points,) or (groups, points)."""
        return rational(x.double().expand(self.groups, -1), self.numerator, self.denominator, dim=0)


def rationals(model: nn.Module) -> dict[str, Rational]:
    """Return the rationals of a model by their module names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Rational)}


def learned(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Learned]:
    """Return the functions of a model's rationals by their module names.

    Args:
        model: any module.
        state: a state_dict of such a model, in any format, to take the coefficients from; None takes the model's.

    Raises:
        ValueError: the state has no such coefficients, or ones of other shapes.
    """
    found = rationals(model)
    if state is None:
        return {name: Learned(module.start, *map(_plain, module.tables)) for name, module in found.items()}
    names = {name: [key for key, _ in module.named_parameters(name, recurse=False)] for name, module in found.items()}
    renamed = rename_rationals(state, {key for keys in names.values() for key in keys})
    functions = {}
    for name, module in found.items():
        tables = [renamed.get(key) for key in names[name]]
        if any(table is None or table.shape != own.shape for table, own in zip(tables, module.tables, strict=True)):
            raise ValueError(f"the coefficients of {name} are missing or have another shape")
        functions[name] = Learned(module.start, *(_plain(table) for table in tables if table is not None))
    return functions


def start_name(start: Any) -> str:
    """Return the name of a starting function: itself, or what it says of itself."""
    if isinstance(start, str):
        return start
    return str(getattr(start, "name", "") or getattr(start, "__name__", type(start).__name__))


def _plain(table: Tensor) -> Tensor:
    return table.detach().to("cpu", torch.float64)


def _rows(numerator: Tensor, denominator: Tensor) -> list[tuple[list[float], list[float]]]:
    groups = max(len(numerator), len(denominator))
    tables = (_plain(table).expand(groups, -1).tolist() for table in (numerator, denominator))
    return list(zip(*tables, strict=True))
