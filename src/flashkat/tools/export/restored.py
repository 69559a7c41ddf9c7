"""The model that the command line names: of a checkpoint, or of a folder in the Hugging Face layout."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...checkpoints import read
from ...evaluation import Config, Trained
from ...evaluation.restore import Restored, restore

__all__ = ["check_whole", "restored"]


def restored(config: Config, say: Callable[[str], None] = lambda line: None) -> Restored:
    """Make the model of a checkpoint, or of a folder with ``config.json``.

    Args:
        config: ``trained`` names the file or the folder.
        say: called with each line for the user.

    Raises:
        InputError: it cannot be read, or does not fit the model.
    """
    place = Path(config.trained.checkpoint)
    if place.is_dir() and (place / "config.json").is_file():
        model = replace(config.model, model=f"local-dir:{place}", pretrained=True)
        found = restore(model, Trained(), config.data, say)
        data, channels = found.data, found.module.pretrained_cfg["input_size"][0]
        if not data.in_chans and not data.input_size:
            data = replace(data, in_chans=channels)
        if not data.input_img_mode and data.channels == channels:  # timm does not read it
            configuration = json.loads((place / "config.json").read_text(encoding="utf-8"))
            data = replace(data, input_img_mode=configuration.get("input_img_mode"))
        return replace(found, data=data)
    return restore(config.model, config.trained, config.data, say)


def check_whole(config: Config) -> None:
    """Raise InputError if weights do not fit the model that their checkpoint names, or that the command line does.

    A checkpoint that does not say how its model is made is not checked.

    Args:
        config: ``trained`` names the checkpoint.
    """
    if config.model.model or _says_its_model(read(config.trained.checkpoint)):
        restore(config.model, config.trained, config.data)


def _says_its_model(checkpoint: dict[str, Any]) -> bool:
    arguments = checkpoint.get("args")
    return bool(checkpoint.get("arch")) and isinstance(arguments, dict) and "model_kwargs" in arguments
