"""The training step: forward, loss and backward of a batch, and the update after the last batch of a group."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from timm.models import model_parameters
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from ..errors import explain
from ..evaluation.metrics import Meters
from ..evaluation.nonfinite import BadUpdates, Trace
from ..system import distributed
from ..system.graph import Captured, Controls
from ..system.random import random_state, set_random_state
from .average import MovingAverage
from .distillation import Distillation
from .parallel import BATCH_NORMS, synchronised, wrap

__all__ = ["TrainingStep"]

# Gradients start at multiples of so many elements, so that kernels can load several values at once.
_ALIGNMENT = 32


@dataclass
class _Group:
    """The batches of an update, with the random state and the scale of the loss that they began with."""

    random: dict[str, Any]
    scale: float
    batches: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)


class TrainingStep:
    """Train a model on one batch at a time.

    With ``capture``, a step runs from one CUDA graph. The gradients of several processes then lie in a flat buffer,
    which NCCL averages within the graph. Most of timm's optimisers, and averages that are not plain, cannot be
    captured. They run after the graph.

    Without ``capture``, the host launches each kernel, and DDP or FSDP averages the gradients. The results are the
    same.

    With ``leaves_out``, an update is bad if its gradients, or the loss of one of its batches in any process, are not
    finite. Weights, batch norms and the optimiser's state stay as they were. Adam and AdamW leave it out within the
    graph. Before any other optimiser runs, the host waits for the answer.

    Args:
        model: in training mode, on its device, compiled or not, sharded for FSDP. With ``capture`` it must not be
            compiled in a mode with CUDA graphs of its own.
        loss_function: module from logits and targets to a number.
        optimizer: the optimiser. Each update reads the learning rates of its groups, which are numbers.
        scaler: the gradient scaler, enabled for float16.
        meters: add up the loss and accuracy of each batch.
        precision: the context of the forward pass.
        average: the moving average of the weights, if any.
        distillation: adds a teacher's term to the loss.
        accumulated: batches of a full group, whose gradients are accumulated.
        clip_grad: limit of the gradients; None clips nothing.
        clip_mode: timm's mode of clipping: "norm", "value" or "agc".
        broadcast_buffers: copy the first process's buffers to the others before each forward pass.
        leaves_out: leave out bad updates.
        keeps: keep the batches of an update, for :meth:`find`.
        capture: use CUDA graphs.
        resumed: the checkpoint that the optimiser's state comes from, for errors of the first update; "" for none.
        say: called with a line for each part that does not run from a graph, and the reason.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_function: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        meters: Meters,
        *,
        precision: AbstractContextManager,
        average: ModelEmaV3 | None = None,
        distillation: Distillation | None = None,
        accumulated: int = 1,
        clip_grad: float | None = None,
        clip_mode: str = "norm",
        broadcast_buffers: bool = True,
        leaves_out: bool = False,
        keeps: bool = False,
        capture: bool = False,
        resumed: str = "",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.model, self.optimizer, self.scaler, self.meters = model, optimizer, scaler, meters
        self.loss_function, self._distillation, self._precision = loss_function, distillation, precision
        self._average, self._accumulated, self._resumed = average, accumulated, resumed
        self._clip_grad, self._clip_mode = clip_grad, clip_mode
        self._device = next(model.parameters()).device
        self._parameters = [each for group in optimizer.param_groups for each in group["params"]]
        self._beside = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self.bad_updates = BadUpdates(self._device)
        self._leaves_out, self._keeps, self._group, self._begins = leaves_out, keeps, _Group(random_state(), 1.0), True
        self._counts_bad = leaves_out or scaler.is_enabled()
        self._norms: list[Tensor] = _buffers_of_norms(model) if leaves_out else []
        self._norms_before = [each.clone() for each in self._norms]

        reason = _why_not_captured(model, self._device, broadcast_buffers) if capture else ""
        if reason:
            say(f"No CUDA graph, each kernel is launched by the host: {reason}")
        self.captured: Captured | None = None
        self._gradients: _FlatGradients | None = None
        self._controls: Controls | None = None
        self._updates_on_device = self._averages_on_device = False
        if self._device.type == "cuda" and not isinstance(model, FSDPModule):
            # Also without graphs, so that the results have the same bits.
            self._controls = Controls(2 + len(optimizer.param_groups), self._device)
            self._updates_on_device = _reads_rates_from_memory(optimizer) and (
                not leaves_out or _can_be_left_out(optimizer)
            )
            self._averages_on_device = isinstance(average, MovingAverage) and average.is_plain(model)
        if capture and not reason:
            self.trained: Any = model
            if distributed.size() > 1:
                _take_from_first(model)
            if distributed.size() > 1 or accumulated > 1 or not self._updates_on_device:
                self._gradients = _FlatGradients(adds=accumulated > 1)
            self.captured = Captured(self._batch, self._device, say, undo=self._forget, agree=_all_succeeded)
            if not self._updates_on_device:
                say(f"The CUDA graph of a step leaves out {type(optimizer).__name__}, whose kernels the host launches")
            elif average is not None and not self._averages_on_device:
                say("The CUDA graph of a step leaves out the average of the weights, whose kernels the host launches")
        else:
            self.trained = wrap(model, self._device, broadcast_buffers=broadcast_buffers)

    def __call__(self, images: Tensor, target: Tensor, *, group: int = 1, update: int | None = 1) -> None:
        """Train on a batch, with the current learning rates of the optimiser's groups.

        Args:
            images: (B, C, H, W), on the device.
            target: classes (B,), or their probabilities (B, classes).
            group: batches of this batch's group; the last group of an epoch may be smaller.
            update: number of the update after this batch, from 1; None for no update.
        """
        ends = update is not None
        if self._begins:
            self._begin()
        self._begins = ends
        if self._keeps:
            self._group.batches.append((images.clone(), target.clone(), group))
        if self._controls is not None:
            decay = 0.0 if self._average is None else self._average.get_decay(update)
            self._controls.set([group, 1 - decay, *(each["lr"] for each in self.optimizer.param_groups)])
        if self.captured is None:
            self._forward_backward(images, target, group, ends)
            if ends:
                self._update()
        else:
            self.captured(images, target, ends=ends)
            if ends and not self._updates_on_device:
                self._update_from_buffer()
        self.meters.count += len(target)
        if update is not None and self._average is not None and not self._averages_on_device:
            self._average.update(self.model, step=update)

    def buffer(self, images: Tensor) -> Tensor:
        """Return a tensor like ``images``. With CUDA graphs it is their input, so that mixing into it saves a copy."""
        return torch.empty_like(images) if self.captured is None else self.captured.buffer(0, images)

    def find(self) -> tuple[int, str] | None:
        """Run the batches of the last update again, eagerly and with hooks. All processes call this together.

        Returns:
            See :meth:`Trace.first`. Weights, batch norms and random numbers are as before the call.
        """
        now, buffers = random_state(), [each.clone() for each in self.model.buffers()]
        set_random_state(self._group.random)
        self._clear()
        try:
            with Trace(self.model) as trace, torch.compiler.set_stance("force_eager"):
                trace.weights()
                for images, target, group in self._group.batches:
                    trace.images(images)
                    with self._precision:
                        _, loss = self._forward(self.model, images, target)
                    trace.loss(loss)
                    with torch.autograd.set_multithreading_enabled(False):
                        (loss * (self._group.scale / group)).backward()
                trace.gradients()
        finally:
            self._clear()
            with torch.no_grad():
                for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
            set_random_state(now)
        return trace.first()

    def close(self) -> None:
        """Release the graphs. This must come before the process group ends."""
        if self.captured is not None:
            self.captured.close()

    def _begin(self) -> None:
        """Begin the batches of an update."""
        if self._norms:
            torch._foreach_copy_(self._norms_before, self._norms)
        if self._keeps:
            self._group = _Group(random_state(), self.scaler.get_scale())

    def _batch(self, images: Tensor, target: Tensor, ends: bool) -> None:
        """Run the part of a step that a graph can capture. It leaves gradients in the flat buffer, if anywhere."""
        self._forward_backward(images, target, None, ends)
        if self._gradients is not None:
            self._gradients.take(self._parameters)
            self._clear()
            if ends and distributed.size() > 1:
                self._gradients.average()
        if ends and self._updates_on_device:
            self._update_from_buffer()

    def _update_from_buffer(self) -> None:
        if self._gradients is not None:
            self._gradients.give()
        self._update()
        if self._gradients is not None:
            self._gradients.empty()

    def _forward_backward(self, images: Tensor, target: Tensor, group: int | None, ends: bool) -> None:
        with synchronised(self.trained, now=ends):
            with self._precision:
                output, loss = self._forward(self.trained, images, target)
            self._measure(output, target, loss)
            # The average over the group's batches. The epoch's last group may have fewer.
            share = loss
            if self._accumulated > 1:
                batches: Any = group if self._controls is None else self._controls.values[0]
                share = loss / batches
            if self._leaves_out:
                # If the loss is not finite, no gradient is. So all processes leave out the update.
                share = share * (1 + 0 * loss.detach())
            # Autograd's thread for the GPU starts with cold caches. With one GPU it has no use.
            with torch.autograd.set_multithreading_enabled(False):
                self.scaler.scale(share).backward()
        if self._beside is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._beside)

    def _forward(self, model: Any, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return a model's output and the loss."""
        output = model(images)
        loss = self.loss_function(output, target)
        return output, loss if self._distillation is None else self._distillation(loss, output, images)

    def _measure(self, output: Tensor, target: Tensor, loss: Tensor) -> None:
        """Add the batch to the meters. On a GPU this runs on a second stream, at the same time as the backward pass."""
        if self._beside is not None:
            self._beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._beside):
            # A mixed target counts as its largest class.
            classes = target.argmax(1) if target.ndim == 2 else target
            self.meters.measure(output, classes, loss, only_finite=self._leaves_out)

    def _update(self) -> None:
        bad = self._is_bad() if self._counts_bad else None
        if bad is not None:
            self.bad_updates.add(bad)
        if self._clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self._clipped(), self._clip_grad, self._clip_mode)
        with self._rates(), self._explained():
            self._step_unless(bad)
        self.scaler.update()
        self._clear()
        if bad is not None:
            for buffer, before in zip(self._norms, self._norms_before, strict=True):
                buffer.copy_(torch.where(bad, before, buffer))
        if self._averages_on_device and self._controls is not None:
            self._average.approach(self.model, self._controls.values[1])  # type: ignore[union-attr]

    def _is_bad(self) -> Tensor:
        """Return whether a gradient is not finite, in any process."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        own = [each.to_local() if isinstance(each, DTensor) else each for each in gradients]
        # The largest one is finite only if all are, whatever the scale. A shard may be empty.
        bad = ~get_total_norm([each for each in own if each.numel()], norm_type=math.inf).isfinite()
        if isinstance(self.model, FSDPModule):
            # Shards of gradients do not tell of each other.
            of_all = bad.to(self._device, torch.float32)
            dist.all_reduce(of_all, dist.ReduceOp.MAX)
            return of_all > 0
        return bad

    def _step_unless(self, bad: Tensor | None) -> None:
        """Run the optimiser, unless the update is bad and is left out."""
        if self.scaler.is_enabled() or not self._leaves_out or bad is None:
            self.scaler.step(self.optimizer)
        elif _can_be_left_out(self.optimizer):
            # As the scaler tells fused kernels.
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
            try:
                self.optimizer.step()
            finally:
                del self.optimizer.found_inf  # type: ignore[attr-defined]
        elif not bad:
            self.optimizer.step()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Name the resumed checkpoint if its state of the optimiser makes the first update fail."""
        if not self._resumed:
            yield
            return
        with explain(f"{self._resumed} has a state of the optimiser that cannot be used", ": give --no-resume-opt"):
            yield
        self._resumed = ""

    def _clipped(self) -> Iterable[Tensor]:
        """Return the parameters whose gradients are clipped. As in timm, agc leaves out the head.

        All others come from the optimiser, as walking through the model's modules is slower.
        """
        return model_parameters(self.model, exclude_head=True) if self._clip_mode == "agc" else self._parameters

    @contextmanager
    def _rates(self) -> Iterator[None]:
        """Let the optimiser read learning rates from the GPU's memory, and restore its groups at the context's end.

        Schedules and checkpoints, ours and timm's, need them as numbers.
        """
        if not self._updates_on_device or self._controls is None:
            yield
            return
        groups = self.optimizer.param_groups
        before = [dict(group) for group in groups]
        for group, rate in zip(groups, self._controls.values[2:], strict=True):
            group.update(lr=rate, capturable=True)
        try:
            yield
        finally:
            for group, kept in zip(groups, before, strict=True):
                group.clear()
                group.update(kept)

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _forget(self) -> None:
        """Undo the host's part of a failed capture, whose kernels never ran."""
        self._clear()
        if self.scaler.is_enabled():
            # Setting the scale is the public way to forget that gradients were unscaled.
            self.scaler.update(self.scaler.get_scale())


