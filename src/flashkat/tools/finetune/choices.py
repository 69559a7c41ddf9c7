"""Choose the flags of ``flashkat train`` that suit a data set: split, image size, epochs, rates, augmentation."""

import contextlib
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ...data.augment import takes_policies
from ...data.config import Data
from ...data.datasets import check_splits, image_count, open_dataset
from ...data.folders import has_evaluation_split, is_training_split
from ...data.images import image_mode, open_image
from ...errors import InputError, launched_processes
from ...system.device import resolve_device
from .pretrained import Start, find_start

__all__ = ["Plan", "choose"]

_HELD_OUT = 0.2

# How many images tell the size and the colours of all, and Pillow's modes without colours.
_SEEN = 64
_GREY = {"1", "L", "LA", "F", "I", "I;16"}

# A CPU sees images up to this side at half the size of the pretrained model, which takes a quarter of the time.
_SMALL, _HALF = 112, 112

# From scratch, fewer images than this train a model of 1.3 million parameters, or on a CPU one of 0.2 million.
_FEW = 20_000
_SMALL_ON_GPU = {"embed_dim": 128, "depth": 6, "num_heads": 4}
_SMALL_ON_CPU = {"embed_dim": 64, "depth": 3, "num_heads": 4}

# From so many images on, they are mixed.
_MIXED = 5_000

# The groups of a KAT's rationals divide its width.
_GROUPS = 8


@dataclass(frozen=True)
class Plan:
    """A run of ``flashkat train``.

    Attributes:
        flags: its flags by name, with those that the user gave.
        notes: lines for the user about the data and the weights.
    """

    flags: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Images:
    """The training images: how many, the median of their shorter sides in pixels, and whether all are grey."""

    count: int
    side: int
    is_grey: bool


def choose(given: Mapping[str, Any]) -> Plan:
    """Choose the flags that the user left open.

    Args:
        given: flags of ``flashkat train`` that the user gave, by name. They stay as they are.

    Raises:
        InputError: the data or the weights cannot be used.
    """
    split = _split(given)
    images, found = _look({**split, **given})
    has_gpu = resolve_device(given.get("device")).type != "cpu"
    start = find_start("small" if has_gpu else "tiny", given)
    are_many = images.count >= _MIXED
    can_mix = given.get("batch_size", 0) % 2 == 0 and not given.get("aug_splits")
    chosen = {
        **split,
        **_shape(images, start, given, has_gpu),
        **start.flags,
        **_schedule(images, start, given),
        **_augmentation(images, image_mode(_data({**start.flags, **given}))),
        **({"mixup": 0.2, "cutmix": 1.0} if are_many and can_mix else {}),
        **_machine(has_gpu),
    }
    kwargs = {**chosen.pop("model_kwargs", {}), **given.get("model_kwargs", {})}
    if given.get("img_size"):
        chosen.pop("input_size", None)
    elif given.get("input_size") or "input_size" in chosen:
        chosen.pop("img_size", None)
    chosen, changes = _in_patches(chosen, kwargs)
    flags = {**{name: value for name, value in chosen.items() if name not in given}, **given}
    notes = [found, start.note, *changes]
    if are_many and not can_mix:
        notes.append("Images are not mixed: --mixup and --cutmix take an even --batch-size and no --aug-splits")
    if "hflip" not in flags and "no_aug" not in flags:
        notes.append("Half of the training images are mirrored: give --hflip 0 for digits, text and the like")
    return Plan({**flags, **({"model_kwargs": kwargs} if kwargs else {})}, tuple(notes))


