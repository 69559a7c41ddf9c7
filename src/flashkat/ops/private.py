"""Every PyTorch internal that the package uses: why, on which versions, and what happens without it.

Each was tried on torch 2.11.0 and 2.14.1. Where a version lacks one, a warning says so once, and a slower or unfused
way gives the same results.

| internal | why | without it |
| --- | --- | --- |
| ``torch._C._len_torch_dispatch_stack`` | a dispatch mode must see the operator, not its kernels | every call goes through the registered operator, which takes the host longer |
| ``torch._C._functorch.peek_interpreter_stack`` | ``torch.func`` needs the definition, and refuses the eager autograd function | likewise, and transformed tensors are told by having no memory |
| ``torch.nn.modules.module._has_any_global_hook`` and a module's dictionaries of hooks | a fused operator must not pass a hook by | no modules are fused |
| ``torch._subclasses.functional_tensor.FunctionalTensorMode`` | compilers look into the operators there | compiled code calls the operators as they are |
| ``torch.export._trace.custom_triton_ops_decomposition_disabled`` | exporters keep the operators | likewise |
| ``torch._inductor.config`` | small tensors are fused differently within CUDA graphs | they are fused as without CUDA graphs |

``torch.library.triton_op`` would replace the two in the middle. It takes the host longer (28 us a call in place of 19),
warns where Triton is missing, and needs a second, opaque operator for CPUs and for symbolic sizes.
``setup_context``, which ``torch.func`` asks for, makes a call of an autograd function take 100 us in place of 18.
"""  # noqa: E501

import functools
import importlib
import warnings
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import nn

__all__ = [
    "FunctionalTensorMode",
    "cuda_graphs_are_on",
    "decomposes",
    "dispatch_modes",
    "hooks_are_global",
    "is_hooked",
    "transform",
    "transforms_are_known",
]


def _find(module: str, name: str, without: str) -> Any | None:
    try:
        return attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        warnings.warn(f"torch {torch.__version__} has no {module}.{name}: {without}", stacklevel=3)
        return None


dispatch_modes: Callable[[], int] = _find(
    "torch._C", "_len_torch_dispatch_stack", "eager calls of flashkat's operators take longer"
) or (lambda: 1)
"""How many dispatch modes are active; 1 where that is unknown."""

_peek = _find("torch._C", "_functorch.peek_interpreter_stack", "eager calls of flashkat's operators take longer")
transforms_are_known = _peek is not None
transform: Callable[[], object | None] = _peek or (lambda: True)
"""The innermost active transform of ``torch.func``, if any; True where that is unknown."""


_has_any_global_hook = _find(
    "torch.nn.modules.module", "_has_any_global_hook", "flashkat fuses no modules, which takes longer"
)


def hooks_are_global() -> bool:
    """Return whether there are hooks for all modules; True where that is unknown."""
    return _has_any_global_hook is None or bool(_has_any_global_hook())


def is_hooked(module: nn.Module) -> bool:
    """Return whether a module has hooks of its own, or another ``forward``."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "forward" in module.__dict__
    )


FunctionalTensorMode: type | None = _find(
    "torch._subclasses.functional_tensor", "FunctionalTensorMode", "compiled calls of flashkat's operators take longer"
)
"""The mode in which compilers trace; None where that is unknown."""


@functools.cache
def _exporting() -> Callable[[], bool]:
    # Slow to import.
    return _find(
        "torch.export._trace",
        "custom_triton_ops_decomposition_disabled",
        "compiled calls of flashkat's operators take longer",
    ) or (lambda: True)


def decomposes() -> bool:
    """Return whether a tracer wants to see kernels: a compiler does, an exporter does not."""
    return not _exporting()()


@functools.cache
def _inductor() -> Any | None:
    # Slow to import.
    return _find("torch._inductor.config", "triton", "flashkat's small tensors may take longer within CUDA graphs")


def cuda_graphs_are_on() -> bool:
    """Return whether Inductor makes CUDA graphs."""
    config = _inductor()
    return config is not None and bool(config.cudagraphs)
