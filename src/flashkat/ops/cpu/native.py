"""The path on CPUs: compiled code that reads memory once, where PyTorch's operators take sixty passes.

``native.c`` is compiled when the package is built, where there is a compiler, and loaded with ctypes. It works block by
block, and reports blocks whose numbers are too large for plain arithmetic. ``aten/windows.py`` does those again.

The code runs on the OpenMP threads of PyTorch's own operators, as many as ``torch.get_num_threads`` says. They do not
survive a fork, so a forked child must stay on one thread. Workers of PyTorch's data loaders do. Without an OpenMP of
GNU's protocol there is one thread. macOS was not tried.

The plan of a call depends on shapes, strides and dtypes. It is computed once and kept, since small calls are
host-bound.
"""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..aten import windows as aten
from ..layout import outer_channels_inner
from ..reference import compute_dtype

_DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_LANES, _MOST = 128, 16  # as in native.c
# A block costs about a microsecond by itself, and a nanosecond per element; it has sums of its own.
_BLOCK_ELEMENTS = 2**15
_ELEMENTS_PER_SUM = 16
_MOST_BLOCKS = 512
# Waking other threads costs some microseconds.
_ELEMENTS_FOR_THREADS = 2**16


class _Array(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("outer", "channel", "inner", "dtype"))]


class _Coefficients(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("data", "gradient")),
        *((name, ctypes.c_int64) for name in ("rows", "count", "row", "column", "dtype")),
    ]


class _Call(ctypes.Structure):
    """``struct call`` of native.c, which says what the fields are."""

    _fields_ = [
        *((name, _Array) for name in ("x", "grad", "out")),
        *((name, _Coefficients) for name in ("numerator", "denominator")),
        *((name, ctypes.c_int64) for name in ("channels", "groups", "lanes_are_channels", "blocks")),
        ("block", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("table_start", "outside_start")),
        *((name, ctypes.c_void_p) for name in ("sums", "table", "outside")),
        ("largest", ctypes.c_double),
        ("next", ctypes.c_longlong),
    ]


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library for this processor, or None; and its name, or why there is none."""
    folder = Path(__file__).parent
    capability = torch.backends.cpu.get_cpu_capability().lower()
    for path in (folder / f"_native_{capability}.so", folder / "_native_default.so"):
        if path.exists():
            try:
                library = ctypes.CDLL(str(path))
            except OSError as error:
                return None, f"{path.name} does not load: {error}"
            library.flashkat_run.argtypes = [ctypes.POINTER(_Call), *[ctypes.c_void_p] * 9, ctypes.c_uint]
            library.flashkat_run.restype = ctypes.c_int64
            library.flashkat_finish.argtypes = [ctypes.POINTER(_Call), *[ctypes.c_void_p] * 5]
            library.flashkat_finish.restype = None
            return library, path.name
    return None, "none was built: install FlashKAT again, with a C compiler"


@functools.cache
def _openmp() -> int | None:
    """Return the address of ``GOMP_parallel`` in PyTorch's OpenMP runtime, or None where it has none.

    Threads of another pool would wait for a core: PyTorch's threads spin for a while after each operator.
    """
    try:
        # The linker searches the libraries of this one first. The process may hold other runtimes.
        (library,) = (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")
        return ctypes.cast(ctypes.CDLL(str(library)).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError, ValueError):
        return None


def forward(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Return F(x) in ``dtype``, as ``aten.windows.forward`` does."""
    plan = _plan(_layout(x), dtype, None, _layout(numerator), _layout(denominator), dim)
    if plan is None or not _in_memory(x, numerator, denominator):
        return aten.forward(x, numerator, denominator, dim, dtype)
    return _run(plan, x, None, numerator, denominator, dtype)


