"""The block of a KAT: timm's, with the addition, LayerNorm and rational between its halves taken in one."""

from typing import Any

import timm.layers
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..nn import GRKAN, is_hooked, is_plain
from ..ops import add_norm_rational

__all__ = ["KATBlock"]

_LAYER_NORMS = (nn.LayerNorm, timm.layers.LayerNorm)


class KATBlock(Block):
    """timm's pre-norm block, of the same parameters and results.

    Where its second half is LayerNorm and a plain :class:`flashkat.GRKAN` that nobody has hooks in,
    :func:`flashkat.ops.add_norm_rational` adds, normalises and applies the first rational in one pass over memory.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        branch = self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, **kwargs)))
        norm, mlp = self.norm2, self.mlp
        plain = self._is_plain()
        if plain:
            x, first = add_norm_rational(
                x, branch, norm.weight, norm.bias, mlp.act1.numerator, mlp.act1.denominator, norm.eps
            )
        else:
            x = x + branch
        del branch  # Without gradients the second half can have its memory.
        second = mlp.after_first_rational(first) if plain else mlp(norm(x))
        return x + self.drop_path2(self.ls2(second))

    def _is_plain(self) -> bool:
        norm, mlp = self.norm2, self.mlp
        return (
            type(norm) in _LAYER_NORMS
            and not getattr(norm, "_fast_norm", False)
            and norm.weight is not None
            and norm.bias is not None
            and type(mlp) is GRKAN
            and is_plain(mlp.act1)
            and not is_hooked(norm)
            and not is_hooked(mlp)
        )
