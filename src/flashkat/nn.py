"""Modules on top of the operator: a learnable activation, and the GR-KAN that takes the place of an MLP."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from .coefficients import starting_coefficients
from .names import renamings
from .ops import linear_rational, rational

__all__ = ["GRKAN", "GroupRational"]


class GroupRational(nn.Module):
    """Learnable group-wise rational activation: an element-wise function per group of channels.

    The channels along ``dim`` form ``groups`` contiguous groups. Each coefficient table has a row per group, or one
    row that all groups share; sharing the numerator is the default, as in the published models (m = 6 and n = 4
    coefficients, 8 groups, one numerator).

    Args:
        channels: size of dimension ``dim`` of the input.
        groups: number of groups; must divide ``channels``.
        share_numerator: one numerator for all groups.
        share_denominator: one denominator for all groups.
        m: number of numerator coefficients, at least 1.
        n: number of denominator coefficients, at least 0.
        start: named starting function, exact for "identity" and a fit on [-3, 3] for the others: relu, leaky_relu, elu,
            gelu, swish (silu), mish, softplus, tanh, sigmoid, geglu, swishglu.
        dim: the channel dimension of the input; 1 for NCHW.
        device: where the coefficients live.
        dtype: dtype of the coefficients. The input may have any floating-point dtype.

    Shapes:
        Input and output: the same, any number of dimensions, with ``channels`` along ``dim``.
        ``numerator``: (1 or groups, m); ``denominator``: (1 or groups, n).

    ``load_state_dict`` also takes the coefficients under the names of KAT's and FlashKAT's code (see
    :mod:`flashkat.names`).

    Raises:
        ValueError: numbers that do not fit together, or an unknown start.
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
        start: str = "identity",
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
        starting_coefficients(start, m, n)
        self.channels = channels
        self.groups = groups
        self.start = start
        self.dim = dim
        self.numerator = nn.Parameter(torch.empty(1 if share_numerator else groups, m, device=device, dtype=dtype))
        self.denominator = nn.Parameter(torch.empty(1 if share_denominator else groups, n, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set every group back to the starting function."""
        numerator, denominator = starting_coefficients(self.start, self.numerator.shape[1], self.denominator.shape[1])
        self.numerator.copy_(numerator.expand_as(self.numerator))
        self.denominator.copy_(denominator.expand_as(self.denominator))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim and -x.ndim <= self.dim < x.ndim and x.shape[self.dim] != self.channels:
            raise ValueError(f"expected {self.channels} channels in dim {self.dim}, got x of shape {tuple(x.shape)}")
        return rational(x, self.numerator, self.denominator, dim=self.dim)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # What load_state_dict hands over is its own copy.
        for old, new in renamings(state_dict, [prefix + name for name in self._parameters]).items():
            state_dict[new] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        tables = f"numerator={tuple(self.numerator.shape)}, denominator={tuple(self.denominator.shape)}"
        return f"{self.channels}, groups={self.groups}, {tables}, start={self.start!r}, dim={self.dim}"


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a GroupRational along the last dimension that nobody has hooks in, and no kind of its own."""
    return type(module) is GroupRational and module.dim == -1 and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Whether someone wants to see or change what goes into a module or comes out of it, or what it does."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "forward" in module.__dict__
    )


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear and not is_hooked(module)


def _is_idle(module: nn.Module) -> bool:
    """Whether a module gives back what it gets: dropout of nothing, or where nobody trains."""
    kind = type(module)
    idle = kind is nn.Identity or (kind is nn.Dropout and (module.p == 0 or not module.training))
    return idle and not is_hooked(module)


def hooks_are_global() -> bool:
    """Whether someone wants to see or change what goes into modules or comes out of them, whichever they are."""
    return bool(nn.modules.module._has_any_global_hook())


class GRKAN(nn.Module):
    """Group-rational KAN layer (Yang & Wang, ICLR 2025, section 4.3), where a transformer expects its MLP.

    rational (starts as identity) -> dropout -> Linear -> rational (starts as ``start``) -> dropout -> Linear.

    It takes the arguments that timm passes to an ``mlp_layer``; its linear layers have the names of timm's ``Mlp``, so
    that the weights of a ViT load into it. ``act_layer`` is accepted and not used: the rationals are the activation.

    Args:
        in_features: channels of the input.
        hidden_features: channels between the linear layers; ``in_features`` if not given.
        out_features: channels of the output; ``in_features`` if not given.
        act_layer: ignored.
        norm_layer: a normalisation of the hidden channels, before the second linear layer.
        bias: whether the linear layers have biases: one flag, or one for each.
        drop: dropout probability: one number, or one for each.
        use_conv: 1x1 convolutions on NCHW input in place of linear layers on channels-last input.
        m: number of numerator coefficients.
        n: number of denominator coefficients.
        num_groups: number of numerators, 1 for a shared one.
        den_groups: number of denominators, 1 for a shared one. The larger of the two is the number of groups, and
            the smaller must equal it or be 1.
        start: starting function of the second rational.
        device: where the parameters live.
        dtype: dtype of the parameters.

    Raises:
        ValueError: numbers of groups that do not fit together or do not divide the channels.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[..., nn.Module] | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
        *,
        m: int = 6,
        n: int = 4,
        num_groups: int = 1,
        den_groups: int = 8,
        start: str = "swish",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden_features = hidden_features or in_features
        out_features = out_features or in_features
        biases, drops = to_2tuple(bias), to_2tuple(drop)
        groups = max(num_groups, den_groups)
        if {num_groups, den_groups} - {1, groups}:
            raise ValueError(f"num_groups and den_groups must be equal or 1, not {num_groups} and {den_groups}")

        def activation(channels: int, start: str) -> GroupRational:
            return GroupRational(
                channels,
                groups,
                share_numerator=num_groups == 1,
                share_denominator=den_groups == 1,
                m=m,
                n=n,
                start=start,
                dim=1 if use_conv else -1,
                device=device,
                dtype=dtype,
            )

        def linear(channels_in: int, channels_out: int, bias: bool) -> nn.Linear | nn.Conv2d:
            if use_conv:
                return nn.Conv2d(channels_in, channels_out, 1, bias=bias, device=device, dtype=dtype)
            return nn.Linear(channels_in, channels_out, bias=bias, device=device, dtype=dtype)

        self.act1 = activation(in_features, "identity")
        self.drop1 = nn.Dropout(drops[0])
        self.fc1 = linear(in_features, hidden_features, biases[0])
        self.act2 = activation(hidden_features, start)
        self.drop2 = nn.Dropout(drops[1])
        self.norm = norm_layer(hidden_features, device=device, dtype=dtype) if norm_layer else nn.Identity()
        self.fc2 = linear(hidden_features, out_features, biases[1])

    def reset_parameters(self) -> None:
        """Set the rationals back to their starting functions and the other layers to their own defaults."""
        for child in self.children():
            reset = getattr(child, "reset_parameters", None)
            if reset is not None:
                reset()

    def forward(self, x: Tensor) -> Tensor:
        return self.after_first_rational(self.act1(x))

    def after_first_rational(self, x: Tensor) -> Tensor:
        """What is left to do where the first rational has been applied, by a kernel that does more."""
        x, linear, second = self.drop1(x), self.fc1, self.act2
        if _is_linear(linear) and is_plain(second) and not hooks_are_global():
            x = linear_rational(x, linear.weight, linear.bias, second.numerator, second.denominator)
        else:
            x = second(linear(x))
        return self.fc2(self.norm(self.drop2(x)))

    def plain_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] | None:
        """Those of what follows the first rational, if linear, rational, linear is all that it does.

        Weight and bias, numerator and denominator, weight and bias. For callers that have seen to global hooks.
        """
        first, second, last = self.fc1, self.act2, self.fc2
        if (
            not (_is_linear(first) and is_plain(second) and _is_linear(last))
            or first.bias is None
            or last.bias is None
            or not (_is_idle(self.drop1) and _is_idle(self.drop2) and _is_idle(self.norm))
        ):
            return None
        return first.weight, first.bias, second.numerator, second.denominator, last.weight, last.bias

    def extra_repr(self) -> str:
        return f"in_features={self.act1.channels}, hidden_features={self.act2.channels}"
