"""What some flags add to a step or an epoch of the loop."""

from pathlib import Path
from typing import Any

import torch
from timm.utils import distribute_bn
from torch import nn
from torchvision.utils import save_image

from ..system import distributed

__all__ = ["distribute_norms", "peak_memory", "save_images", "share_waited", "synchronize"]


def share_waited(loader: Any, seconds: float) -> float | None:
    """The share of an epoch's seconds that went by waiting for the loader, if it counts them."""
    waited = getattr(loader, "waited", None)
    return None if waited is None else min(waited / max(seconds, 1e-9), 1.0)


def peak_memory(model: nn.Module) -> dict[str, float]:
    """The most GPU memory that this process's tensors took so far, in GiB; nothing for a model on another device."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return {}
    return {"peak_memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 3)}


def save_images(images: torch.Tensor, path: Path) -> None:
    """Save a batch as one picture, its values stretched to what can be seen."""
    save_image(images.float(), path, padding=0, normalize=True)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def distribute_norms(model: nn.Module, how: str) -> None:
    """Give every process the same running statistics of batch norms: ``broadcast``, ``reduce`` or neither."""
    if how and distributed.size() > 1:
        distribute_bn(model, distributed.size(), how == "reduce")
