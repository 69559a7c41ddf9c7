"""Check a model's arguments that come from a file: only words and numbers within bounds, no paths or addresses.

Checkpoints, ``args.yaml`` and the ``config.json`` of a folder or the Hub may come from an untrusted author. timm's
``create_model`` also takes paths and addresses. Only the command line may give those.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import timm
import torch

from ..defaults import INTERPOLATIONS
from ..errors import InputError
from ..nn.starts import FUNCTIONS

__all__ = ["check_arguments", "check_fits_file", "check_images", "check_name"]

_WORD = re.compile(r"[A-Za-z0-9_-]{0,32}")
_NAME = re.compile(r"[\w.-]{1,200}")

# A model may have so many times the numbers of its file, or so many more. A larger image has more positions.
_GROWTH, _FREE = 4, 10**8


class _Rule(NamedTuple):
    wanted: str
    holds: Callable[[Any], bool]


def _whole(low: int, high: int) -> _Rule:
    return _Rule(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _real(low: float, high: float) -> _Rule:
    wanted = f"a number from {low:g} to {high:g}"
    return _Rule(wanted, lambda value: type(value) in (int, float) and low <= value <= high)


def _or_list(rule: _Rule, most: int) -> _Rule:
    def holds(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return 0 < len(value) <= most and all(map(rule.holds, value))
        return rule.holds(value)

    return _Rule(f"{rule.wanted}, or 1 to {most} of them", holds)


_FLAG = _Rule("true or false", lambda value: type(value) is bool)
_TEXT = _Rule("a word", lambda value: isinstance(value, str) and bool(_WORD.fullmatch(value)))
_SIDE = _or_list(_whole(1, 4096), 2)
_SHARE = _real(0, 1)
_CHANNELS, _CLASSES = _whole(1, 4096), _whole(0, 10**6)

# timm's Vision Transformers and KATs, and the sizes of other kinds of models. None means a model's default.
_ARCHITECTURE: dict[str, _Rule] = {
    "img_size": _SIDE,
    "patch_size": _SIDE,
    "in_chans": _CHANNELS,
    "num_classes": _CLASSES,
    "embed_dim": _or_list(_whole(1, 2**14), 16),
    "depth": _or_list(_whole(1, 512), 16),
    "num_heads": _or_list(_whole(1, 1024), 16),
    "mlp_ratio": _or_list(_real(0.01, 64), 16),
    **dict.fromkeys(("depths", "dims", "layers", "channels"), _or_list(_whole(1, 4096), 16)),
    **dict.fromkeys(("window_size", "stem_width", "base_width", "cardinality", "output_stride"), _SIDE),
    "init_values": _real(-1e6, 1e6),
    "reg_tokens": _whole(0, 4096),
    # A starting function of a higher degree takes longer to fit than 10 s.
    "m": _whole(1, 16),
    "n": _whole(0, 16),
    "num_groups": _whole(0, 2**14),
    "den_groups": _whole(0, 2**14),
    "act_init": _Rule("the name of a starting function", lambda value: isinstance(value, str) and value in FUNCTIONS),
    **dict.fromkeys(
        ("qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias", "class_token", "no_embed_class"),
        _FLAG,
    ),
    **dict.fromkeys(("pre_norm", "final_norm", "fc_norm", "pool_include_prefix", "fix_init"), _FLAG),
    **dict.fromkeys(("dynamic_img_size", "dynamic_img_pad", "strict_img_size"), _FLAG),
    **dict.fromkeys(("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"), _SHARE),
    "drop_path_rate": _SHARE,
    **dict.fromkeys(("global_pool", "pos_embed", "weight_init", "attn_layer"), _TEXT),
    **dict.fromkeys(("norm_layer", "act_layer", "embed_norm_layer"), _TEXT),
}

# The settings of images in a checkpoint's arguments and in a model's configuration.
_IMAGES: dict[str, _Rule] = {
    "img_size": _SIDE,
    "in_chans": _CHANNELS,
    "input_size": _Rule(
        "channels, height and width, each from 1 to 4096",
        lambda value: isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_CHANNELS.holds, value)),
    ),
    "crop_pct": _real(1e-3, 1),
    "val_fraction": _SHARE,
    "mean": _or_list(_real(-1e6, 1e6), 4096),
    "std": _or_list(_real(1e-6, 1e6), 4096),
    "num_classes": _CLASSES,
    "interpolation": _Rule(f"one of {', '.join(INTERPOLATIONS)}", lambda value: value in ("", *INTERPOLATIONS)),
    **dict.fromkeys(("crop_mode", "gp"), _TEXT),
}


def check_name(name: str, source: str) -> None:
    """Raise InputError unless a model that a file names is in timm's registry.

    Args:
        name: what the file calls the model.
        source: what errors call the file.
    """
    if not (_NAME.fullmatch(name) and timm.is_model(name)):
        raise InputError(
            f"{source} names the model {name[:80]!r}, which timm's registry does not have: "
            "the command line alone may name another, with --model"
        )


def check_arguments(arguments: Any, source: str) -> dict[str, Any]:
    """Return the arguments of a model that a file gives, unless one is no architecture or out of bounds.

    Args:
        arguments: by name, as ``create_model`` takes them.
        source: what errors call the file.

    Raises:
        InputError: names the argument.
    """
    if not isinstance(arguments, Mapping):
        raise InputError(f"{source}: model_kwargs has to hold names and values, not {arguments!s:.80}")
    found = {str(key): value for key, value in arguments.items()}
    for key, value in found.items():
        if key not in _ARCHITECTURE:
            raise InputError(
                f"{source} sets {key[:80]} of the model, which a file may not: "
                "it may be given on the command line alone, with --model-kwargs"
            )
        _check(key, value, _ARCHITECTURE[key], source)
    _check_memory(found, source)
    return found


def check_images(settings: Mapping[str, Any], source: str) -> None:
    """Raise InputError, with the setting's name, if a file's settings of images have a wrong type or size."""
    for key, rule in _IMAGES.items():
        _check(key, settings.get(key), rule, source)


def _check(key: str, value: Any, rule: _Rule, source: str) -> None:
    if value is not None and not rule.holds(value):
        raise InputError(f"{source}: {key} has to be {rule.wanted}, not {value!r:.80}")


def _check_memory(arguments: Mapping[str, Any], source: str) -> None:
    """Raise InputError for a Vision Transformer that this machine's memory cannot hold in float32."""

    def largest(key: str, default: float) -> float:
        value = arguments.get(key)
        return default if value is None else max(value, default=0) if isinstance(value, (list, tuple)) else value

    depth, width = largest("depth", 1), largest("embed_dim", 1)
    # 0 is a group for each channel.
    patch, groups = largest("patch_size", 1), sum(largest(key, 1) or width for key in ("num_groups", "den_groups"))
    numbers = depth * (width**2 * (4 + 2 * largest("mlp_ratio", 4)) + 128 * groups)
    numbers += width * (patch**2 * largest("in_chans", 1) + largest("num_classes", 1) + largest("reg_tokens", 0))
    numbers += width * (largest("img_size", 1) / patch) ** 2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40
    if 4 * numbers > memory:
        raise InputError(f"{source} asks for a model of {numbers:.1e} numbers, more than this machine's memory holds")


def check_fits_file(name: str, arguments: Mapping[str, Any], held: int, source: str) -> None:
    """Raise InputError if a file asks for a model of many more numbers than it holds.

    Args:
        name: the model.
        arguments: of it; checked.
        held: numbers in the file's weights.
        source: what errors call the file.
    """
    try:
        arguments = {key: value for key, value in arguments.items() if value is not None}
        with torch.device("meta"):
            try:
                model = timm.create_model(name, weight_init="skip", **arguments)
            except (TypeError, AssertionError):  # it does not take that
                model = timm.create_model(name, **arguments)
    except Exception:  # some models cannot be made without memory, so creating it finds the error
        return
    numbers = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if numbers > _GROWTH * held + _FREE:
        raise InputError(
            f"{source} has {held:,} numbers and asks for {name} with {numbers:,}: give --model and --model-kwargs"
        )
