"""The inputs that a model's rationals see."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .rationals import Rational, rationals

__all__ = ["ends", "input_ranges", "sampled_inputs"]

# Values drawn from each batch: enough for quantiles in thousandths.
_SAMPLES = 100_000
_QUANTILES = (0.001, 0.999)


def input_ranges(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, tuple[float, float]]:
    """Measure the range of inputs that each rational of a model sees, from the 0.1% to the 99.9% quantile.

    Args:
        model: any module with :class:`flashkat.GroupRational` modules in it, or those of ``flashkat.compat``.
        batches: inputs of the model.

    Returns:
        (low, high) by the rational's module name.
    """
    return {name: ends(values) for name, values in sampled_inputs(model, batches).items()}


def ends(values: Tensor) -> tuple[float, float]:
    """Return the 0.1% and the 99.9% quantile of numbers, which leave outliers out."""
    low, high = values.flatten().quantile(torch.tensor(_QUANTILES)).tolist()
    return low, high


@torch.inference_mode()
def sampled_inputs(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Draw from the inputs that each rational of a model sees. The same inputs give the same sample.

    Args:
        model: any module with rationals.
        batches: inputs of the model.

    Returns:
        Float32 tensors of shape (groups, samples) on the CPU, by the rational's module name. A rational with one
        function has one group.
    """
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(module: Rational, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].movedim(module.dim, -1)
            channels = x.shape[-1]
            rows, most = x.numel() // max(channels, 1), max(_SAMPLES // max(channels, 1), 1)
            x = x.reshape(rows, channels)
            if rows > most:
                chosen = torch.randint(rows, (most,), generator=torch.Generator().manual_seed(0))
                x = x[chosen.to(x.device)]
            groups = max(map(len, module.tables))
            by_group = x.reshape(len(x), groups, channels // groups).transpose(0, 1).reshape(groups, -1)
            seen.setdefault(name, []).append(by_group.float().cpu())

        return hook

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in rationals(model).items()]
    trained = [module for module in model.modules() if module.training]
    try:
        model.eval()
        for images in batches:
            model(images)
    finally:
        for each in hooks:
            each.remove()
        for module in trained:
            module.training = True
    return {name: torch.cat(values, dim=1) for name, values in seen.items()}
