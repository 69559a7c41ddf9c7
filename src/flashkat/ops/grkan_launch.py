"""Launching the second half of a block: the kernels, and cuBLAS between them; all that is needed is looked up once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import launch, norm_launch
from .launch import Launch, on
from .norm_launch import dense
from .op import Metadata


class Saved(NamedTuple):
    """What the backward pass reads beside the layers: for R rows, C channels and H between the linear layers."""

    total: Tensor  # (..., C)
    mean: Tensor  # (...)
    rstd: Tensor
    first: Tensor  # (R, C), what the first linear layer reads
    hidden: Tensor  # (R, H), what it gives, without its bias
    second: Tensor  # (R, H), what the second linear layer reads
    weight1: Tensor  # as they were cast
    weight2: Tensor


@dataclass(frozen=True)
class Plan:
    """What there is to launch for one choice of shapes and dtypes."""

    dtype: torch.dtype
    norm: norm_launch.ForwardLaunch
    norm_backward: norm_launch.BackwardLaunches
    rational: Launch
    rational_backward: launch.BackwardLaunches

    @classmethod
    def make(cls, x: Metadata, branch: Metadata, layers: Sequence[Metadata], eps: float, dtype: torch.dtype) -> "Plan":
        """For tensors as :func:`flashkat.ops.add_norm_grkan` takes them; linear layers read and write ``dtype``."""
        (shape, x_dtype, device, _), branch_dtype = x, branch[1]
        channels, hidden = shape[-1], layers[4][0][0]
        rows = shape.numel() // channels
        first, second = ((a[0], b[0], a[1], b[1]) for a, b in (layers[2:4], layers[6:8]))
        scale, shift, bias1 = (layers[i][1] for i in (0, 1, 5))
        total = torch.promote_types(x_dtype, branch_dtype)
        view = device, torch.Size((rows, hidden)), -1
        layout = dtype, (hidden, 1)
        forward = launch.forward_launch(*view, (layout,) * 2, second, bias1)
        backward = launch.backward_launches(*view, (layout,) * 3, second, bias1)
        # Of contiguous tensors there is a view.
        assert forward is not None
        assert backward is not None
        norm = device, rows, channels
        return cls(
            dtype,
            norm_launch.forward_launch(*norm, (x_dtype, branch_dtype, dtype, scale, shift), first, eps),
            norm_launch.backward_launches(
                *norm, (total, dtype, total, x_dtype, branch_dtype, scale, shift), first, True
            ),
            forward,
            backward,
        )

    def forward(self, x: Tensor, branch: Tensor, layers: Sequence[Tensor]) -> tuple[Tensor, Tensor, Saved]:
        """The sum, the result, and what the backward pass needs."""
        weight1, weight2, bias2 = layers[4].to(self.dtype), layers[8].to(self.dtype), layers[9].to(self.dtype)
        small, (bias1, *second_rational) = dense(*layers[:4]), dense(*layers[5:8])
        with on(x.device):
            total, mean, rstd, first = self.norm(x.contiguous(), branch.contiguous(), *small)
            first = first.view(-1, first.shape[-1])
            hidden = torch.mm(first, weight1.t())
            second = torch.empty_like(hidden)
            self.rational(hidden, bias1, *second_rational, second)
        out = F.linear(second.view(*x.shape[:-1], -1), weight2, bias2)
        return total, out, Saved(total, mean, rstd, first, hidden, second, weight1, weight2)

    def backward(
        self,
        grad_total: Tensor,
        grad_out: Tensor,
        tensors: list[Tensor],
        layers: Sequence[Tensor],
        wanted: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        """The gradients of x, branch and the layers, each in the dtype of what it belongs to.

        Args:
            grad_total: that of the sum.
            grad_out: that of the result.
            tensors: those of :class:`Saved`; emptied, so that their memory is free as soon as it can be.
            layers: as in the forward pass.
            wanted: for each layer, whether its gradient is; without, linear layers have none.
        """
        total, mean, rstd, first, hidden, second, weight1, weight2 = tensors
        tensors.clear()
        small, (bias1, numerator2, denominator2) = dense(*layers[:4]), dense(*layers[5:8])
        grad = grad_out.reshape(-1, grad_out.shape[-1])
        grad_bias2 = grad.sum(0, dtype=layers[9].dtype) if wanted[9] else None
        grad_weight2 = _product(grad.t(), second, layers[8].dtype) if wanted[8] else None
        del second
        grad = torch.mm(grad, weight2)
        with on(total.device):
            grad, grad_numerator2, grad_denominator2, grad_bias1 = self.rational_backward(
                grad, torch.empty_like(grad), hidden, numerator2, denominator2, bias1
            )
            del hidden
            grad_weight1 = _product(grad.t(), first, layers[4].dtype) if wanted[4] else None
            del first
            grad = torch.mm(grad, weight1).view(total.shape)
            grads = self.norm_backward(grad_total.contiguous(), grad, total, mean, rstd, *small)
        return *grads, grad_weight1, grad_bias1, grad_numerator2, grad_denominator2, grad_weight2, grad_bias2


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a b, rounded once, and by cuBLAS: another pass over memory takes the host as long as the product itself."""
    return torch.mm(a, b) if a.dtype == dtype else torch.mm(a, b, out_dtype=dtype)
