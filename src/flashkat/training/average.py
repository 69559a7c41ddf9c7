"""The moving average of a model's weights: timm's, with less for the processor to do at each update."""

from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

__all__ = ["MovingAverage"]


class MovingAverage(ModelEmaV3):
    """timm's average of one model, which looks up once which tensors it is over, where timm does at each update.

    Looking them up is a fifth of what a step of a small model takes the processor. Averages on another device, or of
    other tensors than float32 ones, which timm rounds in its own way, are left to timm.
    """

    def __init__(self, model: nn.Module, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self._tensors: tuple[list[Tensor], list[Tensor]] | None = None

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        if self._tensors is None:
            # Not any earlier, as both models may be sharded once the average is made.
            self._tensors = list(self.module.state_dict().values()), list(model.state_dict().values())
            all_alike = {tensor.dtype for tensors in self._tensors for tensor in tensors} == {torch.float32}
            self._is_plain = self.foreach and all_alike
        if self._is_plain:
            torch._foreach_lerp_(*self._tensors, weight=1 - decay)
        else:
            super().apply_update_(model, decay)
