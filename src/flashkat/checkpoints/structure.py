"""Check nested values that a file gives: how many they are when they are written out, and how deep."""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["fault_of_structure"]

_DEEPEST = 32
_LONGEST_NUMBER = 64  # bits

_NESTED = (Mapping, list, tuple, set, frozenset)

# So many characters of a text count as a value.
_TEXT = 16


class _Fault(Exception):  # noqa: N818 - it is an answer
    pass


def fault_of_structure(value: Any, most: int) -> str:
    """Return what is wrong with nested lists and dictionaries, "" if they may be walked, copied and printed.

    A few bytes of a file can name one list many times, or put a list into itself.

    Args:
        value: read from a file.
        most: how many values it may hold, each counted as often as it is named.
    """
    try:
        _size(value, 0, most, {})
    except _Fault as fault:
        return str(fault)
    return ""


def _size(value: Any, depth: int, most: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values there are in one, and how deep they lie below it."""
    if isinstance(value, (str, bytes)):
        return 1 + len(value) // _TEXT, 0
    if isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER:
        raise _Fault(f"a number of {value.bit_length():,} bits")
    if not isinstance(value, _NESTED):
        value = getattr(value, "__dict__", None)  # of timm's arguments
    if not value or not isinstance(value, _NESTED):
        return 1, 0
    size, height = known.get(id(value), (1, 0))
    if not height:
        if depth >= _DEEPEST:
            raise _Fault(f"lists in lists, more than {_DEEPEST} deep or in themselves")
        height = 1
        for each in _inside(value):
            inner, below = _size(each, depth + 1, most, known)
            size, height = size + inner, max(height, below + 1)
            if size > most:
                raise _Fault(f"more than {most:,} values")
        known[id(value)] = size, height
    if depth + height > _DEEPEST:
        raise _Fault(f"lists in lists, more than {_DEEPEST} deep")
    return size, height


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        yield from value
        yield from value.values()
    else:
        yield from value
