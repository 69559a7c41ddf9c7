"""What an epoch cost beside its time: waiting for data, and memory of the GPU."""

from typing import Any

import torch
from torch import nn

__all__ = ["peak_memory", "share_waited"]


def share_waited(loader: Any, seconds: float) -> float | None:
    """Return the share of an epoch's seconds that went by waiting for the loader, if it counts them."""
    waited = getattr(loader, "waited", None)
    return None if waited is None else min(waited / max(seconds, 1e-9), 1.0)


def peak_memory(model: nn.Module) -> dict[str, float]:
    """Return the most GPU memory that this process's tensors took so far, in GiB; nothing for a model on a CPU."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return {}
    return {"peak_memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 3)}
