"""Mixup and cutmix of whole batches, written into the input of the training step."""

from collections.abc import Callable
from typing import Any

import torch
from timm.data import Mixup
from timm.data.mixup import cutmix_bbox_and_lam, mixup_target
from torch import Tensor

__all__ = ["Mixer"]

_Box = tuple[int, int, int, int]


class Mixer(Mixup):
    """Mix images as timm does, but leave the given ones unchanged. In mode ``batch``, a GPU takes two launches.

    Attributes:
        buffer: returns a tensor for the mixed images, like the given ones.
    """

    buffer: Callable[[Tensor], Tensor] = staticmethod(torch.empty_like)

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.mode != "batch":
            return super().__call__(x.clone(), target)
        mix, mixed_target = _mix, mixup_target
        if x.is_cuda:
            from ..data.batched.augment import mix, mixed_target  # imports Triton, which only GPUs need
        share, inside, box = self._drawn(x)
        mixed = x
        if share != 1:
            mixed = self.buffer(x)
            mix(x, mixed, inside, box)
        return mixed, mixed_target(target, self.num_classes, share, self.label_smoothing)

    def _drawn(self, images: Tensor) -> tuple[float, float, _Box]:
        """Return an image's own share of its target, its share of the pixels in a box, and the box."""
        share, cuts = self._params_per_batch()
        if not cuts:
            return share, share, (0, images.shape[2], 0, images.shape[3])
        options: dict[str, Any] = {"ratio_minmax": self.cutmix_minmax, "correct_lam": self.correct_lam}
        (top, bottom, left, right), share = cutmix_bbox_and_lam(images.shape, share, **options)
        return share, 0.0, (int(top), int(bottom), int(left), int(right))


def _mix(images: Tensor, out: Tensor, share: float, box: _Box) -> None:
    """Do what :func:`flashkat.data.batched.augment.mix` does, on any device."""
    top, bottom, left, right = box
    out.copy_(images)
    out[..., top:bottom, left:right].lerp_(images[..., top:bottom, left:right].flip(0), 1 - share)
