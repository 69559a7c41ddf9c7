"""A learnable activation: a rational function for each group of channels."""

import torch
from torch import Tensor, nn

from ..ops import rational
from .formats import accept_formats
from .learned.rationals import Rational
from .starts import Start, kept_start, starting_coefficients

__all__ = ["GroupRational"]


class GroupRational(Rational):
    """Learnable rational activation: an element-wise function for each group of channels.

    The channels along ``dim`` form ``groups`` contiguous groups. Each table of coefficients has a row for each group,
    or one row that all groups share. The defaults are those of the published models, which share the numerator.

    Args:
        channels: size of dimension ``dim`` of the input.
        groups: number of groups. It must divide ``channels``.
        share_numerator: one numerator for all groups.
        share_denominator: one denominator for all groups.
        m: number of numerator coefficients, at least 1.
        n: number of denominator coefficients, at least 0.
        start: starting function, exact for "identity" and a fit on [-3, 3] for the other names: relu, leaky_relu, elu,
            gelu, swish (silu), mish, softplus, tanh, sigmoid, geglu, swishglu, and the further names of
            :data:`flashkat.nn.FUNCTIONS`. Any function of a tensor is fitted in the same way. The module keeps that
            fit, and not the function. A result of :func:`flashkat.fit` is taken as it is.
        dim: the channel dimension of the input; 1 for NCHW.
        device: where the coefficients live.
        dtype: dtype of the coefficients. The input may have any floating-point dtype.

    Shapes:
        Input and output: the same, any number of dimensions, with ``channels`` along ``dim``.
        ``numerator``: (1 or groups, m); ``denominator``: (1 or groups, n).

    ``load_state_dict`` also takes the names of KAT's and FlashKAT's code: see ``FORMATS`` in
    :mod:`flashkat.nn.formats`.

    Raises:
        ValueError: numbers that do not fit together, an unknown start, or a function that cannot be fitted.
    """

    def __init__(
        self,
        channels: int,
        groups: int = 8,
        *,
        share_numerator: bool = True,
        share_denominator: bool = False,
        m: int = 6,
        n: int = 4,
        start: Start = "identity",
        dim: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups < 1:
            raise ValueError(f"groups must be at least 1, not {groups}")
        if channels < 1 or channels % groups != 0:
            raise ValueError(f"{channels} channels do not divide into {groups} groups")
        if m < 1 or n < 0:
            raise ValueError(f"a rational needs m >= 1 and n >= 0 coefficients, not m={m} and n={n}")
        self.channels = channels
        self.groups = groups
        self.start = kept_start(start, m, n)
        self.dim = dim
        self.numerator = nn.Parameter(torch.empty(1 if share_numerator else groups, m, device=device, dtype=dtype))
        self.denominator = nn.Parameter(torch.empty(1 if share_denominator else groups, n, device=device, dtype=dtype))
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(accept_formats)

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """The coefficients of numerator and denominator."""
        return self.numerator, self.denominator

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set every group back to the starting function."""
        numerator, denominator = starting_coefficients(self.start, self.numerator.shape[1], self.denominator.shape[1])
        self.numerator.copy_(numerator.expand_as(self.numerator))
        self.denominator.copy_(denominator.expand_as(self.denominator))

    def forward(self, x: Tensor) -> Tensor:
        return rational(x, self.numerator, self.denominator, dim=self.dim, channels=self.channels)

    def extra_repr(self) -> str:
        tables = f"numerator={tuple(self.numerator.shape)}, denominator={tuple(self.denominator.shape)}"
        return f"{self.channels}, groups={self.groups}, {tables}, start={self.start!r}, dim={self.dim}"
