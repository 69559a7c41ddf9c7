"""Creating a model by its registered name, with errors that a user can act on."""

import difflib
from typing import Any

import timm
import torch
from torch import nn

from ..errors import InputError

__all__ = ["create_model"]


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """``timm.create_model``, where None means the model's own default and mistakes raise InputError."""
    if not timm.is_model(name):
        names = timm.list_models()
        nearest = difflib.get_close_matches(name, names, n=1) or [known for known in names if name and name in known]
        hint = f"did you mean {nearest[0]!r}?" if nearest else "timm.list_models() has them all"
        raise InputError(f"no model is registered as {name!r}: {hint}")
    arguments = {key: value for key, value in kwargs.items() if value is not None}
    try:
        return timm.create_model(name, **arguments)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # timm and the models raise all kinds for arguments that do not fit
        reason = str(error).strip().split("\n")[0] or "timm does not say why"
        given = " ".join(f"{key}={value}" for key, value in arguments.items())
        raise InputError(f"cannot create {name} with {given}: {reason}") from error
