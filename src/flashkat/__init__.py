"""FlashKAT: Kolmogorov-Arnold Transformers (KATs) with fast kernels for their learnable activation.

Importing the package registers the models with timm and the operators with PyTorch. Triton kernels, training and
plotting are imported when they are first used. So is everything else if the process runs the ``flashkat`` command.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .system.interrupts import guard_command

__all__ = [
    "GRKAN",
    "GroupRational",
    "LazyGroupRational",
    "convert",
    "export",
    "fit",
    "mlp_to_grkan",
    "models",
    "rational",
    "revert",
]

_HOMES = {
    **dict.fromkeys(("GRKAN", "GroupRational", "LazyGroupRational", "fit"), "nn"),
    **dict.fromkeys(("convert", "mlp_to_grkan", "revert"), "tools.convert"),
    "export": "tools.export.write",
    "rational": "ops",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use. Commands read their flags before they wait for PyTorch."""
    if name == "__version__":
        from importlib.metadata import version  # after the guard, as it takes hundredths of a second

        return version("flashkat")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return import_module(f".{name}", __name__)


# The guard comes before PyTorch, whose import takes seconds.
if not guard_command() or TYPE_CHECKING:
    from . import models
    from .nn.fitting import fit
    from .nn.grkan import GRKAN
    from .nn.group_rational import GroupRational
    from .nn.lazy import LazyGroupRational
    from .ops import rational

if TYPE_CHECKING:
    __version__: str
    from .tools.convert import convert, mlp_to_grkan, revert
    from .tools.export.write import export
