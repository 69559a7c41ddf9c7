"""Make the model of a checkpoint, ready to evaluate."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg
from torch import nn

from .. import checkpoints
from ..data.config import Data
from ..data.folders import has_evaluation_split, open_split
from ..defaults import SOURCES
from ..errors import InputError
from ..models import create_model, is_same_model
from ..models.architecture import check_arguments, check_fits_file, check_images, check_name
from ..models.config import Model
from .config import Trained

__all__ = ["Restored", "about_held_out", "model_arguments", "restore"]

# Settings of images that are read from a checkpoint if they are not given.
_SIZES = ("img_size", "input_size")
_IMAGES = (*_SIZES, "in_chans", "input_img_mode", "crop_pct", "interpolation", "mean", "std")


@dataclass(frozen=True)
class Restored:
    """A model with its weights.

    Attributes:
        module: the model, on the CPU.
        name: its name in timm's registry.
        checkpoint: all entries of the file; empty without a file.
        data: the data section, completed with the checkpoint's settings of images.
        arguments: those that the model was created with, without those that took its default.
    """

    module: Any
    name: str
    checkpoint: dict[str, Any]
    data: Data
    arguments: dict[str, Any] = field(default_factory=dict)


def model_arguments(model: Model, data: Data) -> dict[str, Any]:
    """Return the arguments of :func:`flashkat.models.create_model` for a model and its images."""
    size = data.input_size[1:] if data.input_size else None
    configuration = get_pretrained_cfg(model.name)
    has_size = configuration is None or configuration.fixed_input_size  # others, such as ResNets, take any
    return {
        "img_size": ((size[0] if size[0] == size[1] else tuple(size)) if size else data.img_size) if has_size else None,
        "in_chans": data.input_size[0] if data.input_size else data.in_chans,
        "num_classes": model.num_classes,
        "global_pool": model.gp or None,  # without pooling, a model gives no class
        "pretrained": model.pretrained or None,
        **model.model_kwargs,
    }


def restore(model: Model, trained: Trained, data: Data, say: Callable[[str], None] = lambda line: None) -> Restored:
    """Make a model with the weights of a checkpoint.

    Settings that the sections leave open come from the checkpoint: the model, its arguments, image size and classes.
    Without a checkpoint the model has its published weights, as in timm.

    Args:
        model: the model's section; its name may be None.
        trained: the file of the weights.
        data: the data section of the images that the model will see.
        say: called with a line about embeddings that were resampled, and weights that ``model.partial`` left out.

    Raises:
        InputError: the file cannot be read, or does not fit the model.
    """
    file = trained.checkpoint
    if trained.use_ema and not file:
        raise InputError("--use-ema needs a --checkpoint to take the averaged weights from")
    checkpoint = checkpoints.read(file) if file else {}
    state = checkpoints.weights(checkpoint, trained.use_ema) if file else {}
    arguments, arch = checkpoint.get("args"), checkpoint.get("arch")
    if not model.model and file and not arch:
        raise InputError(f"{file} does not say what model it is of: give --model, and --model-kwargs if any")
    if not model.model and arch:
        check_name(arch, file)
    asked = model
    model = replace(model, model=model.model or arch or model.name, pretrained=not file)
    if arguments and arch and is_same_model(model.name, arch):
        model, data = _completed(model, data, arguments, file)
    if arguments:
        data = _with_held_out(data, arguments, checkpoint, file, say)
    if model.num_classes is None and "head.bias" in state:
        model = replace(model, num_classes=state["head.bias"].numel())
    wanted = model_arguments(model, data)
    if file and not (asked.model and model.model_kwargs == asked.model_kwargs) and not model.name.startswith(SOURCES):
        check_fits_file(model.name, wanted, sum(tensor.numel() for tensor in state.values()), file)
    module: nn.Module = create_model(model.name, **wanted)
    if file:
        left = checkpoints.load_weights(
            module, state, file, size=checkpoints.stated_size(checkpoint), partial=model.partial
        )
        for note in checkpoints.notes_on_fit(module, state, file, checkpoints.stated_size(checkpoint)):
            say(note)
        if left:
            say(f"{file} fits in part: {left}")
    else:
        _check_head(module, model)
    given = {name: value for name, value in wanted.items() if value is not None and name != "pretrained"}
    return Restored(module, model.name, checkpoint, data, given)


def _check_head(module: Any, model: Model) -> None:
    """Raise InputError if timm has left out the head of published weights, as for another number of classes."""
    stated, outputs = module.pretrained_cfg.get("num_classes"), module.num_classes
    if stated == outputs:
        return
    if model.num_classes is not None:
        raise InputError(f"{model.name} has a head of {stated} classes, not of --num-classes {outputs}: leave that out")
    raise InputError(
        f"the configuration of {model.name} states {stated} classes, and its model has {outputs}: correct num_classes"
    )


def _with_held_out(
    data: Data, arguments: dict[str, Any], checkpoint: dict[str, Any], file: str, say: Callable[[str], None]
) -> Data:
    """Take the share that a run held out, if the images are the same. Otherwise say how to hold out as many."""
    share, folder = arguments.get("val_fraction"), arguments.get("data_dir")
    check_images({"val_fraction": share}, file)
    if not share or not data.data_dir or not data.is_folder or data.val_fraction is not None:
        return data
    if has_evaluation_split(Path(data.data_dir)):
        return data
    is_same = isinstance(folder, str) and os.path.realpath(folder) == os.path.realpath(data.data_dir)
    # The same images may be in a copy, or at a path from another working directory.
    if not is_same and (before := _held_out(checkpoint)):
        is_same = before == open_split(data.data_dir, data.val_split, data.class_map, val_fraction=share).held_out
    if is_same:
        return replace(data, val_fraction=share)
    say(
        f"All images are evaluated. The run held out {share:g} of each class of {folder!s:.200}: if they are the same, "
        f"give --val-fraction {share:g}"
    )
    return data


def about_held_out(dataset: Any, checkpoint: dict[str, Any], file: str) -> list[str]:
    """Return a line if a data set holds out other images than a checkpoint's run did, else none.

    Its files may have changed, or its folder, or ``--val-fraction``.

    Args:
        dataset: the images to evaluate or to train on.
        checkpoint: all its entries.
        file: what the line calls the checkpoint.
    """
    before, now = _held_out(checkpoint), getattr(dataset, "held_out", "")
    if not before or not now or before == now:
        return []
    return [
        f"{dataset.source} holds out other images than it did for {file}: the run may have trained on some of these. "
        "A new run trains on none"
    ]


def _held_out(checkpoint: dict[str, Any]) -> str:
    """Return the digest of the images that a checkpoint's run held out; empty if it is unknown."""
    run = checkpoint.get("run")
    return str(run.get("held_out", "")) if isinstance(run, dict) else ""


