"""The flags of the commands, with timm's names, defaults and meanings.

A function per group of flags, so that commands share groups and a new flag has one place to go. ``left_out`` has the
flags of timm's that are left out, and ``table`` writes docs/flags.md from both.
"""

import torch

from ..errors import InputError
from .evaluation import add_validation_arguments
from .groups import DEFAULT_MODEL
from .parser import Parser
from .tools import add_export_arguments, add_flops_arguments, add_plot_arguments
from .training import DEFAULT_OUTPUT, add_training_arguments

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_OUTPUT",
    "Parser",
    "add_export_arguments",
    "add_flops_arguments",
    "add_plot_arguments",
    "add_training_arguments",
    "add_validation_arguments",
    "resolve_device",
]


def resolve_device(name: str | None) -> torch.device:
    """The device asked for, or the GPU if there is one, or the CPU.

    Raises:
        InputError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"no device {name!r} here: leave out --device, or give cpu, cuda or cuda:N") from error
    return device
