"""Let ``import katransformer``, ``kat_rational`` and ``rational_kat`` mean this package."""

import importlib.util
import sys
from types import ModuleType

from . import activations, katransformer

__all__ = ["install", "stand_in"]

_RATIONALS = ("KAT_Group", "KAT_Group_Torch", "RationalTriton1DGroup")
_NAMES = {"kat_rational": _RATIONALS, "rational_kat": (*_RATIONALS, "FlashKAT_Group")}


def install() -> list[str]:
    """Register the modules of KAT's and FlashKAT's code, with this package's classes, where they are not installed.

    Returns:
        The names that mean this package from now on. An original that can be imported stays.
    """
    installed = []
    for name in ("katransformer", *_NAMES):
        if name in sys.modules or importlib.util.find_spec(name) is not None:
            continue
        sys.modules[name] = stand_in(name)
        installed.append(name)
    return installed


def stand_in(name: str) -> ModuleType:
    """Return the module that stands for one of KAT's or FlashKAT's code.

    Args:
        name: katransformer, kat_rational or rational_kat.
    """
    if name == "katransformer":
        return katransformer
    module = ModuleType(name, f"FlashKAT's classes under the names of {name}.")
    vars(module).update({each: getattr(activations, each) for each in _NAMES[name]})
    return module
