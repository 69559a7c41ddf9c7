"""The launches of a block's second half: the kernels, with cuBLAS between them, from a plan that is made once."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..call import without_autocast
from ..layout import Layers, Metadata
from . import norm as norm_launch
from . import rational as launch
from .launcher import Launch, dense, described_coefficients, on


class Saved(NamedTuple):
    """The tensors that the backward pass reads beside the layers: R rows, C channels, H hidden channels."""

    total: Tensor  # (..., C)
    mean: Tensor  # (...)
    rstd: Tensor
    first: Tensor | None  # (R, C), what the first linear layer reads, None where it is recomputed
    hidden: Tensor  # (R, H), what it gives, without its bias
    second: Tensor | None  # (R, H), what the second linear layer reads, likewise
    weight1: Tensor | None  # as they were cast, None where they were not
    weight2: Tensor | None


@dataclass(frozen=True)
class Plan:
    """The launches for one choice of shapes and dtypes.

    With ``recompute`` the backward kernels compute both rationals again, so that their values need not be saved.
    """

    dtype: torch.dtype
    recompute: bool
    norm: norm_launch.NormForward
    norm_backward: norm_launch.NormBackward
    rational: Launch
    rational_backward: launch.RationalBackward

    @classmethod
    def make(
        cls, x: Metadata, branch: Metadata, layers: Layers, eps: float, dtype: torch.dtype, recompute: bool
    ) -> "Plan":
        """Make the plan for arguments of :func:`flashkat.ops.add_norm_grkan`. Linear layers compute in ``dtype``."""
        (shape, x_dtype, device, _), branch_dtype = x, branch[1]
        channels, hidden = shape[-1], layers.weight1[0][0]
        rows = shape.numel() // channels
        total, scale, shift = torch.promote_types(x_dtype, branch_dtype), layers.scale[1], layers.shift[1]
        norm = device, rows, channels
        coefficients = described_coefficients(layers.numerator1, layers.denominator1)
        forward_dtypes = x_dtype, branch_dtype, dtype, scale, shift
        backward_dtypes = total, dtype, total, x_dtype, branch_dtype, scale, shift
        normed = norm_launch.forward_launch(*norm, forward_dtypes, coefficients, eps)
        normed_backward = norm_launch.backward_launches(*norm, backward_dtypes, coefficients, True, recompute)
        view, layout = (device, torch.Size((rows, hidden)), -1), (dtype, (hidden, 1))
        rest = described_coefficients(layers.numerator2, layers.denominator2), layers.bias1[1]
        rational = launch.forward_launch(*view, (layout,) * 2, *rest)
        rational_backward = launch.backward_launches(*view, (layout,) * 3, *rest, recompute)
        # Contiguous tensors have a view.
        assert rational is not None
        assert rational_backward is not None
        return cls(dtype, recompute, normed, normed_backward, rational, rational_backward)

    def forward(self, x: Tensor, branch: Tensor, layers: Layers) -> tuple[Tensor, Tensor, Saved]:
        """Return the sum, the result, and what the backward pass needs."""
        norm, (bias1, *coefficients2) = dense(*layers[:4]), dense(*layers[5:8])
        weight1, weight2 = layers.weight1.to(self.dtype), layers.weight2.to(self.dtype)
        with on(x.device):
            total, mean, rstd, first = self.norm(x.contiguous(), branch.contiguous(), *norm)
            first = first.view(-1, first.shape[-1])
            hidden = torch.mm(first, weight1.t())
            second = torch.empty_like(hidden)
            self.rational(hidden, bias1, *coefficients2, second)
        # F.linear returns a view, and a view of a custom function cannot be changed in place.
        out = x.new_empty((*x.shape[:-1], weight2.shape[0]), dtype=self.dtype)
        torch.addmm(layers.bias2.to(self.dtype), second, weight2.t(), out=out.view(second.shape[0], -1))
        cast1 = None if weight1 is layers.weight1 else weight1
        cast2 = None if weight2 is layers.weight2 else weight2
        kept = (None, None) if self.recompute else (first, second)
        return total, out, Saved(total, mean, rstd, kept[0], hidden, kept[1], cast1, cast2)

    def without_gradients(self, x: Tensor, branch: Tensor, layers: Layers) -> tuple[Tensor, Tensor]:
        """Return the sum and the result. It makes fewer calls of PyTorch than :meth:`forward`."""
        norm, (bias1, *coefficients2) = dense(*layers[:4]), dense(*layers[5:8])
        with on(x.device):
            total, _, _, first = self.norm(x.contiguous(), branch.contiguous(), *norm)
            hidden = F.linear(first, layers.weight1.to(self.dtype))
            del first
            second = torch.empty_like(hidden)
            self.rational(hidden, bias1, *coefficients2, second)
            del hidden
        return total, F.linear(second, layers.weight2.to(self.dtype), layers.bias2.to(self.dtype))

    def backward(
        self, grad_total: Tensor, grad_out: Tensor, saved: list[Tensor | None], layers: Layers
    ) -> tuple[Tensor, ...]:
        """Return the gradients of x, branch and the layers, each in the dtype of its tensor.

        A weight's gradient needs what the layer read. Where that is recomputed, the rational's gradient comes first.

        Args:
            grad_total: the gradient of the sum.
            grad_out: the gradient of the result.
            saved: see :class:`Saved`. The list is emptied, so that memory is freed early.
            layers: as in the forward pass.
        """
        total, mean, rstd, first, hidden, second, weight1, weight2 = Saved(*saved)  # type: ignore[arg-type]
        saved.clear()
        # Hooks of saved tensors may have changed their strides.
        total, mean, rstd, hidden = dense(total, mean, rstd, hidden)
        scale, shift, numerator1, denominator1 = dense(*layers[:4])
        bias1, numerator2, denominator2 = dense(*layers[5:8])
        with on(total.device), without_autocast(total.device):
            rows = grad_out.reshape(-1, grad_out.shape[-1])
            grad_bias2 = rows.sum(0, dtype=layers.bias2.dtype)
            if second is not None:
                grad_weight2 = _product(rows.t(), second, layers.weight2.dtype)
                second = None
            else:
                second = torch.empty_like(hidden)
            grad = torch.mm(rows, layers.weight2 if weight2 is None else weight2)
            grad_hidden, grad_numerator2, grad_denominator2, grad_bias1 = self.rational_backward(
                grad, torch.empty_like(grad), hidden, numerator2, denominator2, bias1, second
            )
            del grad, hidden
            if second is not None:
                grad_weight2 = _product(rows.t(), second, layers.weight2.dtype)
                del second
            if first is not None:
                grad_weight1 = _product(grad_hidden.t(), first, layers.weight1.dtype)
                first = None
            grad_first = torch.mm(grad_hidden, layers.weight1 if weight1 is None else weight1)
            if self.recompute:
                first = torch.empty_like(grad_first)
            (grad_total,), grad_first = dense(grad_total), grad_first.view(total.shape)
            grads = self.norm_backward(
                grad_total, grad_first, total, mean, rstd, scale, shift, numerator1, denominator1, first
            )
            if first is not None:
                grad_weight1 = _product(grad_hidden.t(), first, layers.weight1.dtype)
        return *grads, grad_weight1, grad_bias1, grad_numerator2, grad_denominator2, grad_weight2, grad_bias2


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a b, rounded once by cuBLAS. Another launch takes the host as long as the product itself."""
    return torch.mm(a, b) if a.dtype == dtype else torch.mm(a, b, out_dtype=dtype)
