"""The path of compiled code on CPUs: one pass over memory where ``aten.py`` takes sixty.

``native.c`` is compiled when the package is built, where there is a compiler, and loaded with ctypes. It works block by
block, on as many threads as PyTorch has, and says which blocks have numbers too far from 1 for plain arithmetic. Those
are done again by ``aten.py``.
"""

import contextlib
import ctypes
import functools
import itertools
import re
from pathlib import Path

import torch
from torch import Tensor

from . import aten
from .layout import Output, as_three_dimensional
from .reference import compute_dtype

_DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_LANES, _MOST = 128, 16  # as in native.c
# A block costs about a microsecond by itself, and a nanosecond per element; it has sums of its own.
_BLOCK_ELEMENTS = 2**15
_ELEMENTS_PER_SUM = 16
_MOST_BLOCKS = 512
# Handing work to another thread costs some microseconds.
_ELEMENTS_PER_THREAD = 2**15


class _Array(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("outer", "channel", "inner", "dtype"))]

    @classmethod
    def of(cls, tensor: Tensor) -> "_Array":
        return cls(tensor.data_ptr(), *tensor.stride(), _DTYPES[tensor.dtype])


class _Call(ctypes.Structure):
    """``struct call`` of native.c, which says what the fields are."""

    _fields_ = [
        *((name, _Array) for name in ("x", "grad", "out")),
        *((name, ctypes.c_void_p) for name in ("numerator", "denominator")),
        *((name, ctypes.c_int64) for name in ("numerator_rows", "denominator_rows", "m", "n", "channels", "groups")),
        *((name, ctypes.c_int64) for name in ("lanes_are_channels", "blocks")),
        *((name, ctypes.c_void_p) for name in ("block", "sums", "outside", "table")),
        ("largest", ctypes.c_double),
        ("next", ctypes.c_longlong),
    ]


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library for this processor, or None; and where it is, or why there is none."""
    folder = Path(__file__).parent
    capability = torch.backends.cpu.get_cpu_capability().lower()
    for path in (folder / f"_native_{capability}.so", folder / "_native_default.so"):
        if path.exists():
            try:
                library = ctypes.CDLL(str(path))
            except OSError as error:
                return None, f"{path.name} does not load: {error}"
            for function in (library.flashkat_prepare, library.flashkat_work):
                function.argtypes, function.restype = [ctypes.POINTER(_Call)], None
            return library, path.name
    return None, "the package was installed without a C compiler"


def forward(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """As ``aten.forward``."""
    if not _suits(x, numerator, denominator):
        return aten.forward(x, numerator, denominator, dim, dtype)
    output = Output(x, dim, dtype)
    result, x3 = _arranged(output.view, as_three_dimensional(x, dim))
    outside, _ = _run(result, x3, None, numerator, denominator)
    if outside:
        aten.fill_values(outside, result, x3, numerator, denominator)
    return output.finish()


def backward(
    grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``aten.backward``."""
    if not _suits(x, numerator, denominator, grad):
        return aten.backward(grad, x, numerator, denominator, dim)
    output = Output(x, dim, x.dtype)
    result, x3, grad3 = _arranged(output.view, as_three_dimensional(x, dim), as_three_dimensional(grad, dim))
    outside, sums = _run(result, x3, grad3, numerator, denominator)
    if outside:
        again = aten.fill_gradients(outside, result, x3, grad3, numerator, denominator)
        sums += again.unflatten(1, (sums.shape[1], -1)).sum(2)
    return output.finish(), *aten.coefficient_gradients(sums, numerator, denominator)


def _suits(x: Tensor, numerator: Tensor, denominator: Tensor, *others: Tensor) -> bool:
    tensors = x, numerator, denominator, *others
    return (
        x.numel() > 0
        and max(numerator.shape[1], denominator.shape[1]) <= _MOST
        # What is lazily negated or zero has other numbers in memory, or no memory.
        and not any(tensor.is_neg() or tensor._is_zerotensor() for tensor in tensors)
    )


