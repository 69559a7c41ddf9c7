"""Find weights to fine-tune from: a file, a published KAT, or a ViT that timm has downloaded before."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from PIL import ImageMode
from timm.models import get_pretrained_cfg

from ... import checkpoints
from ...errors import InputError
from ...models import is_same_model
from ...models.architecture import check_arguments, check_images, check_name
from ...nn.formats import rational_names

__all__ = ["Start", "find_start"]

_WIDTHS = {192: "tiny", 384: "small", 768: "base"}
_VIT = re.compile(r"vit_(tiny|small|base)_patch(\d+)_\d+(?:\..*)?")

# The layouts of a repository of timm's, and the seconds that the Hub may take to answer.
_FILES = ("model.safetensors", "pytorch_model.bin")
_PATIENCE = 10.0

# Arguments of a KAT that its published weights do not depend on.
_FREE = {"img_size", "patch_size", "in_chans", "drop_rate", "drop_path_rate", "dynamic_img_size", "dynamic_img_pad"}

# Settings of images that are for one number of channels.
_OF_CHANNELS = ("in_chans", "input_img_mode", "mean", "std")

# Settings of the model and of images that a run's checkpoint states.
_SETTINGS = ("gp", "in_chans", "input_size", "input_img_mode", "crop_pct", "interpolation", "mean", "std")


@dataclass(frozen=True)
class Start:
    """The weights to start from.

    Attributes:
        kind: "kat", "vit" for weights of a ViT without rationals, or "scratch".
        note: a line that says which weights these are, or why there are none.
        flags: the flags of ``flashkat train`` that load them.
    """

    kind: str
    note: str
    flags: dict[str, Any] = field(default_factory=dict)


def find_start(size: str, given: Mapping[str, Any]) -> Start:
    """Find weights to start from.

    Args:
        size: tiny, small or base: the KAT to take if nothing else decides.
        given: flags of ``flashkat train`` that the user gave. ``initial_checkpoint`` names a file.

    Raises:
        InputError: the file cannot be read, or does not say what model it is of.
    """
    file = given.get("initial_checkpoint") or given.get("pretrained_path")
    name = given.get("model") or f"kat_{size}_patch16_224.vitft"
    if file:
        return _of_file(file, given)
    if given.get("pretrained") or given.get("resume"):
        return Start("kat", "The weights are those that the flags name", {"model": name})
    shape = sorted(set(given.get("model_kwargs", {})) - _FREE)
    if shape:
        reason = f"no published weights fit --model-kwargs {' '.join(shape)}"
        return _from_scratch(name, reason)
    reason = _reason_against(name)
    if not reason:
        return Start("kat", f"The weights are the published ones of {name}", {"model": name, "pretrained": True})
    if "model" not in given:
        for vit, place in _cached_vits(size):
            note = f"The weights are of the ViT {vit}, downloaded before. The published KATs are out of reach: {reason}"
            colours = {key: list(vars(get_pretrained_cfg(vit))[key]) for key in ("mean", "std")}
            images, left_out = _of_given_channels(colours, given)
            return Start("vit", note + left_out, {"model": _kat_of(vit), "initial_checkpoint": place, **images})
        reason += ", and timm has downloaded no ViT"
    return _from_scratch(name, reason)


def _from_scratch(name: str, reason: str) -> Start:
    note = f"Training starts from scratch, since {reason}. --from FILE starts from weights of a KAT or a ViT"
    return Start("scratch", note, {"model": name.partition(".")[0]})


def _reason_against(name: str) -> str:
    """Return why a model's published weights cannot be had, "" if they can."""
    configuration = get_pretrained_cfg(name) if timm.is_model(name) else None
    if configuration is None or not configuration.has_weights:
        return f"{name} has no published weights"
    repository = configuration.hf_hub_id
    if not repository:
        return ""
    names = [configuration.hf_hub_filename] if configuration.hf_hub_filename else list(_FILES)
    if _cached(repository, names):
        return ""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to download them"
    try:
        get_hf_file_metadata(hf_hub_url(repository, names[0]), timeout=_PATIENCE)
    except Exception:  # of the network in many types, or of a file that is not there
        return "the Hugging Face Hub cannot be reached"
    return ""


def _cached(repository: str, names: list[str]) -> str | None:
    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((place for place in found if isinstance(place, str)), None)


