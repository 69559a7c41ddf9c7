"""GRKAN: the group-rational KAN layer, in place of an MLP."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from ..ops import fuses, linear_rational, linear_rational_linear
from .fusing import hooks_are_global, is_idle, is_linear, is_plain, two_tensors
from .group_rational import GroupRational
from .starts import Start

__all__ = ["GRKAN"]


class GRKAN(nn.Module):
    """Group-rational KAN layer (Yang & Wang, ICLR 2025, section 4.3), where a transformer expects its MLP.

    rational (starts as identity) -> dropout -> Linear -> rational (starts as ``start``) -> dropout -> Linear.

    It takes the arguments that timm passes to an ``mlp_layer``. Its linear layers have the names of timm's ``Mlp``, so
    that a ViT's weights load into it. ``act_layer`` is accepted and ignored: the rationals are the activation.

    Attributes:
        recompute: on a GPU, training does not save the second rational's values, and computes them again in the
            backward pass. In a KAT's block that goes for both rationals. The bits are the same. Default: True.

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
        num_groups: number of numerators, 1 for a shared one, 0 for one per channel.
        den_groups: number of denominators, likewise. The larger of the two is the number of groups, and the smaller
            must equal it or be 1.
        start: starting function of the second rational, as GroupRational's.
        device: where the parameters live.
        dtype: dtype of the parameters.

    Raises:
        ValueError: numbers of groups that do not fit together or do not divide the channels.
    """

    recompute = True

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
        start: Start = "swish",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden_features = hidden_features or in_features
        out_features = out_features or in_features
        biases, drops = to_2tuple(bias), to_2tuple(drop)
        given = {num_groups, den_groups}
        if min(given) < 0 or len(given - {1}) > 1:
            raise ValueError(f"num_groups and den_groups must be equal or 1, not {num_groups} and {den_groups}")

        def activation(channels: int, start: Start) -> GroupRational:
            groups = channels if 0 in given else max(given)
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

    def forward(self, x: Tensor) -> Tensor:
        return self.after_first_rational(self.act1(x))

    def after_first_rational(self, x: Tensor) -> Tensor:
        """Compute the rest of the layer, from the output of the first rational."""
        x, linear, second = self.drop1(x), self.fc1, self.act2
        fusing = fuses(x) and not hooks_are_global()
        parameters = self.plain_parameters() if fusing and self.recompute else None
        if parameters is not None:
            return linear_rational_linear(x, *parameters)
        if fusing and is_linear(linear) and is_plain(second):
            x = linear_rational(x, linear.weight, linear.bias, second.numerator, second.denominator)
        else:
            x = second(linear(x))
        return self.fc2(self.norm(self.drop2(x)))

    def plain_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] | None:
        """Return the parameters after the first rational, or None if that is more than linear, rational, linear.

        These are weight, bias, numerator, denominator, weight, bias. Callers must check for global hooks.
        """
        parts: Any = self._modules  # much faster than attributes
        first, second, last = parts["fc1"], parts["act2"], parts["fc2"]
        if not (
            is_linear(first)
            and is_plain(second)
            and is_linear(last)
            and is_idle(parts["drop1"])
            and is_idle(parts["drop2"])
            and is_idle(parts["norm"])
        ):
            return None
        weight1, bias1 = two_tensors(first, "weight", "bias")
        weight2, bias2 = two_tensors(last, "weight", "bias")
        if bias1 is None or bias2 is None:
            return None
        return weight1, bias1, *two_tensors(second, "numerator", "denominator"), weight2, bias2

    def extra_repr(self) -> str:
        return f"in_features={self.act1.channels}, hidden_features={self.act2.channels}"