def _arranged(result: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """(outer, C, inner) tensors such that neighbours in ``result`` are along C or inner, where that can be."""
    tensors = result, *inputs
    if result.shape[2] == 1 and result.stride(1) != 1:
        return tuple(tensor.transpose(0, 2) for tensor in tensors)
    return tensors


def _run(
    result: Tensor, x3: Tensor, grad3: Tensor | None, numerator: Tensor, denominator: Tensor
) -> tuple[list[aten.Window], Tensor]:
    """Fill ``result`` with values, or with gradients of x where there is a grad.

    Returns:
        The windows where plain arithmetic will not do, and the sums (m + n, groups) of all others.
    """
    dtype = compute_dtype(x3.dtype)
    numerator, denominator = (tensor.to(dtype).contiguous() for tensor in (numerator, denominator))
    groups, count = max(len(numerator), len(denominator)), numerator.shape[1] + denominator.shape[1]
    lanes_are_channels = result.stride(1) == 1 and (x3.shape[1] > 1 or x3.shape[2] == 1)
    elements = max(_BLOCK_ELEMENTS, _ELEMENTS_PER_SUM * count * groups, x3.numel() // _MOST_BLOCKS)
    windows, bounds = _blocks(x3.shape, lanes_are_channels, elements)
    sums = torch.zeros(len(windows) if grad3 is not None else 0, count, groups, dtype=torch.float64)
    outside = torch.empty(len(windows), dtype=torch.uint8)
    table = torch.empty(count, x3.shape[1] + _LANES if lanes_are_channels else 0, dtype=dtype)
    call = _Call(
        x=_Array.of(x3),
        grad=_Array() if grad3 is None else _Array.of(grad3),
        out=_Array.of(result),
        numerator=numerator.data_ptr(),
        denominator=denominator.data_ptr(),
        numerator_rows=len(numerator),
        denominator_rows=len(denominator),
        m=numerator.shape[1],
        n=denominator.shape[1],
        channels=x3.shape[1],
        groups=groups,
        lanes_are_channels=lanes_are_channels,
        blocks=len(windows),
        block=bounds.data_ptr(),
        sums=sums.data_ptr(),
        outside=outside.data_ptr(),
        table=table.data_ptr(),
    )
    _work(call, min(torch.get_num_threads(), len(windows), x3.numel() // _ELEMENTS_PER_THREAD))
    if not outside.any():
        return [], sums.sum(0)
    if grad3 is not None:
        sums[outside.bool()] = 0
    return list(itertools.compress(windows, outside.tolist())), sums.sum(0)


@functools.lru_cache(maxsize=256)
def _blocks(shape: torch.Size, lanes_are_channels: bool, elements: int) -> tuple[list[aten.Window], Tensor]:
    """The windows that are worked on as one, and the same as ``struct block`` of native.c."""
    outer, channels, inner = (slice(0, size) for size in shape)
    if lanes_are_channels:
        windows = [(o, c, i) for o, i, c in aten.windows((outer, inner, channels), elements)]
    else:
        # Several positions of outer, where there are: a sum takes in more rows before it goes on in float64.
        windows = [(o, c, i) for c, o, i in aten.windows((channels, outer, inner), elements)]
    return windows, torch.tensor([[(s.start, s.stop) for s in window] for window in windows])


def _work(call: _Call, threads: int) -> None:
    library, _ = load()
    assert library is not None
    library.flashkat_prepare(call)
    parallel = _parallel()
    if threads > 1 and parallel is not None:
        parallel(ctypes.cast(library.flashkat_work, ctypes.c_void_p), ctypes.byref(call), threads, 0)
    else:
        library.flashkat_work(call)


@functools.cache
def _parallel() -> "ctypes._NamedFuncPointer | None":
    """``GOMP_parallel`` of the OpenMP runtime that PyTorch's own operators run on, or None where there is no such.

    Threads of another pool would wait for a core: OpenMP's spin for a while after each of PyTorch's operators.
    """
    for path in _loaded_libraries():
        if re.match(r"lib(gomp|iomp|omp)\d?[-.]", path.name):
            with contextlib.suppress(OSError, AttributeError):
                function = ctypes.CDLL(str(path)).GOMP_parallel
                function.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Call), ctypes.c_uint, ctypes.c_uint]
                function.restype = None
                return function
    return None


def _loaded_libraries() -> list[Path]:
    maps = Path("/proc/self/maps")
    if maps.exists():
        return sorted({Path(line.split(maxsplit=5)[5]) for line in maps.read_text().splitlines() if ".so" in line})
    return sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*.dylib"))
