"""Drop-in classes: KAT's and FlashKAT's activations, under their own names and with their own parameters.

``from flashkat.compat import KAT_Group`` is the only line to change in a model written for one of these. Its
state_dicts stay as they are. Training starts from this package's own fits. The coefficients in circulation for gelu,
geglu and swishglu belong to another denominator and miss their functions by up to 1.7.

These classes do more than the originals. Input may be on any device and have any strides. Any function of
:data:`flashkat.nn.FUNCTIONS` is a start. ``load_state_dict`` takes coefficients under the names of any format in
:mod:`flashkat.nn.formats`. For new models use :class:`flashkat.GroupRational`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..nn.fitting import FITTED
from ..nn.formats import accept_formats
from ..nn.learned.rationals import Rational
from ..nn.starts import FUNCTIONS, starting_coefficients
from ..ops import rational

__all__ = ["Activation", "FlashKAT_Group", "KAT_Group", "KAT_Group2D", "KAT_Group_Torch", "RationalTriton1DGroup"]


class Activation(Rational):
    """Two tables of coefficients under given names, applied along ``dim``.

    ``_ranks`` are the numbers of dimensions that input may have, and ``_shape`` says so in an error. ``_channels`` is
    the number of channels, or None for every number that the groups divide.
    """

    dim = -1
    _names: tuple[str, str]
    _ranks = range(1, 65)
    _shape = "(..., C)"
    _channels: int | None = None

    def __init__(self, rows: tuple[int, int], orders: tuple[int, int], mode: str, device: torch.device | str) -> None:
        super().__init__()
        for name, count, order in zip(self._names, rows, orders, strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(count, order, device=_available(device))))
        self.initialize(mode)
        self.register_load_state_dict_pre_hook(accept_formats)

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """The coefficients of numerator and denominator."""
        numerator, denominator = (getattr(self, name) for name in self._names)
        return numerator, denominator

    @torch.no_grad()
    def initialize(self, mode: str = "gelu") -> None:
        """Set every group to a named function; ValueError for an unknown name."""
        start = starting_coefficients(mode, *(table.shape[1] for table in self.tables))
        self.start = mode
        for table, coefficients in zip(self.tables, start, strict=True):
            table.copy_(coefficients.expand_as(table))

    def init_info(self) -> dict[str, dict[str, Any]]:
        """Return the coefficients of all starts by name, and the range of their fits, as KAT's class does."""
        return {
            name: {
                **dict(zip(("init_w_numerator", "init_w_denominator"), _lists(name), strict=True)),
                "ub": FITTED[1],
                "lb": FITTED[0],
            }
            for name in FUNCTIONS
        }

    def forward(self, x: Tensor) -> Tensor:
        """Apply each group's rational. Raise ValueError for input of another shape than the class takes."""
        # A stand-in of torch.fx is no tensor, and its dimensions cannot be compared.
        if isinstance(x, Tensor) and x.ndim not in self._ranks:
            raise ValueError(f"{type(self).__name__} takes {self._shape}, got x of shape {tuple(x.shape)}")
        return rational(x, *self.tables, dim=self.dim, channels=self._channels)


def _lists(name: str) -> list[list[float]]:
    return [table.tolist() for table in starting_coefficients(name)]