def _in_patches(chosen: dict[str, Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Round the chosen size of images to whole patches, and return the flags and a line if that changes it."""
    name = next((each for each in ("img_size", "input_size") if each in chosen), None)
    patch = kwargs.get("patch_size")
    patches = patch if isinstance(patch, (list, tuple)) else [patch, patch]
    if name is None or kwargs.get("dynamic_img_pad") or not all(type(each) is int and each > 0 for each in patches):
        return chosen, []
    size: Any
    if name == "img_size":
        size = _multiple(chosen[name], math.lcm(*patches))
    else:
        channels, *sides = chosen[name]
        size = [channels, *map(_multiple, sides, patches)]
    if size == chosen[name]:
        return chosen, []
    flag = "--img-size" if name == "img_size" else "--input-size"
    return {**chosen, name: size}, [f"{flag} is rounded to whole patches of {' x '.join(map(str, patches))} pixels"]


def _multiple(side: int, patch: int) -> int:
    """Return the multiple of a patch that is nearest to a side, and at least one patch."""
    return max(1, round(side / patch)) * patch


def _split(given: Mapping[str, Any]) -> dict[str, Any]:
    """Hold out images of a folder or archive that has none to evaluate."""
    folder = given.get("data_dir")
    is_settled = any(name in given for name in ("val_fraction", "val_split", "fake_data"))
    is_settled |= not is_training_split(given.get("train_split", "train"))
    if is_settled or "/" in given.get("dataset", "") or folder is None or has_evaluation_split(Path(folder)):
        return {}
    return {"val_fraction": _HELD_OUT}


def _data(flags: Mapping[str, Any]) -> Data:
    """Return the section of the configuration that flags give."""
    return Data(**{each.name: flags[each.name] for each in fields(Data) if flags.get(each.name) is not None})


def _look(flags: Mapping[str, Any]) -> tuple[_Images, str]:
    """Open the data set as training does, and return what it holds and a line about it."""
    data = _data(flags)
    named = flags.get("num_classes")
    train = open_dataset(
        data, data.train_split, is_training=True, num_samples=data.train_num_samples, num_classes=named
    )
    classes, evaluated = len(train.classes), "none"
    if data.val_split:
        val = open_dataset(data, data.val_split, num_samples=data.val_num_samples, num_classes=named)
        check_splits(train, val)
        evaluated = f"{image_count(val):,}"
    if classes == 1:
        raise InputError(f"{train.source} has one class, {train.classes[0]}: give a folder of two or more classes")
    seen = _sample(train)
    side = round(statistics.median(min(size) for size, _ in seen)) if seen else 224
    is_grey = bool(seen) and all(mode in _GREY for _, mode in seen)
    count = image_count(train)
    line = f"{count:,} images to train on, {evaluated} to evaluate" + (f", {classes:,} classes" if classes else "")
    line += f", {'grey, ' if is_grey else ''}{side} pixels on their shorter side" if seen else ""
    return _Images(count, side, is_grey), line


def _sample(dataset: Any) -> list[tuple[tuple[int, int], str]]:
    """Return size and mode of images all over a data set, as far as these are files that can be opened."""
    reader: Any = getattr(dataset, "reader", None)
    seen = []
    for index in range(0, len(dataset), max(1, len(dataset) // _SEEN)) if hasattr(reader, "__getitem__") else ():
        with contextlib.suppress(Exception):  # training names the images that cannot be read
            file, _ = reader[index]
            with file, open_image(file) as image:
                seen.append((image.size, image.mode))
    return seen


def _shape(images: _Images, start: Start, given: Mapping[str, Any], has_gpu: bool) -> dict[str, Any]:
    """Choose image size, crop and patch size. A model that starts from scratch may be small too."""
    # What small images show fills them.
    crop = {"crop_pct": 1.0} if images.side <= _SMALL else {}
    if start.kind != "scratch":
        return {"img_size": _HALF, **crop} if not has_gpu and crop else crop
    stated = (given.get("input_size") or [given.get("img_size")])[-1]
    size = stated or min(224, max(16, math.ceil(images.side / 16) * 16))
    if "_patch16_" not in start.flags["model"]:
        return {"img_size": size, **crop}
    patch = _dividing(4 if size <= 48 else 8 if size <= 112 else 16, given.get("input_size", [size])[-2:])
    is_small = "model" not in given and images.count < _FEW
    small = _small(has_gpu, given.get("model_kwargs", {})) if is_small else {}
    return {"img_size": size, **crop, "model_kwargs": {"patch_size": patch, **small}}


def _small(has_gpu: bool, given: Mapping[str, Any]) -> dict[str, int]:
    """Return the arguments of a small model. Its heads divide a given width, and a given number of heads its width."""
    small = dict(_SMALL_ON_GPU if has_gpu else _SMALL_ON_CPU)
    width, heads = given.get("embed_dim"), given.get("num_heads")
    if type(heads) is int and heads > 0:
        small["embed_dim"] = _multiple(small["embed_dim"], math.lcm(heads, _GROUPS))
    elif type(width) is int:
        small["num_heads"] = math.gcd(width, small["num_heads"])
    return small


def _dividing(patch: int, sides: Sequence[int]) -> int:
    """Return the patch nearest to one, up to twice as large or small, that divides all sides; itself without any."""
    fitting = [each for each in range(math.ceil(patch / 2), 2 * patch + 1) if not any(side % each for side in sides)]
    return min(fitting, key=lambda each: abs(math.log(each / patch)), default=patch)


def _schedule(images: _Images, start: Start, given: Mapping[str, Any]) -> dict[str, Any]:
    """Choose batch size, epochs and rates: fewer images make more epochs of smaller batches.

    The rate fits the batch that is given, and the warm-up the epochs.
    """
    batch = 2 ** int(math.log2(max(1, min(images.count, max(4, images.count / 16), 128))))
    views, least, most = (400_000, 30, 60) if start.kind == "scratch" else (200_000, 10, 50)
    epochs = given.get("epochs", min(most, max(least, views // images.count)))
    # New rationals in the lower layers of a ViT need to learn more than those of a KAT.
    decay = {"kat": 0.75, "vit": 0.85}.get(start.kind)
    processes = launched_processes()
    together = given["batch_size"] * processes if "batch_size" in given else batch
    rate = (2e-3 if start.kind == "scratch" else 5e-4) * math.sqrt(together / 128)
    return {
        "epochs": epochs,
        "batch_size": max(1, batch // processes // 2 * 2),  # mixup takes an even one
        "opt": "adamw",
        "lr": float(f"{rate:.1e}"),
        "weight_decay": 0.05,
        **({"layer_decay": decay} if decay else {}),
        "warmup_epochs": max(0, min(max(1, epochs // 10), epochs - 1)),
        "clip_grad": 1.0,
    }


def _augmentation(images: _Images, mode: str) -> dict[str, Any]:
    """Choose augmentation. Small images lose much in crops, and grey ones have no colours.

    Args:
        images: the training images.
        mode: the mode of Pillow's in which training reads them.
    """
    chosen: dict[str, Any] = {}
    if images.count < 100_000:
        chosen["scale"] = [0.7 if images.side <= _SMALL else 0.5 if images.count < 5_000 else 0.25, 1.0]
    if images.is_grey:
        chosen["color_jitter"] = 0.0
    elif takes_policies(mode):
        chosen["aa"] = "rand-m9-mstd0.5-inc1"
    return {**chosen, "drop_path": 0.1}


def _machine(has_gpu: bool) -> dict[str, Any]:
    """Choose loader processes and precision. On a CPU the model itself needs the cores."""
    cores = (os.cpu_count() or 1) // launched_processes()
    workers = {"workers": max(1, min(16 if has_gpu else 2, cores))}
    return {**workers, "amp": True} if has_gpu and torch.cuda.is_bf16_supported() else workers
