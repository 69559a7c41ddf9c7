"""The processes of a run under torchrun: join them, and gather their values.

Without torchrun, or with one process, everything here is a no-op: rank 0 of 1.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so, world_info_from_env

from ..errors import InputError, explain, launched_processes
from .device import open_queues, resolve_device

__all__ = ["gather", "is_primary", "joined", "one_by_one", "rank", "size", "total"]

_LONGEST = timedelta(days=1)


def rank() -> int:
    """Return this process's rank among all processes of the run, over all nodes."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return how many processes have joined the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_primary() -> bool:
    """Return whether this is the process that prints and writes. It works before joining and after leaving, too."""
    return (rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))) == 0


@contextlib.contextmanager
def joined(device: str | None) -> Iterator[torch.device]:
    """Join the processes that torchrun has started, and leave them at the end of the context.

    NCCL connects GPUs, and gloo connects CPUs. A single process joins nothing.

    Args:
        device: name of the device; None takes a GPU if there is one. Its index is ignored in several processes.

    Yields:
        This process's device.

    Raises:
        InputError: there is no such device, this node has too few of them, or the other processes cannot be reached.
    """
    if launched_processes() == 1 or dist.is_initialized():
        found = resolve_device(device)
        # Random states, streams and graphs are those of the current GPU.
        with torch.cuda.device(found) if found.type == "cuda" else nullcontext():
            yield found
        return
    open_queues()
    kind = (device or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")[0]
    if kind == "cuda" and torch.cuda.is_available():
        local_rank, available = world_info_from_env()[0], torch.cuda.device_count()
        if local_rank >= available:
            raise InputError(
                f"process {local_rank + 1} of this node finds {available} GPUs: "
                f"give torchrun --nproc-per-node {available} at most, or --device cpu"
            )
        # First of all. Otherwise every process would open a context on GPU 0.
        torch.cuda.set_device(local_rank)
    resolve_device(kind)
    with explain("cannot join the other processes of the run"):
        place = init_distributed_device_so(kind)["device"]
    yield torch.device(place)
    # Not after an error: the others may be waiting in a collective, and torchrun ends them.
    dist.destroy_process_group()


@contextlib.contextmanager
def one_by_one(needed: bool) -> Iterator[None]:
    """Let the first process of each node run the block before the others, if ``needed``: for downloads, say."""
    if not needed or size() == 1:
        yield
        return
    is_first = world_info_from_env()[0] == 0
    # A download may take longer than processes wait for each other otherwise.
    group: Any = dist.new_group(backend="gloo", timeout=_LONGEST)
    if not is_first:
        dist.barrier(group)
    yield
    if is_first:
        dist.barrier(group)
    dist.destroy_process_group(group)


def total(values: list[float]) -> list[float]:
    """Return the sums over all processes, in float64. All processes call this together."""
    if size() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(sums)
    return sums.tolist()


def gather(value: Any) -> list[Any]:
    """Return the values of all processes in the order of ranks. All processes call this together."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values
