"""Every PyTorch internal that the operators and modules use: why, and what happens without it.

All are in torch 2.11.0 and 2.14.1. If a version lacks one, one warning says so. Results stay right, on a slower or
unfused path.

1. ``torch._C._len_torch_dispatch_stack``. A dispatch mode must see the operator, not its kernels. Without it, eager
   calls go through the registered operators, which take the host longer.
2. ``torch._C._functorch.peek_interpreter_stack``. ``torch.func`` needs the definition and refuses the eager autograd
   function. Without it, eager calls go through the registered operators, and tensors without memory take the
   definition. The public way is ``setup_context``: a call then takes 100 us in place of 18 (torch 2.14.1, CPU).
3. ``torch.nn.modules.module._has_any_global_hook`` and a module's dictionaries of hooks. A fused operator must not
   pass by a hook. Without it, no modules are fused.
4. ``torch._subclasses.functional_tensor.FunctionalTensorMode``. In this mode compilers take the formula for small
   tensors. Without it, compiled code always calls the operators.
5. ``torch._C._cuda_endAllocateToPool`` and ``_cuda_releasePool``. PyTorch leaves its allocator in a capture that failed
   (seen with 2.11 to 2.14). Without them, memory of that capture stays taken.
6. ``torch._C._StaticCudaLauncher``. It launches a kernel in a third of the host time that Triton's launcher takes (0.8
   and 2.2 us on a CPU without a GPU). Without it, Triton's launcher runs.
"""

import contextlib
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
    "dispatch_modes",
    "hooks_are_global",
    "is_hooked",
    "kernel_launcher",
    "leave_failed_capture",
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


def leave_failed_capture(device: int, pool: Any) -> None:
    """Take the allocator of a GPU out of a capture whose end failed; nothing where it did not."""
    end = _find(
        "torch._C", "_cuda_endAllocateToPool", "memory of a CUDA graph that flashkat could not make stays taken"
    )
    if end is not None:
        with contextlib.suppress(RuntimeError):  # the end did not fail
            end(device, pool)
            torch._C._cuda_releasePool(device, pool)


@functools.cache
def kernel_launcher() -> Callable[..., None] | None:
    """Return what launches a kernel, or None; asked where there is a GPU.

    Its arguments are the function's handle, three sizes of the grid, warps, shared memory, a letter for the type of
    each argument, the arguments as a tuple, and the stream's handle.
    """
    return _find("torch._C", "_StaticCudaLauncher._launch_kernel", "flashkat's kernels take longer to launch")
