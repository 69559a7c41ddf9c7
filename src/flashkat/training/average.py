"""The moving average of a model's weights: timm's, with less work for the host at each update."""

from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.sgd import sgd

__all__ = ["MovingAverage"]


class MovingAverage(ModelEmaV3):
    """Average one model's weights as timm does, but list the tensors only once.

    timm lists them at each update. Host time of an update of KAT-Tiny, with 200 tensors, without the kernel: 3.2 ms in
    timm 1.0.29 and 1.0.31, 0.04 ms here. Averages on another device or of other dtypes than float32 use timm's code.
    """

    def __init__(self, model: nn.Module, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self._tensors: tuple[list[Tensor], list[Tensor]] | None = None

    def is_plain(self, model: nn.Module) -> bool:
        """Return whether the average has only float32 tensors on the model's device."""
        if self._tensors is None:
            # At the first update, because both models may be sharded after the average is made.
            self._tensors = list(self.module.state_dict().values()), list(model.state_dict().values())
            all_alike = {tensor.dtype for tensors in self._tensors for tensor in tensors} == {torch.float32}
            self._is_plain = self.foreach and all_alike
        return self._is_plain

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        if self.is_plain(model) and self._tensors is not None:
            torch._foreach_lerp_(*self._tensors, weight=1 - decay)
        else:
            super().apply_update_(model, decay)

    @torch.no_grad()
    def approach(self, model: nn.Module, weight: Tensor) -> None:
        """Move the average towards a model's weights by a factor in the GPU's memory, for CUDA graphs.

        The interpolation is a step of SGD with weight decay 1 along -model: average - weight (average - model). No
        other kernel of PyTorch reads the factor from memory and each tensor once.

        Args:
            model: the model.
            weight: 1 - decay, a scalar on the GPU.

        Raises:
            ValueError: the average is not plain, see :meth:`is_plain`.
        """
        if not self.is_plain(model) or self._tensors is None:
            raise ValueError("the average is not plain")
        own, theirs = self._tensors
        sgd(
            own,
            theirs,
            [None] * len(own),
            fused=True,
            weight_decay=1.0,
            momentum=0.0,
            lr=weight,
            dampening=0.0,
            nesterov=False,
            maximize=True,
        )
