"""Numbers that are not finite: in outputs, in the updates of a training, and in the layer where they begin."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..errors import InputError

__all__ = ["BadUpdates", "Trace", "count_outputs", "nonfinite_names", "refuse_outputs"]


def count_outputs(outputs: Tensor) -> Tensor:
    """Count the images whose outputs (B, classes) are not all finite. The number stays on the device."""
    return (~outputs.isfinite()).any(1).sum()


def refuse_outputs(name: str, wrong: int, images: int) -> None:
    """Raise InputError if a model gives outputs that are not finite for some of so many images."""
    if wrong:
        raise InputError(
            f"{name} gives outputs that are not finite for {wrong} of {images} images: "
            "take an earlier checkpoint, or float32"
        )


class BadUpdates:
    """Counts of bad updates. They stay on the device, so that counting does not wait for it, also in CUDA graphs.

    Args:
        device: where the updates are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._updates, self._bad, self._row, self._longest, self._end = (
            torch.zeros((), dtype=torch.int64, device=device) for _ in range(5)
        )

    def add(self, bad: Tensor) -> None:
        """Count an update.

        Args:
            bad: whether it is bad, a boolean scalar on the device.
        """
        self._updates += 1
        self._bad += bad
        self._row += 1
        self._row *= bad
        self._end.copy_(torch.where(self._row > self._longest, self._updates, self._end))
        torch.maximum(self._longest, self._row, out=self._longest)

    def read(self) -> tuple[int, int, int]:
        """Return how many were bad, the longest row of them, and how many updates came after that row.

        This waits for the device.
        """
        bad, longest, after = torch.stack([self._bad, self._longest, self._updates - self._end]).tolist()
        return bad, longest, after


def nonfinite_names(tensors: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors with numbers that are not finite."""
    named = [(name, bad) for name, value in tensors.items() if (bad := _has_nonfinite([value])) is not None]
    return [name for (name, _), bad in zip(named, _read(flag for _, flag in named), strict=True) if bad]


class Trace:
    """Find where the first non-finite number of a training step appears. A context manager, which hooks the modules.

    It looks at weights, images, the inputs and outputs of modules, losses, and every gradient, in the order in which
    they are computed. A gradient belongs to the innermost module that made its operation. The answers stay on the
    device until :meth:`first`.

    Args:
        model: the model. It must run eagerly.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._places = {module: _place(name, module) for name, module in model.named_modules()}
        self._running: list[nn.Module] = []
        # These references keep autograd from making new Python objects for the same nodes.
        self._nodes: set[Any] = set()
        self._found: list[tuple[str, Tensor]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> "Trace":
        for module in self._places:
            self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._nodes.clear()

    def weights(self) -> None:
        """Look at parameters and buffers."""
        for kind, tensors in (("weight", self._model.named_parameters()), ("buffer", self._model.named_buffers())):
            for name, tensor in tensors:
                self._look(f"the {kind} {name}, which is not finite before this update", [tensor])

    def images(self, images: Tensor) -> None:
        """Look at a batch of images, before the forward pass."""
        self._look("the images of the batch, before the model", [images])

    def loss(self, loss: Tensor) -> None:
        """Look at a loss, before its backward pass."""
        self._look("the loss, from finite outputs of the model", [loss])
        self._claim([loss], "the loss")

    def gradients(self) -> None:
        """Look at the gradients of the weights, after the backward pass."""
        for name, parameter in self._model.named_parameters():
            self._look(f"the gradient of the weight {name}, as a sum over batches", [parameter.grad])

    def first(self) -> tuple[int, str] | None:
        """Return the first non-finite number: how many looks came before, and where it is. This waits for the device.

        Processes that run the same model look in the same order. None if all numbers were finite.
        """
        flags = _read(flag for _, flag in self._found)
        return next(((index, what) for index, (what, _) in enumerate(self._found) if flags[index]), None)

    def _look(self, what: str, tensors: Iterable[Any]) -> None:
        bad = _has_nonfinite(tensors)
        if bad is not None:
            self._found.append((what, bad))

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._running:
            around = self._places[self._running[-1]]
            # Masks among the keywords may hold infinities on purpose.
            self._look(f"the forward pass of {around}, in the input of {self._places[module]}", _tensors(args))
            self._claim(_tensors([args, kwargs]), around)
        self._running.append(module)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._running.pop()
        self._look(f"the output of {self._places[module]}", _tensors(output))
        self._claim(_tensors(output), self._places[module])

    def _claim(self, tensors: Iterable[Tensor], place: str) -> None:
        """Look at the gradients of all operations behind the tensors that no module has claimed yet."""
        left = [tensor.grad_fn for tensor in tensors]
        while left:
            node: Any = left.pop()
            # A node of a weight may outlive this step, and gives no gradients on.
            if node is None or node in self._nodes or not node.next_functions:
                continue
            self._nodes.add(node)
            node.register_hook(partial(self._look_backward, f"the backward pass of {place}, from {node.name()}"))
            left.extend(each for each, _ in node.next_functions)

    def _look_backward(self, what: str, gradients: Iterable[Any], _: Any) -> None:
        self._look(what, gradients)


def _place(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})" if name else f"the model ({type(module).__name__}) itself"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


@torch.no_grad()
def _has_nonfinite(values: Iterable[Any]) -> Tensor | None:
    """Return a boolean scalar on the device; None without numbers that could be other than finite."""
    flags = []
    for value in values:
        own = value.to_local() if isinstance(value, DTensor) else value  # every process looks at its own share
        if isinstance(own, Tensor) and (own.is_floating_point() or own.is_complex()):
            flags.append(~own.isfinite().all())
    return torch.stack(flags).any() if flags else None


def _read(flags: Iterable[Tensor]) -> list[bool]:
    known = list(flags)
    return torch.stack([flag.to(known[0].device) for flag in known]).tolist() if known else []
