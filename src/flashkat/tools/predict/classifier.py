"""A model to predict with, from a checkpoint, a model folder, an ONNX file or an exported program."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints.load import notes_on_average
from ...errors import InputError, explain
from ...evaluation import Config
from ...evaluation.nonfinite import count_outputs, refuse_outputs
from ...system.device import autocast, place, prepare_process, resolve_device
from ..export.description import Description, describe
from ..export.onnx_file import load_onnx
from ..export.program import Run, load_package, read_entries
from ..export.restored import restored

__all__ = ["Classifier", "open_classifier"]


@dataclass(frozen=True)
class Classifier:
    """A model with its class names and the preparation of its images.

    Attributes:
        description: what the images and outputs are.
        run: takes a batch of prepared images, and returns logits.
    """

    description: Description
    run: Run

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probabilities (batch, classes) of prepared images (batch, channels, height, width).

        Raises:
            InputError: the program returns no logits, some that are not finite, or another number than class names.
        """
        with explain("cannot run the model"):
            result = self.run(images.to(getattr(torch, self.description.dtype)))
        logits = result[0] if isinstance(result, (list, tuple)) and result else result
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images) or not logits.shape[1]:
            raise InputError("the model returns no number for each class of an image: give a classifier")
        self.description.check_outputs(logits.shape[1])
        refuse_outputs(self.description.model, int(count_outputs(logits)), len(images))
        return logits.float().cpu().softmax(1)


def open_classifier(config: Config, trust: bool, say: Callable[[str], None] = lambda line: None) -> Classifier:
    """Open a model to predict with.

    Args:
        config: ``trained`` names a checkpoint, a folder with ``config.json``, an ``.onnx`` or a ``.pt2``.
        trust: load a ``.pt2``, which may run code of its author.
        say: called with each line for the user.

    Raises:
        InputError: the file cannot be read, is not trusted, or does not say how images are prepared. Or a flag has no
            effect on it.
    """
    if config.data.data_backend not in (None, "auto", "timm"):
        raise InputError("--data-backend is for data sets, and Pillow decodes the images here: leave it out")
    path = Path(config.trained.checkpoint)
    if path.suffix in (".onnx", ".pt2"):
        if not path.is_file():
            raise InputError(f"no model at {path}")
        _refuse_flags_of_checkpoints(config, path)
        if path.suffix == ".onnx":
            run, entries = load_onnx(path, resolve_device(config.runtime.device))
            return Classifier(Description.from_entries(entries, str(path)).changed(config.data), run)
        return _packaged(config, path, trust)
    return _restored(config, say)


def _refuse_flags_of_checkpoints(config: Config, path: Path) -> None:
    """Raise InputError if a flag would change a program, whose model, size of images and dtype are fixed."""
    given = {
        "--model": config.model.model,
        "--pretrained": config.model.pretrained,
        "--num-classes": config.model.num_classes,
        "--gp": config.model.gp,
        "--model-kwargs": config.model.model_kwargs,
        "--partial": config.model.partial,
        "--img-size": config.data.img_size,
        "--in-chans": config.data.in_chans,
        "--input-size": config.data.input_size,
        "--use-ema": config.trained.use_ema,
        "--amp": config.runtime.amp,
        "--model-dtype": config.runtime.model_dtype,
        "--fast-norm": config.runtime.fast_norm,
    }
    for flag, value in given.items():
        if value:
            raise InputError(f"{flag} is for checkpoints, and {path} is a fixed program: leave it out")


def _packaged(config: Config, path: Path, trust: bool) -> Classifier:
    if not trust:
        raise InputError(
            f"{path} may run code of its author, as PyTorch reads such files with pickle or as a library: "
            "give --trust if you trust the author, or take an .onnx"
        )
    entries, is_compiled = read_entries(path)
    description = Description.from_entries(entries, str(path)).changed(config.data)
    run = load_package(path, is_compiled)
    device = torch.device(entries.get("AOTI_DEVICE_KEY", "cpu"))
    return Classifier(description, lambda images: run(images.to(device)))


def _restored(config: Config, say: Callable[[str], None]) -> Classifier:
    prepare_process(config.runtime)
    found = restored(config, say)
    for note in notes_on_average(found.checkpoint, config.trained.use_ema):
        say(note)
    device = resolve_device(config.runtime.device)
    model: Any = place(found.module, config.runtime, device).eval()

    def run(images: Tensor) -> Tensor:
        with autocast(config.runtime, device):
            logits: Tensor = model(images.to(device))
        return logits

    return Classifier(describe(found, config.runtime.model_dtype or "float32"), run)
