"""Create a model by its registered name, with errors that say what to do."""

import difflib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import timm
from huggingface_hub import constants
from huggingface_hub.utils import LocalEntryNotFoundError
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..defaults import SOURCES
from ..errors import InputError, UnreachableError, did_you_mean, explain, quiet
from ..nn.starts import kept_start
from .architecture import check_arguments, check_images, check_name

__all__ = ["check_model_name", "create_model"]

_UNKNOWN_ARGUMENT = re.compile(r"^(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")


def check_model_name(name: str) -> None:
    """Raise InputError, with the most similar name, unless timm has a model of this name.

    Names on a hub and names of folders pass unchecked.
    """
    if name.startswith(SOURCES) or timm.is_model(name):
        return
    typed, all_of_them = name.lower(), "timm.list_models() has them all"
    if "kat" in typed:  # otherwise timm's "coat" might be suggested
        hint = did_you_mean(typed, timm.list_models(module="kat"), all_of_them, likeness=0)
    else:
        hint = did_you_mean(typed, timm.list_models(), all_of_them)
    raise InputError(f"no model is registered as {name!r}: {hint}")


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Create a model as ``timm.create_model`` does.

    Args:
        name: a name in timm's registry, or timm's name of a repository or a folder.
        **kwargs: arguments of the model; None takes its default.

    Raises:
        InputError: there is no such model, or it does not take the arguments.
        UnreachableError: its weights cannot be downloaded.
    """
    check_model_name(name)
    arguments = {key: value for key, value in kwargs.items() if value is not None}
    given = " ".join(f"{key}={value}" for key, value in arguments.items())
    with explain(f"cannot create {name} with {given}"), quiet("huggingface_hub"):
        try:
            if name.startswith(SOURCES):
                _check_configuration(name, arguments)
            if callable(arguments.get("act_init")):  # timm keeps the arguments, and models are pickled
                degrees = arguments.get("m", 6), arguments.get("n", 4)
                arguments["act_init"] = kept_start(arguments["act_init"], *degrees)
            model = timm.create_model(name, **arguments)
        except LocalEntryNotFoundError as error:
            if constants.HF_HUB_OFFLINE:
                raise InputError(
                    f"{name} was not downloaded before, and HF_HUB_OFFLINE forbids it now: unset that"
                ) from error
            raise UnreachableError(
                f"cannot download {name}, as the Hugging Face Hub cannot be reached: connect to the network, name a "
                "weights file, or set HF_HUB_OFFLINE=1 to use earlier downloads"
            ) from error
        except Exception as error:
            wrong = _wrong_argument(name, arguments, str(error))
            if wrong:
                raise InputError(wrong) from error
            if "loading state_dict" in str(error):  # whose first line names no tensor
                misfit = " ".join(str(error).splitlines()[1:2]).strip().rstrip(".")
                raise InputError(
                    f"the weights of {name} are of another model than asked for: {misfit}: leave out what differs, or "
                    "correct its config.json"
                ) from error
            raise
    if "img_size" in arguments and isinstance(model, VisionTransformer):
        _check_size(model.patch_embed)
    return model


def _check_configuration(name: str, given: dict[str, Any]) -> None:
    """Raise InputError unless a folder's or repository's configuration describes only an architecture and images."""
    source, _, place = name.partition(":")
    load = load_model_config_from_path if source == "local-dir" else load_model_config_from_hf
    try:
        images, architecture, arguments = load(place)
        if not isinstance(architecture, str):
            raise TypeError(architecture)
    except (LookupError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise InputError(
            f"the config.json of {name} describes no model of timm's: take a folder that flashkat export --to hf wrote"
        ) from error
    check_name(architecture, name)
    check_arguments({key: value for key, value in (arguments or {}).items() if key not in given}, name)
    check_images(images, name)


def _wrong_argument(name: str, arguments: dict[str, Any], reason: str) -> str:
    """Return a message about the argument that a model refused, or "" if its module's signatures do not show it.

    Args:
        name: the model's name.
        arguments: its arguments.
        reason: the message of the exception.
    """
    if not timm.is_model(name):
        return ""
    module = sys.modules[timm.model_entrypoint(name).__module__]
    unknown = _UNKNOWN_ARGUMENT.match(reason)
    if unknown and unknown[2] in arguments:
        owner, key = getattr(module, unknown[1], nn.Module), unknown[2]
        known = {parameter.name for parameter in _parameters(module, owner)}
        nearest = ", ".join(difflib.get_close_matches(key, known, n=3, cutoff=0))
        return f"--model-kwargs {key}={arguments[key]}: {name} takes no {key}, the nearest that it takes are {nearest}"
    for parameter in _parameters(module, nn.Module):
        value, default = arguments.get(parameter.name), parameter.default
        if type(default) in (int, float) and (isinstance(value, str) or (type(default), type(value)) == (int, float)):
            kind = "a whole number" if type(default) is int else "a number"
            return f"--model-kwargs {parameter.name}={value}: it takes {kind}, as in {parameter.name}={default}"
    return ""


def _parameters(module: Any, base: type) -> Iterator[inspect.Parameter]:
    """Yield the named parameters of the constructors of a class and of its subclasses in a module."""
    for kind in vars(module).values():
        if isinstance(kind, type) and issubclass(kind, base):
            for parameter in list(inspect.signature(kind.__init__).parameters.values())[1:]:
                if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                    yield parameter


def _check_size(patches: Any) -> None:
    """Raise InputError if the image does not divide into whole patches: timm would drop the pixels at its edge."""
    if patches.dynamic_img_pad:
        return
    for side, patch in zip(patches.img_size, patches.patch_size, strict=True):
        if side % patch:
            flag = "--img-size" if len({*patches.img_size}) == 1 else "--input-size with a side of"
            fitting = [size for size in (side // patch * patch, (side // patch + 1) * patch) if size]
            raise InputError(
                f"{flag} {side} does not divide into patches of {patch} pixels: "
                f"give {' or '.join(map(str, fitting))}, or --model-kwargs dynamic_img_size=True dynamic_img_pad=True"
            )