def _cached_vits(size: str) -> Iterator[tuple[str, str]]:
    """Yield each ViT in the cache and its file, those of this size first."""
    for each in dict.fromkeys((size, *_WIDTHS.values())):
        default = get_pretrained_cfg(f"vit_{each}_patch16_224")
        tags = sorted(timm.list_pretrained(f"vit_{each}_patch16_224.*"), key=lambda name: name.endswith(default.tag))
        for name in reversed(tags):
            repository = get_pretrained_cfg(name).hf_hub_id
            if repository and (place := _cached(repository, list(_FILES))):
                yield name, place


def _kat_of(vit: str) -> str:
    """Return the KAT whose blocks start closest to those of a ViT: GELU is the ViT's activation."""
    match = _VIT.fullmatch(vit)
    assert match is not None
    return f"kat_{match[1]}_gelu_patch16_224"


def _of_file(file: str, given: Mapping[str, Any]) -> Start:
    """Find the model of a file, from what a run's checkpoint states or from the shapes of its weights."""
    checkpoint = checkpoints.read(file)
    state = checkpoints.weights(checkpoint, None)
    kind = "kat" if rational_names(state) else "vit"
    arch = checkpoint.get("arch") or ""
    flags: dict[str, Any] = {"initial_checkpoint": file} if not given.get("pretrained_path") else {}
    note = f"The weights are {file}, of {'a KAT' if kind == 'kat' else 'a model without rationals'}"
    if arch:
        note += f" ({arch})"
        check_name(arch, file)
        vit = _VIT.fullmatch(arch)
        model = given.get("model") or (_kat_of(arch) if vit else arch)
        if vit or is_same_model(model, arch):
            stated, left_out = _of_given_channels(_stated(checkpoint, file), given)
            flags |= stated
            note += left_out
        if vit and vit[2] != "16":
            flags["model_kwargs"] = {"patch_size": int(vit[2]), **flags.get("model_kwargs", {})}
        return Start(kind, note, {"model": model, **flags})
    if given.get("model"):
        return Start(kind, note, flags)
    kernel = state.get("patch_embed.proj.weight")
    size = _WIDTHS.get(kernel.shape[0]) if kernel is not None and kernel.ndim == 4 else None
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if kernel is None or size is None or depth != 12:
        raise InputError(f"{file} does not say what model it is of: give --model, and --model-kwargs if any")
    patch = kernel.shape[-1]
    kwargs = {"model_kwargs": {"patch_size": patch}} if patch != 16 else {}
    model = f"kat_{size}_patch16_224" if kind == "kat" else f"kat_{size}_gelu_patch16_224"
    return Start(kind, note, {"model": model, **flags, **kwargs})


def _stated(checkpoint: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Return the model's arguments and the images that a run's checkpoint states, after checking them."""
    args = checkpoint.get("args") or {}
    settings = {key: args[key] for key in _SETTINGS if args.get(key) not in (None, "")}
    check_images(settings, file)
    kwargs = check_arguments(args.get("model_kwargs") or {}, file)
    size = checkpoints.stated_size(checkpoint)
    kwargs.pop("img_size", None)
    if input_size := settings.pop("input_size", None):
        settings.setdefault("in_chans", input_size[0])
    if size is not None and size[0] == size[1]:
        settings["img_size"] = size[0]
    elif size is not None:
        settings["input_size"] = [settings.get("in_chans", 3), *size]
    return {**({"model_kwargs": kwargs} if kwargs else {}), **settings}


def _of_given_channels(stated: dict[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return what fits the channels that the user gave, and words about the flags that do not."""
    channels = _channels(given)
    if channels in (None, stated.get("in_chans", 3)):
        return stated, ""
    fitting = {name: value for name, value in stated.items() if name not in _OF_CHANNELS}
    if "input_size" in fitting:
        fitting["input_size"] = [channels, *fitting["input_size"][1:]]
    names = [f"--{name.replace('_', '-')}" for name in _OF_CHANNELS[1:] if name in stated and name not in given]
    words = f", whose {' and '.join(names)} {'are' if len(names) > 1 else 'is'} for other channels"
    return fitting, words if names else ""


def _channels(given: Mapping[str, Any]) -> int | None:
    """Return the channels of the images that the user gave, None if they are open."""
    if given.get("input_size"):
        return int(given["input_size"][0])
    mode = given.get("input_img_mode")
    if given.get("in_chans") or not mode:
        return given.get("in_chans")
    with contextlib.suppress(KeyError):  # training refuses an unknown mode, and names the others
        return len(ImageMode.getmode(mode).bands)
    return None