class _FlatGradients:
    """The gradients of a model in one flat buffer per dtype, which a single call averages over processes.

    Args:
        adds: accumulate the gradients of several batches.
    """

    def __init__(self, adds: bool) -> None:
        self._adds = adds
        self._buffers: list[Tensor] = []
        self._views: list[Tensor] = []
        self._owners: list[Tensor] = []

    def take(self, parameters: list[Tensor]) -> None:
        """Copy the parameters' gradients to the buffers, or add them."""
        if not self._views:
            self._make([parameter for parameter in parameters if parameter.grad is not None])
        gradients = [parameter.grad for parameter in self._owners if parameter.grad is not None]
        (torch._foreach_add_ if self._adds else torch._foreach_copy_)(self._views, gradients)

    def give(self) -> None:
        """Set the parameters' gradients to views of the buffers."""
        for parameter, view in zip(self._owners, self._views, strict=True):
            parameter.grad = view

    def average(self) -> None:
        """Average over all processes."""
        for buffer in self._buffers:
            dist.all_reduce(buffer, dist.ReduceOp.AVG)

    def empty(self) -> None:
        """Set the buffers to zero for the next group, if they accumulate."""
        if self._adds:
            for buffer in self._buffers:
                buffer.zero_()

    def _make(self, owners: list[Tensor]) -> None:
        self._owners, offsets, sizes = owners, [], dict.fromkeys((each.dtype for each in owners), 0)
        for owner in owners:
            offsets.append(sizes[owner.dtype])
            sizes[owner.dtype] += -(-owner.numel() // _ALIGNMENT) * _ALIGNMENT
        buffers = {dtype: torch.zeros(size, dtype=dtype, device=owners[0].device) for dtype, size in sizes.items()}
        self._buffers = list(buffers.values())
        for owner, offset in zip(owners, offsets, strict=True):
            # Use the gradient's strides: PyTorch's multi-tensor kernels need tensors of equal strides.
            like = owner.grad if owner.grad is not None and _is_dense(owner.grad) else owner
            self._views.append(buffers[owner.dtype].as_strided(like.size(), like.stride(), offset))


def _is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor fills a contiguous stretch of memory, each element once."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _why_not_captured(model: nn.Module, device: torch.device, broadcast_buffers: bool) -> str:
    if device.type != "cuda":
        return f"there are none on {device.type}"
    if isinstance(model, FSDPModule):
        return "FSDP moves weights between processes"
    if distributed.size() > 1 and broadcast_buffers and any(isinstance(each, BATCH_NORMS) for each in model.modules()):
        return "processes share the buffers of batch norms"
    return ""


def _reads_rates_from_memory(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the step is one of PyTorch's fused kernels, which read learning rates from the GPU's memory."""
    kinds = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
    return type(optimizer) in kinds and _is_fused(optimizer)


def _can_be_left_out(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a fused kernel reads from memory whether to leave out an update.

    SGD's does too. If that is the very first update, its momentum stays uninitialised (seen with torch 2.15).
    """
    return type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and _is_fused(optimizer)


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return all(group.get("fused") for group in optimizer.param_groups)


def _buffers_of_norms(model: nn.Module) -> list[Tensor]:
    """Return the buffers that a forward pass changes."""
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    return [buffer for module in norms for buffer in module.buffers(recurse=False)]


def _take_from_first(model: nn.Module) -> None:
    """Broadcast the first process's weights and buffers, as DDP does."""
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, 0)


def _all_succeeded(succeeded: bool) -> bool:
    return not distributed.total([not succeeded])[0]
