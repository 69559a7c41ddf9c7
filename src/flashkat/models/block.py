"""The block of a KAT: timm's, with the addition, LayerNorm and first rational of its second half fused."""

from typing import Any

import timm.layers
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..nn.fusing import hooks_are_global, is_hooked, is_plain, two_tensors
from ..nn.grkan import GRKAN
from ..ops import Layers, add_norm_grkan, add_norm_rational, fuses, takes_one_call

__all__ = ["KATBlock"]

_LAYER_NORMS = (nn.LayerNorm, timm.layers.LayerNorm)


class KATBlock(Block):
    """timm's pre-norm block, with the same parameters and results.

    On a GPU, if the second half is LayerNorm and a plain :class:`flashkat.GRKAN` without hooks,
    :func:`flashkat.ops.add_norm_rational` fuses the addition, LayerNorm and first rational. In eager mode
    :func:`flashkat.ops.add_norm_grkan` computes all of the second half, since small models are host-bound.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        branch = self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, **kwargs)))
        parts: Any = self._modules  # much faster than attributes
        norm, mlp = parts["norm2"], parts["mlp"]
        # The device is asked first: on a CPU nothing fuses.
        parameters = _plain_parameters(norm, mlp) if fuses(x) else None
        others = mlp.plain_parameters() if parameters is not None and takes_one_call(x, mlp.recompute) else None
        if parameters is None:
            x = x + branch
            del branch  # Without gradients, this frees its memory for the second half.
            second = mlp(norm(x))
        elif others is None:
            x, first = add_norm_rational(x, branch, *parameters, norm.eps)
            del branch
            second = mlp.after_first_rational(first)
        else:
            x, second = add_norm_grkan(x, branch, Layers(*parameters, *others), norm.eps, mlp.recompute)
        return x + self.drop_path2(self.ls2(second))


def _plain_parameters(norm: Any, mlp: Any) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Return scale, bias, numerator and denominator of a plain LayerNorm and first rational, else None.

    Each is looked up once: look-ups are a good part of the block's host time.
    """
    if (
        type(norm) not in _LAYER_NORMS
        or type(mlp) is not GRKAN
        or getattr(norm, "_fast_norm", False)
        or is_hooked(norm)
        or is_hooked(mlp)
        or hooks_are_global()
    ):
        return None
    first: Any = mlp._modules["act1"]
    weight, bias = two_tensors(norm, "weight", "bias")
    if weight is None or bias is None or not is_plain(first):
        return None
    return weight, bias, *two_tensors(first, "numerator", "denominator")
