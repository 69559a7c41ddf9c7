"""Run a model on an example, and compare what it returns."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError, explain

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

    def outputs(self, where: str = "on the example", hint: str = "") -> list[Tensor]:
        """Return copies of all floating-point tensors that the model returns.

        Args:
            where: what a message says after "does not run".
            hint: the end of that message.

        Raises:
            InputError: the model does not run on the example, or returns NaN.
        """
        name = type(self._model).__name__
        modes = [(module, module.training) for module in self._model.modules()]
        devices = {tensor.device for tensor in self._model.parameters() if tensor.is_cuda}
        try:
            with (
                explain(f"{name} does not run {where}", hint),
                torch.no_grad(),
                torch.random.fork_rng(list(devices)),
            ):
                torch.manual_seed(0)
                out = self._model.eval()(*self._args, **self._kwargs)
        finally:
            for module, mode in modes:
                module.training = mode
        found = [tensor.detach().clone() for tensor in _tensors(out)]
        # A model may mask outputs by infinity.
        if math.isnan(reach(found)):
            raise InputError(f"{name} returns NaN {where}{hint or '; give another example'}")
        return found


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Return the largest difference between two lists of tensors of the same shapes, NaN if one is NaN."""
    pairs = zip(one, other, strict=True)
    return reach([torch.where(a == b, 0.0, a.double() - b.double()) for a, b in pairs])


def reach(tensors: list[Tensor]) -> float:
    """Return the largest magnitude in a list of tensors, NaN if one holds NaN."""
    found = [float(values.abs().max()) for values in tensors if values.numel()]
    # Python's max passes over a NaN that is not the first.
    return math.nan if any(map(math.isnan, found)) else max(found, default=0.0)


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        if out.is_floating_point():
            yield out
    elif isinstance(out, (Mapping, tuple, list)):
        for value in out.values() if isinstance(out, Mapping) else out:
            yield from _tensors(value)
