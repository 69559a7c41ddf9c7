"""Measure the costs of an epoch: waiting for data, and GPU memory."""

from typing import Any

import torch
from torch import nn

__all__ = ["peak_memory", "share_waited"]


def share_waited(loader: Any, seconds: float) -> float | None:
    """Return the share of an epoch spent waiting for the loader, or None if the loader does not measure it.

    Args:
        loader: the training loader.
        seconds: duration of the epoch.
    """
    waited = getattr(loader, "waited", None)
    return None if waited is None else min(waited / max(seconds, 1e-9), 1.0)


def peak_memory(model: nn.Module) -> dict[str, float]:
    """Return ``peak_memory_gib``, the peak of tensors on the model's GPU, in GiB; empty on other devices."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return {}
    return {"peak_memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 3)}
