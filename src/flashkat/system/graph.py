"""CUDA graphs: record a function's kernels once for each kind of arguments, then launch them together."""

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.private import leave_failed_capture

__all__ = ["Captured", "CapturedForward", "Controls"]

# Warm-up calls of each kind, without a graph. They compile, tune kernels and allocate workspaces.
_WARM_UP = 3


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Any


@dataclass
class _Place:
    """The stream that graphs are captured on, and the memory pool that they share."""

    stream: torch.cuda.Stream
    pool: Any = field(default_factory=torch.cuda.graph_pool_handle)


class Captured:
    """Call a function of tensors through one CUDA graph for each kind of arguments.

    The warm-up calls of a kind run without a graph. They count as calls, and give the same bits as the graph. A
    graph's next run overwrites its outputs. If a capture fails, the function runs without a graph from then on.

    Args:
        function: takes GPU tensors, and keywords that are constants of a graph. It must not keep tensors that it
            makes, except in the warm-up calls.
        device: the GPU.
        say: called once with the reason if there is no graph.
        undo: called after a failed capture, whose kernels never ran, to undo the host's part.
        agree: returns whether all processes succeeded, given this one's success. All call it together.
        share: another instance, whose memory and stream this one uses. The two must not run at the same time.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        device: torch.device,
        say: Callable[[str], None],
        undo: Callable[[], None] = lambda: None,
        agree: Callable[[bool], bool] = lambda succeeded: succeeded,
        share: "Captured | None" = None,
    ) -> None:
        self._function, self._device, self._say, self._undo, self._agree = function, device, say, undo, agree
        # PyTorch reuses a graph's memory only on the same stream.
        self._place: _Place = _Place(torch.cuda.Stream(device)) if share is None else share._place
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._seen: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, _Recording] = {}
        self._inputs: dict[Hashable, Tensor] = {}
        self.is_capturing = True

    def __call__(self, *inputs: Tensor, **constants: Hashable) -> Any:
        if not self.is_capturing:
            return self._function(*inputs, **constants)
        kinds = [_kind(place, each) for place, each in enumerate(inputs)]
        key = (*kinds, *sorted(constants.items()))
        recording = self._recordings.get(key)
        if recording is None:
            self._seen[key] += 1
            if self._seen[key] <= _WARM_UP:
                with self._beside():
                    return self._function(*inputs, **constants)
            own = [self.buffer(place, each) for place, each in enumerate(inputs)]
            recording = self._record(own, constants)
            if recording is None:
                return self._function(*inputs, **constants)
            self._recordings[key] = recording
        for own_input, given in zip(recording.inputs, inputs, strict=True):
            if own_input is not given:
                own_input.copy_(given, non_blocking=True)
        recording.graph.replay()
        return recording.outputs

    def buffer(self, place: int, like: Tensor) -> Tensor:
        """Return the tensor from which graphs read an input. Passing it as the input saves a copy.

        Args:
            place: index of the input.
            like: a tensor of its shape, dtype and strides.
        """
        kind = _kind(place, like)
        if kind not in self._inputs:
            self._inputs[kind] = torch.empty_like(like)
        return self._inputs[kind]

    def close(self) -> None:
        """Release the graphs. NCCL cannot end a communicator while a graph holds its kernels."""
        self.is_capturing = False
        self._recordings.clear()
        self._inputs.clear()
        # PyTorch may refuse new graphs in a pool whose graphs are all gone.
        self._place.pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """Run on the stream that captures, so that libraries allocate their workspaces for it."""
        current, stream = torch.cuda.current_stream(self._device), self._place.stream
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            yield
        current.wait_stream(stream)

    def _record(self, inputs: list[Tensor], constants: dict[str, Hashable]) -> _Recording | None:
        graph, outputs, reason = torch.cuda.CUDAGraph(), None, ""
        current = torch.cuda.current_stream(self._device)
        generator = torch.cuda.default_generators[self._index]
        before = generator.clone_state()
        try:
            # thread_local: other threads may pin memory or watch collectives meanwhile.
            with torch.cuda.graph(graph, self._place.pool, self._place.stream, capture_error_mode="thread_local"):
                try:
                    outputs = self._function(*inputs, **constants)
                except Exception as error:
                    reason = _first_line(error)
                    raise
        except Exception as error:
            # After a failed capture its end raises too, with a less useful message.
            reason = reason or _first_line(error)
        if reason:
            self._end(graph)
            torch.cuda.set_stream(current)  # a failed capture leaves its own
            generator.graphsafe_set_state(before)
            self._undo()
        if self._agree(not reason):
            return _Recording(graph, inputs, outputs)
        self.close()
        self._say(f"No CUDA graph, each kernel is launched by the host: {reason or 'another process has none'}")
        return None

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        """End the allocator's part of a failed capture, which PyTorch does not (seen with 2.11 to 2.14)."""
        graph.reset()
        leave_failed_capture(self._index, self._place.pool)


def _kind(place: int, tensor: Tensor) -> Hashable:
    return place, tensor.shape, tensor.dtype, tensor.stride()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


class CapturedForward(nn.Module):
    """Call a model through CUDA graphs. Its weights may change in place.

    The next call with images of the same size overwrites an output.

    Args:
        model: in evaluation mode when called.
        say: called once with the reason if there is no graph.
        share: see :class:`Captured`.
    """

    def __init__(self, model: nn.Module, say: Callable[[str], None], share: Captured | None = None) -> None:
        super().__init__()
        self.model = model
        self._captured = Captured(model, next(model.parameters()).device, say, share=share)

    def forward(self, images: Tensor) -> Tensor:
        return self._captured(images)


class Controls:
    """Numbers in a GPU's memory, which the kernels of a graph read in each run.

    Args:
        count: how many numbers.
        device: the GPU.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.values = torch.zeros(count, device=device)
        self._set: list[float] = []

    def set(self, numbers: list[float]) -> None:
        """Set all numbers, in the order of the current stream."""
        if numbers != self._set:
            # PyTorch keeps the pinned memory until the copy is done.
            self.values.copy_(torch.tensor(numbers, dtype=torch.float32).pin_memory(), non_blocking=True)
            self._set = numbers
