"""NumPy's numbers in a pickle, read as Python's, and its arrays, which are left out.

Reading them runs none of NumPy's code on a file's bytes.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["NO_NUMBERS", "SAFE_NUMPY"]

NO_NUMBERS = "no dtype of numbers"
"""What an error says about a dtype of texts or objects."""

# Truth, whole numbers, real and complex ones, of fixed size.
_NUMBER = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)")


class _DType(str):
    """A dtype's name; ``__setstate__`` takes the byte order, which is all that a number's dtype has beside it."""

    order = "="

    def __new__(cls, name: str, *flags: Any) -> "_DType":
        if not isinstance(name, str) or not _NUMBER.fullmatch(name):
            raise ValueError(f"{NO_NUMBERS}: {name!r:.40}")
        return super().__new__(cls, name)

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("no byte order")
        self.order = state[1]


def _scalar(dtype: _DType, data: bytes) -> Any:
    found = np.dtype(dtype.order + str(dtype))
    if len(data) != found.itemsize:
        raise ValueError("a scalar of another size than its dtype")
    return np.frombuffer(data, found)[0].item()


class _Array:
    """Stands for an array, and for NumPy's class of arrays. What the array holds is left out.

    No entry that is read here is an array. As lists, arrays that share their bytes would need many times the memory.
    """

    def __setstate__(self, state: Any) -> None:
        pass


def _array(*unused: Any) -> _Array:
    return _Array()


# By the names that NumPy 1 and 2 pickle.
SAFE_NUMPY: list[tuple[Callable[..., Any], str]] = [
    (_DType, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (_array, "numpy.core.multiarray._reconstruct"),
    (_array, "numpy._core.multiarray._reconstruct"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]
