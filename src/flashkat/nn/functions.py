"""The functions that have a name: what a rational can start as."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FUNCTIONS", "named_function"]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
    "leaky_relu_0.1": lambda x: F.leaky_relu(x, 0.1),
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_old": F.gelu,
    "swish": F.silu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "geglu": lambda x: x * F.gelu(x),
    "swishglu": lambda x: x * F.silu(x),
    "erfc_Softplus_2": lambda x: torch.erfc(F.softplus(x)).square(),
}
"""The named starting functions; silu is swish, and geglu and swishglu are x gelu(x) and x swish(x).

KAT's code has the names gelu_old, an earlier fit of GELU, and erfc_Softplus_2, which is erfc(softplus(x))^2.
"""


def named_function(name: str) -> Callable[[Tensor], Tensor]:
    """Return a function of :data:`FUNCTIONS`.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in FUNCTIONS:
        raise ValueError(f"unknown starting function {name!r}: choose one of {', '.join(FUNCTIONS)}")
    return FUNCTIONS[name]
