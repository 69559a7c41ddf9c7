"""One forward pass of a model, watched: where activations are called, and along which dimension channels lie.

A mode sees every function that the model calls. It follows the channels' dimension from layers that define it, such
as linear layers, convolutions and norms, through transpositions, reshaping and elementwise functions.
"""

import copy
import functools
import inspect
import itertools
import math
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import InputError
from .known import is_known_function, name_of

__all__ = ["Call", "Frame", "Watch", "joined_samples"]

_SAMPLES = 4096

_LAST = {"linear", "addmm", "bilinear", "embedding", "layer_norm", "rms_norm", "matmul", "bmm", "baddbmm"}
_LAST |= {"__matmul__", "scaled_dot_product_attention"}
_SECOND = {"batch_norm", "instance_norm", "group_norm"}
_FROM_THE_END = {
    **dict.fromkeys(_LAST, 1),
    **{f"conv{kind}{n}d": n + 1 for kind in ("", "_transpose") for n in (1, 2, 3)},
}
_TRANSPOSITIONS = {"permute", "transpose", "transpose_", "swapaxes", "swapdims", "movedim", "moveaxis", "t"}
_RESHAPES = {"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"}
_UNKNOWN = {"einsum", "__get__", "fold", "unfold"}


@dataclass(eq=False)
class Frame:
    """One run of a module's ``forward``.

    Args:
        module: the module.
        constants: its arguments that are no tensors, by name, with defaults; None is one too.
        calls: the activations that it called itself, in order.
    """

    module: nn.Module
    constants: dict[str, Any]
    calls: list["Call"] = field(default_factory=list)


@dataclass(eq=False)
class Call:
    """One call of an activation.

    Args:
        source: the module, or the name of the function.
        function: computes the activation for other numbers.
        frame: whose ``forward`` called it.
        shape: shape of the input.
        dim: the channels' dimension; None if it is unknown.
        sample: numbers of the input, with its extremes.
        like: an empty tensor on the input's device, with its dtype.
        is_shaped: whether the output has the input's shape.
    """

    source: nn.Module | str
    function: Callable[[Tensor], Tensor]
    frame: Frame
    shape: tuple[int, ...]
    dim: int | None
    sample: Tensor
    like: Tensor
    is_shaped: bool = True


