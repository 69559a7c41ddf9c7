"""Creating a model by its registered name, with errors that a user can act on."""

import difflib
from typing import Any

import timm
from torch import nn

from ..errors import InputError, explain

__all__ = ["create_model"]

# What timm takes before a model's name; the rest is a repository on the Hugging Face Hub, or a folder.
_SOURCES = ("hf_hub:", "hf-hub:", "local-dir:")


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """``timm.create_model``, where None means the model's own default and mistakes raise InputError."""
    if not name.startswith(_SOURCES) and not timm.is_model(name):
        names = timm.list_models()
        longer = [known for known in names if name and known.startswith(name)]
        nearest = sorted(longer, key=len) or difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "timm.list_models() has them all"
        raise InputError(f"no model is registered as {name!r}: {hint}")
    arguments = {key: value for key, value in kwargs.items() if value is not None}
    given = " ".join(f"{key}={value}" for key, value in arguments.items())
    with explain(f"cannot create {name} with {given}"):
        return timm.create_model(name, **arguments)