def _completed(model: Model, data: Data, arguments: dict[str, Any], file: str) -> tuple[Model, Data]:
    """Fill the settings that are not given with a checkpoint's arguments, after checking these."""
    stored = arguments.get("model_kwargs", {}).items()
    kwargs = check_arguments({key: value for key, value in stored if key not in model.model_kwargs}, file)
    if isinstance(kwargs.get("img_size"), int):  # KAT's users have no other place for it
        size = kwargs.pop("img_size")
        arguments = {**arguments, "img_size": arguments.get("img_size") or size}
    is_sized = data.img_size is not None or data.input_size is not None
    names = [name for name in _IMAGES if getattr(data, name) in (None, "") and not (is_sized and name in _SIZES)]
    settled = {"num_classes": model.num_classes is not None, "gp": model.gp not in (None, "")}
    found: dict[str, Any] = {
        name: arguments.get(name) for name in (*names, *(key for key, known in settled.items() if not known))
    }
    check_images(found, file)
    if is_sized and data.input_size is None and arguments.get("input_size") and found.get("in_chans") is None:
        check_images({"input_size": arguments["input_size"]}, file)
        found["in_chans"] = arguments["input_size"][0]  # the given size has no channels
    of_model = {name: found.pop(name) for name in settled if name in found}
    return replace(model, model_kwargs={**kwargs, **model.model_kwargs}, **of_model), replace(data, **found)
