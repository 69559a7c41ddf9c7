"""The model of a checkpoint, with samples of what its rationals see."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch import Tensor, nn

from ...checkpoints.load import notes_on_average
from ...data.config import data_config
from ...data.datasets import open_dataset
from ...data.loaders import evaluation_loader
from ...errors import InputError
from ...evaluation import Config
from ...evaluation.restore import restore
from ...nn.learned.inputs import sampled_inputs
from ...nn.learned.rationals import Learned, learned
from ...system.device import place, resolve_device

__all__ = ["Subject", "open_subject"]

_BATCHES = 4


@dataclass(frozen=True)
class Subject:
    """A trained model to look at.

    Attributes:
        model: the model, on the CPU.
        name: its name in timm's registry.
        checkpoint: all entries of its file.
        functions: what its rationals have learned, by module name.
        inputs: samples of what the rationals see, (groups, samples), by module name; empty without images.
    """

    model: nn.Module
    name: str
    checkpoint: dict[str, Any]
    functions: dict[str, Learned]
    inputs: dict[str, Tensor] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The words above a picture."""
        epoch = self.checkpoint.get("epoch")
        return f"{self.name}: learned rationals" + (f" after epoch {epoch + 1}" if isinstance(epoch, int) else "")


def open_subject(config: Config, say: Callable[[str], None]) -> Subject:
    """Make the model of a checkpoint, and run some images through it if there are any.

    Args:
        config: ``trained`` names the checkpoint, ``data.data_dir`` the images, if any.
        say: called with each line for the user.

    Raises:
        InputError: the checkpoint or the data cannot be used, or the model has no rationals.
    """
    found = restore(config.model, config.trained, config.data, say)
    model, data, runtime = found.module, found.data, config.runtime
    for note in notes_on_average(found.checkpoint, config.trained.use_ema):
        say(note)
    functions = learned(model)
    if not functions:
        raise InputError(
            f"{found.name} has no rationals to draw or inspect: give a KAT, or a model with GroupRational modules"
        )
    inputs: dict[str, Tensor] = {}
    if data.data_dir:
        images = data_config(model, data, found.name)
        device = resolve_device(runtime.device)
        dataset = open_dataset(data, data.val_split)
        for note in dataset.notes:
            say(note)
        # The first images of a folder are of one class.
        loader = evaluation_loader(dataset, images, data, runtime, device, most=_BATCHES * data.batch_size)
        batches = (images for images, _ in islice(loader, _BATCHES))
        inputs = sampled_inputs(place(model, runtime, device), batches)
    return Subject(model.cpu(), found.name, found.checkpoint, functions, inputs)
