"""What torch.compile asks about a Triton kernel, answered once for each of ours.

To learn which tensors a kernel writes to, PyTorch has Triton translate it and walks through the result, at each of its
calls and again in each pass of a compilation. For a dozen blocks that is a hundred times, of up to half a second each.
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

__all__ = ["analyse_once", "remembered"]

# Newer PyTorch, and older.
_ANALYSES = ("identify_accessed_tensors", "identify_mutated_tensors")


@functools.cache
def analyse_once() -> None:
    """Have PyTorch remember what it finds out about the kernels of this package, for this process.

    It has no setting for that. Without a function of these names in it nothing changes, but for the time.
    """
    from torch._higher_order_ops import triton_kernel_wrap

    for name in _ANALYSES:
        if hasattr(triton_kernel_wrap, name):
            setattr(triton_kernel_wrap, name, remembered(getattr(triton_kernel_wrap, name)))


def remembered(analyse: Callable[..., Any]) -> Callable[..., Any]:
    """``analyse``, called once for a kernel of this package with arguments of the same dtypes and the same numbers.

    Nothing else of the arguments is in the answer, which is the names of some. Other kernels are analysed as before.
    """
    answers: dict[Hashable, Any] = {}

    @functools.wraps(analyse)
    def ask(kernel: Any, arguments: Mapping[str, Any], *rest: Any, **options: Any) -> Any:
        function = _function(kernel)
        if not function.__module__.startswith(f"{__package__}."):
            return analyse(kernel, arguments, *rest, **options)
        key = function, tuple((name, _kind(value)) for name, value in arguments.items())
        if key not in answers:
            answers[key] = analyse(kernel, arguments, *rest, **options)
        return answers[key]

    return ask


def _function(kernel: Any) -> Any:
    """What a kernel is written as. A compiler wraps it once more, at each call, for the number of warps."""
    while hasattr(kernel, "fn"):
        kernel = kernel.fn
    return kernel


def _kind(value: Any) -> Hashable:
    """The dtype of a tensor, in whatever form a compiler has it; a number with its type, as 1 is no True."""
    return getattr(value, "dtype", None) or (type(value), value)