class Watch(TorchFunctionMode):
    """Watches one forward pass, within ``with``. Activations do not write to their input meanwhile.

    Args:
        model: the model that is called.
        activations: the modules in it that are activations.
    """

    def __init__(self, model: nn.Module, activations: Collection[nn.Module]) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.calls: list[Call] = []
        self._model = model
        self._activations = activations
        self._stack: list[Frame] = []
        self._running: Call | None = None
        self._labels: dict[int, tuple[weakref.ref[Tensor], int | Call]] = {}
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> "Watch":
        for module in self._model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            enter = module.register_forward_pre_hook(self._enter, with_kwargs=True)
            leave = module.register_forward_hook(self._leave, always_call=True)
            self._undo += [enter.remove, leave.remove]
            if module in self._activations and getattr(module, "inplace", False) is True:
                vars(module)["inplace"] = False
                self._undo.append(functools.partial(vars(module).update, inplace=True))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for undo in self._undo:
            undo()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        x: Any = args[0] if args else kwargs.get("input")
        call = None
        if self._stack and self._running is None and is_known_function(func) and _is_input(x):
            func, kwargs = _out_of_place(func, kwargs)
            call = self._record(name_of(func), _on_other_numbers(func, args, kwargs), self._stack[-1], x)
        out = func(*args, **kwargs)
        self._follow(func, args, kwargs, out)
        if call is not None:
            self._finish(call, out)
        return out

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._running is None and module in self._activations and args and _is_input(args[0]):
            caller = self._stack[-1] if self._stack else Frame(module, {})
            self._running = self._record(module, _in_float64(module), caller, args[0])
        self._stack.append(Frame(module, _constants(module, args, kwargs)))
        self.frames.append(self._stack[-1])

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self._stack.pop()
        if self._running is not None and self._running.source is module:
            self._finish(self._running, out)
            self._running = None

    def _record(self, source: nn.Module | str, function: Callable[[Tensor], Tensor], frame: Frame, x: Tensor) -> Call:
        label = self._label(x)
        dim = label if isinstance(label, int) else None
        call = Call(source, function, frame, tuple(x.shape), dim, _sample(x), x.new_empty(0))
        frame.calls.append(call)
        self.calls.append(call)
        return call

    def _finish(self, call: Call, out: Any) -> None:
        """Note the dimension of what an activation returns, or that the next layer will tell it."""
        call.is_shaped = isinstance(out, Tensor) and tuple(out.shape) == call.shape
        if call.is_shaped:
            self._set(out, call if call.dim is None else call.dim)

    def _label(self, x: Tensor) -> int | Call | None:
        known = self._labels.get(id(x))
        if known is None or known[0]() is not x:
            return None
        label = known[1]
        return label.dim if isinstance(label, Call) and label.dim is not None else label

    def _set(self, x: Tensor, label: int | Call) -> None:
        self._labels[id(x)] = weakref.ref(x), label

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Give the results of a function the labels that follow from it and from its inputs."""
        inputs = [(x, self._label(x)) for x in _tensors([*args, *kwargs.values()])]
        for x, label in inputs:
            if isinstance(label, Call) and tuple(x.shape) == label.shape:
                label.dim = _defined(func, x, args, kwargs)
        for result in _tensors([out]):
            found: int | Call | None = _defined(func, result, args, kwargs)
            if found is None:
                labels = (_moved(func, args, kwargs, x, label, result) for x, label in inputs if label is not None)
                found = next((label for label in labels if label is not None), None)
            if found is not None:
                self._set(result, found)
            else:
                self._labels.pop(id(result), None)


def joined_samples(name: str, calls: Iterable[Call], hint: str = "") -> Tensor:
    """Return the samples of several calls in one tensor.

    Raises:
        InputError: a number is not finite. The message has the name, and ends in the hint.
    """
    sample = torch.cat([call.sample for call in calls])
    if not sample.isfinite().all():
        raise InputError(f"{name} gets numbers that are not finite on the example: give another example{hint}")
    return sample


def _is_input(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 0 and x.numel() > 0


def _name(func: Any) -> str:
    return getattr(func, "__name__", "")


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values, and those in lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _sample(x: Tensor) -> Tensor:
    """Return the extremes of a tensor, and numbers drawn from it, in float64."""
    values = x.detach().flatten()
    chosen = torch.randint(len(values), (_SAMPLES,), generator=torch.Generator().manual_seed(0))
    extremes = torch.stack([values.min(), values.max()])
    return torch.cat([extremes, values[chosen.to(values.device)]]).cpu().double()


def _out_of_place(func: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return an activation's function that does not write to its input."""
    if _name(func).endswith("_"):
        func = getattr(F, _name(func).rstrip("_"))
    return func, {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs


def _in_float64(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what an activation computes in float64 on a CPU, without its hooks."""
    copied = functools.cache(lambda: _copy_in_float64(module))
    return lambda x: copied().forward(x.clone())


def _copy_in_float64(module: nn.Module) -> Any:
    if not any(True for _ in itertools.chain(module.parameters(), module.buffers())):
        return module
    hooks = [value for each in module.modules() for name, value in vars(each).items() if "_hooks" in name]
    # deepcopy takes what its memo has for a hook's dictionary, and does not copy what hooks hold.
    memo: dict[int, Any] = {id(value): type(value)() for value in hooks if isinstance(value, dict)}
    return copy.deepcopy(module, memo).eval().to("cpu", torch.float64)


def _on_other_numbers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    others = args[1:]  # without the input, whose memory would stay
    rest = {key: value for key, value in kwargs.items() if key != "input"}
    return lambda x: func(x, *others, **rest)


def _constants(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a module's ``forward`` that may decide which way it goes."""
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {}
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if value is None or isinstance(value, (bool, str))}


def _defined(func: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Return the channels' dimension of a layer's input or output, if the function defines it."""
    name = _name(func)
    if name in _SECOND:
        dim = 1
    elif name in _FROM_THE_END:
        dim = x.ndim - _FROM_THE_END[name]
    else:
        return None
    shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    if name in ("layer_norm", "rms_norm") and len(shape) != 1:
        return None
    return dim if 0 <= dim < x.ndim else None


def _moved(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor, label: int | Call, result: Tensor
) -> int | Call | None:
    """Return the label of a function's result that follows from the label of one of its inputs."""
    name = _name(func)
    if name in _UNKNOWN:
        return None
    if isinstance(label, Call):
        keeps = name not in _TRANSPOSITIONS and name not in _RESHAPES and result.shape == x.shape
        return label if keeps else None
    if name in _TRANSPOSITIONS:
        # The same transposition of a tensor whose only dimension of size 2 is the channels'.
        small = torch.empty([2 if dim == label else 1 for dim in range(x.ndim)])
        return list(func(small, *args[1:], **kwargs).shape).index(2)
    if name in _RESHAPES:
        outer, channels = math.prod(x.shape[:label]), x.shape[label]
        fitting = [
            dim
            for dim, size in enumerate(result.shape)
            if size == channels and math.prod(result.shape[:dim]) == outer and result.numel() == x.numel()
        ]
        return fitting[0] if len(fitting) == 1 else None
    return label if result.ndim == x.ndim else None
