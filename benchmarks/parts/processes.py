"""Run a function in several processes that have joined each other: NCCL connects GPUs, gloo connects CPUs."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

__all__ = ["in_processes"]


def in_processes(count: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in each of ``count`` new processes, and return what the first one returns.

    With GPUs, each process has one of its own. Function, arguments and result must be picklable.

    Raises:
        torch.multiprocessing.ProcessRaisedException: the function failed. The other processes have ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (count, Path(folder), function, arguments), nprocs=count)
        return torch.load(Path(folder) / "result")


def _run(rank: int, count: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    has_gpu = torch.cuda.device_count() >= count
    if has_gpu:
        torch.cuda.set_device(rank)
    backend = "nccl" if has_gpu else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=count)
    result = function(*arguments)
    if rank == 0:
        torch.save(result, folder / "result")
    dist.destroy_process_group()