def _available(device: torch.device | str) -> torch.device:
    """Return the device, or the CPU if it is CUDA and there is none."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "cuda" and not torch.cuda.is_available() else device


class KAT_Group(Activation):  # noqa: N801
    """KAT's activation for channels in the last dimension: 8 groups, one numerator, degrees 5 and 4.

    Args:
        num_groups: groups of channels; must divide the channels of the input.
        mode: the function to start from: "identity", "gelu", "swish" or any other of ``flashkat.nn.FUNCTIONS``.
        device: where the parameters are made. Without CUDA, "cuda" means the CPU. Moving the module moves them.

    Shapes:
        Input and output: (B, N, C) or (B, C).
        ``weight_numerator``: (1, 6); ``weight_denominator``: (num_groups, 4).

    Raises:
        ValueError: an unknown mode, fewer than one group; in the forward pass, input with more dimensions, or channels
            that the groups do not divide.
    """

    _names = ("weight_numerator", "weight_denominator")
    _ranks = range(1, 4)
    _shape = "(B, N, C), (B, C) or (C,); KAT_Group2D takes (B, C, H, W)"

    def __init__(self, num_groups: int = 8, mode: str = "gelu", device: torch.device | str = "cuda") -> None:
        if num_groups < 1:
            raise ValueError(f"groups must be at least 1, not {num_groups}")
        super().__init__((1, num_groups), (6, 4), mode, device)
        self.num_groups = num_groups
        self.order = (5, 4)

    def extra_repr(self) -> str:
        return f"num_groups={self.num_groups}, order={self.order}"


class KAT_Group_Torch(KAT_Group):  # noqa: N801
    """:class:`KAT_Group` under the name of KAT's class in plain PyTorch.

    That class computes another function, whose denominator begins with 1 + |b_1| x. This one has the absolute value of
    x, as KAT's GPU kernels.
    """


class RationalTriton1DGroup:
    """KAT's autograd function, as far as its users call it: ``RationalTriton1DGroup.apply``."""

    @staticmethod
    def apply(input: Tensor, weight_numerator: Tensor, weight_denominator: Tensor, group: int) -> Tensor:
        """Return the rational of an input with the channels last.

        Args:
            input: (..., C).
            weight_numerator: (group, m), or (1, m) for a shared one.
            weight_denominator: (group, n), or (1, n) for a shared one.
            group: number of groups.

        Raises:
            ValueError: tables of another number of groups.
        """
        rows = {len(weight_numerator), len(weight_denominator)}
        if rows - {1, group}:
            raise ValueError(f"the tables have {' and '.join(map(str, sorted(rows)))} rows, not 1 or {group}")
        if rows == {1}:
            weight_denominator = weight_denominator.expand(group, -1)
        return rational(input, weight_numerator, weight_denominator)


class KAT_Group2D(KAT_Group):  # noqa: N801
    """:class:`KAT_Group` for channels in dimension 1, with the same arguments and parameters.

    Shapes:
        Input and output: (B, C, H, W).
    """

    dim = 1
    _ranks = range(4, 5)
    _shape = "(B, C, H, W); KAT_Group takes (B, N, C)"


class FlashKAT_Group(Activation):  # noqa: N801
    """The FlashKAT paper's activation for channels in the last dimension.

    Args:
        in_features: channels of the input.
        num_groups: numerators: 1 for a shared one, 0 or less for one per channel.
        den_groups: denominators, likewise. The larger number is the number of groups; the other equals it or is 1.
        m: numerator coefficients.
        n: denominator coefficients.
        mode: as KAT_Group's.
        device: as KAT_Group's.

    Shapes:
        Input and output: (B, N, in_features), or any other with the channels last.
        ``numerator_v``: (num_groups, m); ``denominator_v``: (den_groups, n).

    Raises:
        ValueError: an unknown mode, or numbers that do not fit together; in the forward pass, other channels.
    """

    _names = ("numerator_v", "denominator_v")

    def __init__(
        self,
        in_features: int,
        num_groups: int = 1,
        den_groups: int = 8,
        m: int = 6,
        n: int = 4,
        mode: str = "gelu",
        device: torch.device | str = "cuda",
    ) -> None:
        rows = tuple(groups if groups > 0 else in_features for groups in (num_groups, den_groups))
        groups = max(rows)
        if {*rows} - {1, groups}:
            raise ValueError(f"num_groups and den_groups must be equal or 1, not {rows[0]} and {rows[1]}")
        if in_features % groups != 0:
            raise ValueError(f"{in_features} channels do not divide into {groups} groups")
        super().__init__((rows[0], rows[1]), (m, n), mode, device)
        self.in_features = self._channels = in_features
        self.num_groups, self.den_groups = rows
        self.m, self.n = m, n

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, num_groups={self.num_groups}, den_groups={self.den_groups}, "
            f"order=({self.m - 1}, {self.n})"
        )