def backward(
    grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, numerator and denominator, as ``aten.windows.backward`` does."""
    plan = _plan(_layout(x), x.dtype, _layout(grad), _layout(numerator), _layout(denominator), dim)
    if plan is None or not _in_memory(x, numerator, denominator, grad):
        return aten.backward(grad, x, numerator, denominator, dim)
    gradients = numerator.new_empty(numerator.shape), denominator.new_empty(denominator.shape)
    return _run(plan, x, grad, numerator, denominator, x.dtype, *gradients), *gradients


def _in_memory(*tensors: Tensor) -> bool:
    """Return whether memory holds the numbers: they are not zeros without memory."""
    return not any(tensor.data_ptr() == 0 and tensor.numel() for tensor in tensors)


# Shape, strides and dtype.
_Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


def _layout(tensor: Tensor) -> _Layout:
    return tensor.shape, tensor.stride(), tensor.dtype


@dataclass(frozen=True)
class _Plan:
    """The parts of a call that do not depend on its numbers. A tensor without a three-dimensional view is copied."""

    call: _Call
    sizes: tuple[int, int, int]  # (outer, channels, inner)
    positions_last: bool  # or rather (1, channels, outer), as inner is 1
    copies_x: bool
    copies_grad: bool
    copies_result: bool
    bounds: ctypes.Array[ctypes.c_int64]  # of each block
    scratch_bytes: int
    worth_threads: bool

    def view(self, tensor: Tensor) -> Tensor:
        """Return a tensor as three dimensions, in the order of the blocks."""
        view = tensor.view(self.sizes)
        return view.transpose(0, 2) if self.positions_last else view


@functools.lru_cache(maxsize=1024)
def _plan(
    x: _Layout, dtype: torch.dtype, grad: _Layout | None, numerator: _Layout, denominator: _Layout, dim: int
) -> _Plan | None:
    """Return the plan, or None where the library cannot do the call."""
    shape, strides, x_dtype = x
    (rows_a, m), (rows_b, n) = numerator[0], denominator[0]
    sizes = outer_channels_inner(torch.Size(shape), dim)
    if 0 in sizes or max(m, n) > _MOST:
        return None
    result_strides = torch.empty_like(torch.empty_strided(shape, strides, device="meta")).stride()
    x_array, copies_x = _array(x, sizes)
    out, copies_result = _array((shape, result_strides, dtype), sizes)
    grad_array, copies_grad = (_Array(), False) if grad is None else _array(grad, sizes)
    outer, channels, inner = sizes
    # Let neighbours in memory be along the channels or the inner dimension.
    positions_last = inner == 1 and out.channel != 1
    if positions_last:
        outer, inner = inner, outer
        for array in (x_array, out, grad_array):
            array.outer, array.inner = array.inner, array.outer
    lanes_are_channels = out.channel == 1 and (channels > 1 or inner == 1)

    groups = max(rows_a, rows_b)
    elements = max(_BLOCK_ELEMENTS, _ELEMENTS_PER_SUM * (m + n) * groups, outer * channels * inner // _MOST_BLOCKS)
    bounds = _bounds(outer, channels, inner, lanes_are_channels, elements)
    blocks = len(bounds) // 6
    table_start = 0 if grad is None else blocks * (m + n) * groups * torch.float64.itemsize
    table = (m + n) * (channels + _LANES) if lanes_are_channels else 0
    outside_start = table_start + table * compute_dtype(x_dtype).itemsize
    call = _Call(
        x=x_array,
        grad=grad_array,
        out=out,
        numerator=_Coefficients(None, None, *numerator[0], *numerator[1], _DTYPES[numerator[2]]),
        denominator=_Coefficients(None, None, *denominator[0], *denominator[1], _DTYPES[denominator[2]]),
        channels=channels,
        groups=groups,
        lanes_are_channels=lanes_are_channels,
        blocks=blocks,
        block=ctypes.addressof(bounds),
        table_start=table_start,
        outside_start=outside_start,
    )
    return _Plan(
        call,
        sizes,
        positions_last,
        copies_x,
        copies_grad,
        copies_result,
        bounds,
        outside_start + blocks,
        min(outer * channels * inner, blocks * _BLOCK_ELEMENTS) >= _ELEMENTS_FOR_THREADS,
    )


def _array(layout: _Layout, sizes: tuple[int, int, int]) -> tuple[_Array, bool]:
    """Return a tensor as (outer, channels, inner), and whether that needs a contiguous copy."""
    shape, strides, dtype = layout
    try:
        seen, copies = torch.empty_strided(shape, strides, device="meta").view(sizes), False
    except RuntimeError:
        seen, copies = torch.empty(sizes, device="meta"), True
    return _Array(None, *seen.stride(), _DTYPES[dtype]), copies


def _bounds(
    outer: int, channels: int, inner: int, lanes_are_channels: bool, elements: int
) -> "ctypes.Array[ctypes.c_int64]":
    """Return the bounds of the blocks, as ``struct block`` of native.c."""
    o, c, i = (slice(0, size) for size in (outer, channels, inner))
    if lanes_are_channels:
        windows = [(o, c, i) for o, i, c in aten.windows((o, i, c), elements)]
    else:
        # Several positions of outer, so that a sum takes in more rows before it goes on in float64.
        windows = [(o, c, i) for c, o, i in aten.windows((c, o, i), elements)]
    numbers = [number for window in windows for s in window for number in (s.start, s.stop)]
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _run(
    plan: _Plan,
    x: Tensor,
    grad: Tensor | None,
    numerator: Tensor,
    denominator: Tensor,
    dtype: torch.dtype,
    *gradients: Tensor,
) -> Tensor:
    """Return F(x). With a ``grad``, return the gradient of x and fill ``gradients``."""
    library, _ = load()
    assert library is not None
    result = torch.empty_like(x, dtype=dtype)
    out = result.new_empty(x.shape) if plan.copies_result else result
    if plan.copies_x:
        x = x.contiguous()
    if plan.copies_grad and grad is not None:
        grad = grad.contiguous()
    scratch = x.new_empty(plan.scratch_bytes, dtype=torch.uint8)
    openmp = _openmp() if plan.worth_threads else None
    outside = library.flashkat_run(
        plan.call,
        x.data_ptr(),
        None if grad is None else grad.data_ptr(),
        out.data_ptr(),
        numerator.data_ptr(),
        denominator.data_ptr(),
        *([gradient.data_ptr() for gradient in gradients] or (None, None)),
        scratch.data_ptr(),
        openmp,
        1 if openmp is None else torch.get_num_threads(),
    )
    if outside:
        _do_again(plan, scratch, x, grad, out, numerator, denominator, *gradients)
    if plan.copies_result:
        result.copy_(out)
    return result


def _do_again(
    plan: _Plan,
    scratch: Tensor,
    x: Tensor,
    grad: Tensor | None,
    out: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    *gradients: Tensor,
) -> None:
    """Compute the reported blocks again, with overflow-safe arithmetic."""
    call = plan.call
    outside = scratch[call.outside_start :].bool()
    spans = torch.tensor(plan.bounds).view(-1, 3, 2)[outside]
    regions = [(slice(*outer), slice(*channels), slice(*inner)) for outer, channels, inner in spans.tolist()]
    if grad is None:
        aten.fill_values(regions, plan.view(out), plan.view(x), numerator, denominator)
        return
    again = aten.fill_gradients(regions, plan.view(out), plan.view(x), plan.view(grad), numerator, denominator)
    sums = scratch[: call.table_start].view(torch.float64).view(call.blocks, -1, call.groups)
    sums[outside] = 0
    sums[0] += again.unflatten(1, (call.groups, -1)).sum(2)
    library, _ = load()
    assert library is not None
    tensors = numerator, denominator, *gradients, sums
    library.flashkat_finish(call, *[tensor.data_ptr() for tensor in tensors])
