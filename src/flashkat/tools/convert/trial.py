"""Run a model on an example, and compare what it returns."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import explain

__all__ = ["Trial", "difference", "reach"]


class Trial:
    """Runs a model on an example in evaluation, without gradients, and with the same random numbers each time.

    Args:
        model: the model. Its modes are restored.
        example: a tensor, a tuple or list of arguments, or a mapping of keyword arguments.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self._model = model
        self._kwargs = dict(example) if isinstance(example, Mapping) else {}
        self._args = (
            () if isinstance(example, Mapping) else tuple(example) if isinstance(example, (tuple, list)) else (example,)
        )

    def outputs(self, fault: str = "does not run on the example", hint: str = "") -> list[Tensor]:
        """Return copies of all floating-point tensors that the model returns.

        Args:
            fault: what a message says of the model if it does not run.
            hint: the end of that message.

        Raises:
            InputError: the model does not run on the example.
        """
        modes = [(module, module.training) for module in self._model.modules()]
        devices = {tensor.device for tensor in self._model.parameters() if tensor.is_cuda}
        try:
            with (
                explain(f"{type(self._model).__name__} {fault}", hint),
                torch.no_grad(),
                torch.random.fork_rng(list(devices)),
            ):
                torch.manual_seed(0)
                out = self._model.eval()(*self._args, **self._kwargs)
        finally:
            for module, mode in modes:
                module.training = mode
        return [tensor.detach().clone() for tensor in _tensors(out)]


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Return the largest difference between two lists of tensors of the same shapes."""
    pairs = zip(one, other, strict=True)
    return max((_largest(torch.where(a == b, 0.0, a.double() - b.double())) for a, b in pairs), default=0.0)


def reach(tensors: list[Tensor]) -> float:
    """Return the largest magnitude in a list of tensors."""
    return max(map(_largest, tensors), default=0.0)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        if out.is_floating_point():
            yield out
    elif isinstance(out, (Mapping, tuple, list)):
        for value in out.values() if isinstance(out, Mapping) else out:
            yield from _tensors(value)
