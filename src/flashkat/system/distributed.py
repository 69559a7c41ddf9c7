"""The processes of a run under torchrun: joining them, and adding up what each has counted.

Without torchrun, or with one process, everything here is a no-op: rank 0 of 1.
"""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so, world_info_from_env

from ..errors import InputError, explain, launched_processes
from .device import resolve_device

__all__ = ["gather", "is_primary", "joined", "leave", "one_by_one", "rank", "size", "total"]


def rank() -> int:
    """This process's number among all of the run, over all nodes."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes the run has joined."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_primary() -> bool:
    """Whether this is the process that prints and writes; known before joining the others and after leaving them."""
    return (rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))) == 0


@contextlib.contextmanager
def joined(device: str | None) -> Iterator[torch.device]:
    """Join the processes that torchrun has started, and leave them at the end; gives this process's device.

    NCCL connects GPUs, gloo CPUs. In a process of its own this is :func:`flashkat.arguments.resolve_device`.

    Raises:
        InputError: there is no such device, not one for every process of this node, or the others cannot be reached.
    """
    if launched_processes() == 1 or dist.is_initialized():
        yield resolve_device(device)
        return
    kind = (device or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")[0]
    if kind == "cuda" and torch.cuda.is_available():
        local_rank, available = world_info_from_env()[0], torch.cuda.device_count()
        if local_rank >= available:
            raise InputError(
                f"process {local_rank + 1} of this node finds {available} GPUs: "
                f"give torchrun --nproc-per-node {available} at most, or --device cpu"
            )
        # Before anything else, or every process would open a context on the first GPU.
        torch.cuda.set_device(local_rank)
    resolve_device(kind)
    with explain("cannot join the other processes of the run"):
        found = init_distributed_device_so(kind)
    yield torch.device(found["device"])
    # Not after an error: the others may be waiting in a collective, and torchrun ends them.
    dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End this process with an exit status; one of several without taking the interpreter down.

    gloo's threads may still be letting go of tensors, for which they need an interpreter: without one they abort the
    process after its work is done. FSDP keeps these threads alive beyond the group's end, an error does too.
    """
    if launched_processes() == 1:
        sys.exit(status)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


@contextlib.contextmanager
def one_by_one(needed: bool) -> Iterator[None]:
    """Where it is needed, let the first process of each node through before the others: it makes what these find."""
    waits = needed and size() > 1
    is_first = world_info_from_env()[0] == 0
    if waits and not is_first:
        dist.barrier()
    yield
    if waits and is_first:
        dist.barrier()


def total(values: list[float]) -> list[float]:
    """The sums over all processes, in float64; all of them call it together."""
    if size() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(sums)
    return sums.tolist()


def gather(value: Any) -> list[Any]:
    """The values of all processes, in the order of ranks, for each of them; all of them call it together."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values
