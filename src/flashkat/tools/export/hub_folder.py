"""A folder in the Hugging Face layout, which ``timm.create_model("local-dir:...")`` loads: ``--to hf``."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from timm.models import save_for_hf

from ...checkpoints.load import notes_on_average
from ...defaults import SOURCES
from ...errors import InputError, explain, is_installed, quiet
from ...evaluation import Config
from ...evaluation.restore import Restored
from ...system.files import new_folder
from ...system.terminal import printable_name
from ..plot import draw_rationals
from .description import Description, describe
from .restored import restored

__all__ = ["push", "write_folder"]

_FIGURE = "functions.png"
_NAMED = 10


def write_folder(
    config: Config,
    output: str,
    license: str,
    repository: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the model of a checkpoint as a folder with configuration, weights and model card.

    Args:
        config: ``trained`` names the checkpoint.
        output: the folder to make.
        license: the weights' licence, as an identifier of the Hugging Face Hub.
        repository: where the folder will be uploaded to, for the model card; None leaves a placeholder.
        say: called with each line for the user.

    Returns:
        The folder.

    Raises:
        InputError: the checkpoint cannot be read, timm cannot make its model again, or the folder cannot be written.
    """
    found = restored(config, say)
    for note in notes_on_average(found.checkpoint, config.trained.use_ema):
        say(note)
    description, folder = describe(found), Path(output)
    with new_folder(folder) as staging:
        with explain(f"cannot write {folder}"), quiet("timm"):
            _save(found, description, staging)
        with_figure = _draw(found, description, staging / _FIGURE, say)
        card = _card(found, description, repository or f"USER/{folder.resolve().name}", license, with_figure)
        (staging / "README.md").write_text(card, encoding="utf-8")
        for file in staging.iterdir():  # safetensors lets only the owner read its file
            shutil.copymode(staging / "README.md", file)
    return folder


def push(folder: Path, name: str) -> str:
    """Upload a folder to a repository on the Hugging Face Hub, and return its address.

    Raises:
        InputError: the Hub cannot be reached, or refuses.
    """
    hint = "; log in with hf auth login, or upload the folder later"
    with explain(f"cannot push {folder} to {name}", hint), quiet("huggingface_hub"):
        api = huggingface_hub.HfApi()
        repository = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=str(folder), commit_message="Upload with flashkat")
    return str(repository)


def _save(found: Restored, description: Description, folder: Path) -> None:
    model = found.module
    configuration: dict[str, Any] = dict(model.pretrained_cfg)
    images = {
        "input_size": description.input_size,
        "mean": description.mean,
        "std": description.std,
        "crop_pct": description.crop_pct,
        "crop_mode": description.crop_mode,
        "interpolation": description.interpolation,
    }
    is_named = not found.name.startswith(SOURCES)
    architecture = found.name.partition(".")[0] if is_named else configuration["architecture"]
    # A size and a crop for tests are those of the published weights.
    for name in ("test_input_size", "test_crop_pct", "label_names", "label_descriptions"):
        configuration.pop(name, None)
    model.pretrained_cfg = {
        **configuration,
        **images,
        "architecture": architecture,
        "num_classes": model.num_classes,
        "tag": "",
    }
    labels = {"label_names": list(description.classes)} if description.classes else {}
    arguments = {name: value for name, value in found.arguments.items() if name != "num_classes"}
    save_for_hf(
        model,
        str(folder),
        # timm ignores the mode. flashkat predict and export read it.
        model_config={"num_classes": model.num_classes, **labels, "input_img_mode": description.image_mode},
        model_args=arguments,
        safe_serialization=True,
    )


def _draw(found: Restored, description: Description, path: Path, say: Callable[[str], None]) -> bool:
    """Draw the functions that the model has learned, and return whether it has such."""
    if not is_installed("matplotlib"):
        say("The model card has no figure: pip install matplotlib for that")
        return False
    try:
        figure = draw_rationals(found.module, title=f"{description.model}: learned rationals")
    except InputError:  # a ViT has none
        return False
    figure.savefig(path, dpi=120)
    return True


def _card(found: Restored, description: Description, repository: str, license: str, with_figure: bool) -> str:
    head = {
        "library_name": "timm",
        "license": license,
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "flashkat", "kolmogorov-arnold"],
    }
    checkpoint = found.checkpoint
    parameters = sum(parameter.numel() for parameter in found.module.parameters())
    channels, height, width = description.input_size
    shown = ", ".join(f"`{printable_name(each)}`" for each in description.classes[:_NAMED])
    more = len(description.classes) - _NAMED
    arguments = checkpoint.get("args")
    measured = arguments.get("eval_metric") if isinstance(arguments, dict) else None
    metric, epoch = checkpoint.get("metric"), checkpoint.get("epoch")
    rows = [
        ("model", f"`{description.model}`"),
        ("parameters", f"{parameters:,}"),
        ("images", f"{channels} x {height} x {width}, {description.interpolation}, crop {description.crop_pct:g}"),
        ("classes", f"{found.module.num_classes:,}" + (f": {shown}" if shown else "") + (", ..." if more > 0 else "")),
    ]
    if isinstance(epoch, int):
        rows.append(("epochs", str(epoch + 1)))
    if isinstance(metric, (int, float)):
        rows.append((f"validation {measured if isinstance(measured, str) else 'metric'}", f"{metric:g}"))
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        f"# {repository.rpartition('/')[2]}",
        "",
        f"A `{description.model}` that classifies images. It was exported with "
        "[FlashKAT](https://github.com/flashkat/flashkat).",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in rows),
        "",
        *(["## Learned functions", "", f"![A line for each group of channels]({_FIGURE})", ""] if with_figure else []),
        "## Use",
        "",
        "```python",
        "import flashkat  # registers the architecture",
        "import timm",
        "",
        f"model = timm.create_model({json.dumps('hf-hub:' + repository)}, pretrained=True).eval()",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        "```",
        "",
        "From a copy of this folder, the name is `local-dir:` and its path.",
        "",
    ]
    return "\n".join(lines)
