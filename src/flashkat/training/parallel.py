"""What training calls in place of the plain model: the same model, replicated, sharded or compiled.

The plain model stays the one that is saved, averaged and evaluated, so that no wrapper's prefix gets into a checkpoint.
"""

import warnings
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from .. import distributed
from ..errors import InputError, explain

__all__ = ["full", "like", "shard", "synchronised", "wrap"]


def shard(model: nn.Module) -> None:
    """Shard a model's parameters over all processes, in place, block by block (FSDP2).

    Raises:
        InputError: there is only one process.
    """
    if distributed.size() == 1:
        raise InputError("--fsdp shards over several processes: start with torchrun --nproc-per-node N")
    for block in getattr(model, "blocks", ()):
        fully_shard(block)
    fully_shard(model)


def wrap(model: nn.Module, args: Namespace, device: torch.device) -> nn.Module:
    """The module that training calls for a model on ``device``: as ``--torchcompile`` and the processes ask for.

    Raises:
        InputError: it cannot be compiled so.
    """
    if args.torchcompile and args.batch_size == 1 and args.grad_accum_steps > 1:
        # With one image the gradients of a ViT's position embedding and class token share memory when compiled
        # (seen with torch 2.15), and the second batch's are added to both.
        raise InputError("--torchcompile with batches of one image cannot accumulate gradients: give -b 2 or more")
    trained: Any = model
    if distributed.size() > 1 and not isinstance(model, FSDPModule):
        # Of coefficients that all groups share: one row, whose stride is nobody's business.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        trained = DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device])
    if args.torchcompile:
        with explain(f"cannot compile for --torchcompile {args.torchcompile}"):
            trained = torch.compile(trained, backend=args.torchcompile)
    return trained


def synchronised(trained: Any, now: bool) -> AbstractContextManager:
    """A context for forward and backward passes that average gradients over the processes now, or leave it for later.

    Args:
        trained: what :func:`wrap` gave.
        now: whether an update follows.
    """
    if hasattr(trained, "set_requires_gradient_sync"):
        trained.set_requires_gradient_sync(now)
    elif not now and hasattr(trained, "no_sync"):
        return trained.no_sync()
    return nullcontext()


def full(value: Any) -> Any:
    """A state of nested dictionaries and lists with whole tensors for sharded ones.

    All processes call it together. Whole tensors arrive on the CPU, and on the first process only; the others have
    None in their place.
    """
    if isinstance(value, DTensor):
        whole = value.full_tensor()
        return whole.cpu() if distributed.is_primary() else None
    if isinstance(value, dict):
        return {key: full(item) for key, item in value.items()}
    return [full(item) for item in value] if isinstance(value, list | tuple) else value


def like(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's whole state_dict with its tensors sharded as the parameters are that they belong to."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    sharded = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=True):
        if isinstance(parameter, DTensor) and number in sharded:
            sharded[number] = {
                name: distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape
                else value
                for name, value in sharded[number].items()
            }
    return {**state, "state": sharded}
