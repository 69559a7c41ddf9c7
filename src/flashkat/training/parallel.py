"""Replicate (DDP) or shard (FSDP2) the model over the processes.

Only the training step calls the wrapped model. Saving, averaging and evaluation use the plain one, so that no prefix
of a wrapper gets into a checkpoint.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import distribute_bn
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError
from ..system import distributed

__all__ = ["BATCH_NORMS", "distribute_norms", "full", "like", "shard", "synchronised", "with_common_norms", "wrap"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def shard(model: nn.Module) -> None:
    """Shard a model's parameters over all processes, in place, block by block (FSDP2).

    Raises:
        InputError: there is only one process.
    """
    if distributed.size() == 1:
        raise InputError("--fsdp shards over several processes: start with torchrun --nproc-per-node N")
    # By default FSDP takes a GPU if there is one, even for a model on the CPU.
    mesh = init_device_mesh(next(model.parameters()).device.type, (distributed.size(),))
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def with_common_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with synchronised batch norms: their statistics are over all processes.

    Args:
        model: the model; its batch norms are replaced.
        device: where it computes.

    Raises:
        InputError: the model has batch norms and is on a CPU.
    """
    if device.type == "cpu" and any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        raise InputError("--sync-bn works on GPUs: leave it out; --dist-bn averages the running statistics")
    return convert_sync_batchnorm(model)


def wrap(model: nn.Module, device: torch.device, broadcast_buffers: bool = True) -> nn.Module:
    """Wrap a model in DDP, so that gradients are averaged over the processes.

    Args:
        model: the model; one that FSDP shards, or one in a single process, is returned as it is.
        device: where it computes.
        broadcast_buffers: copy the first process's buffers to the others before each forward pass.
    """
    if distributed.size() == 1 or isinstance(model, FSDPModule):
        return model
    # A numerator that all groups share is (1, m). The stride of its one row has no effect.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # Older PyTorch does not have the argument's new name.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    devices = None if device.type == "cpu" else [device]
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=broadcast_buffers)


def distribute_norms(model: nn.Module, how: str) -> None:
    """Give every process the same running statistics of batch norms.

    Args:
        model: the model, changed in place.
        how: ``broadcast`` the first process's, ``reduce`` to the mean, or "" for no change.
    """
    if how and distributed.size() > 1:
        distribute_bn(model, distributed.size(), how == "reduce")


def synchronised(trained: Any, now: bool) -> AbstractContextManager:
    """Return the context of a forward and backward pass, which averages gradients over the processes or does not yet.

    Args:
        trained: the module that :func:`wrap` returned.
        now: average the gradients, as an update follows.
    """
    if hasattr(trained, "set_requires_gradient_sync"):
        trained.set_requires_gradient_sync(now)
    elif not now and hasattr(trained, "no_sync"):
        return trained.no_sync()
    return nullcontext()


def full(value: Any) -> Any:
    """Gather the sharded tensors of a state of nested dictionaries, lists and tuples.

    All processes call it together. The first one gets whole tensors on the CPU. The others get None in their place.
    """
    if isinstance(value, DTensor):
        whole = value.full_tensor()
        return whole.cpu() if distributed.is_primary() else None
    if isinstance(value, dict):
        return {key: full(item) for key, item in value.items()}
    if isinstance(value, tuple):  # which some optimisers insist on
        return tuple(full(item) for item in value)
    return [full(item) for item in value] if isinstance(value, list) else value


def like(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Shard an optimiser's gathered state_dict: each tensor is sharded as its parameter.

    Args:
        state: the state_dict, with whole tensors.
        optimizer: the optimiser to load into.
    """
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
