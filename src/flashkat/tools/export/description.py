"""What a program needs beside the graph: class names, and how its images are prepared."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from timm.data import ImageNetInfo, create_transform
from torch import nn

from ...data.config import Data, data_config
from ...data.images import image_mode
from ...data.scan import read_class_map
from ...defaults import INTERPOLATIONS, SOURCES
from ...errors import InputError, explain
from ...evaluation.restore import Restored
from ...models.architecture import check_images

__all__ = ["Description", "describe"]

_IMAGENET = 1000
_DTYPES = ("float32", "float16", "bfloat16")
# Characters of an entry. A million class names of 20 characters need as many.
_LONGEST = 2 * 10**7


@dataclass(frozen=True, kw_only=True)
class Description:
    """The classes of a model, and how its images are prepared.

    Attributes:
        model: its name in timm's registry.
        classes: names of the outputs, in their order; empty where they are unknown.
        input_size: channels, height and width of an image.
        mean: subtracted from pixels in [0, 1], for each channel.
        std: divides them then.
        crop_pct: share of the resized side that the crop keeps.
        crop_mode: "center", "squash" or "border".
        interpolation: how images are resized.
        image_mode: Pillow's mode of images.
        dtype: "float32", "float16" or "bfloat16", of the images as the model takes them.
    """

    model: str
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str
    interpolation: str
    image_mode: str
    dtype: str = "float32"

    def entries(self) -> dict[str, str]:
        """Return each attribute as JSON, by its name: the metadata of an exported program."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_entries(cls, entries: Mapping[str, str], source: str) -> "Description":
        """Read the metadata of an exported program, whose author may be a stranger.

        Args:
            entries: as from :meth:`entries`; others are ignored.
            source: the file, for errors.

        Raises:
            InputError: an entry is missing, or is not what this package writes.
        """
        names = list(cls.__dataclass_fields__)
        missing = [name for name in names if name not in entries]
        if missing:
            raise InputError(
                f"{source} does not say how its images are prepared, it has no {missing[0]}: write it with "
                "flashkat export"
            )
        with explain(f"cannot read the metadata of {source}"):
            values = {name: json.loads(entries[name][:_LONGEST]) for name in names}
        check_images(
            {key: values[key] for key in ("input_size", "crop_pct", "crop_mode", "mean", "std", "interpolation")},
            source,
        )
        channels = values["input_size"][0]
        lists = {name: values[name] for name in ("mean", "std")}
        wrong = [name for name in ("model", "image_mode") if not isinstance(values[name], str)]
        wrong += [name for name, each in lists.items() if not isinstance(each, list) or len(each) != channels]
        wrong += ["interpolation"] if values["interpolation"] not in INTERPOLATIONS else []
        wrong += ["dtype"] if values["dtype"] not in _DTYPES else []
        classes = values["classes"]
        wrong += ["classes"] if not isinstance(classes, list) or not all(isinstance(n, str) for n in classes) else []
        if wrong:
            raise InputError(f"{source} has a {wrong[0]} that flashkat export does not write: export it again")
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)

    def transform(self) -> Callable[[Any], Any]:
        """Return what turns a Pillow image into a (channels, height, width) tensor, as in an evaluation."""
        transform: Callable[[Any], Any] = create_transform(
            self.input_size,
            is_training=False,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            interpolation=self.interpolation,
        )
        return transform

    def changed(self, data: Data) -> "Description":
        """Return the description with the images' settings and the class map of ``data``, but its own size.

        Raises:
            InputError: a setting does not fit the channels of the images, or the class map cannot be read.
        """
        module: Any = nn.Module()
        module.pretrained_cfg = asdict(self)
        data = replace(data, input_size=self.input_size, input_img_mode=data.input_img_mode or self.image_mode)
        return replace(self, **_images(module, data, self.model), classes=_mapped(data) or self.classes)

    def name(self, index: int) -> str:
        """Return the name of an output."""
        return self.classes[index] if index < len(self.classes) else str(index)

    def check_outputs(self, outputs: int) -> None:
        """Raise InputError if the class names are not as many as the model's outputs."""
        if self.classes and len(self.classes) != outputs:
            raise InputError(
                f"{self.model} has {outputs} outputs, and {len(self.classes)} class names: give a --class-map with a "
                "name for each"
            )


def describe(found: Restored, dtype: str = "float32") -> Description:
    """Describe the model of a checkpoint.

    Class names are those of ``class_map``, else of the training data. Outputs beyond these have their number for a
    name. A model with 1000 outputs and no names has ImageNet's.

    Args:
        found: the model with its weights.
        dtype: dtype of its images.

    Raises:
        InputError: the settings of images do not fit the model, or its class names are none.
    """
    outputs = found.module.num_classes
    configuration = getattr(found.module, "pretrained_cfg", None) or {}
    names = configuration.get("label_names")
    if names and not (isinstance(names, (list, tuple)) and all(isinstance(each, str) for each in names)):
        raise InputError(f"label_names of {found.name} has to be a list of names, not {names!r:.80}: correct it")
    trained = found.checkpoint.get("classes") or []
    classes = [*trained, *map(str, range(len(trained), outputs))] if trained else names or []
    if len(classes) != outputs:
        classes = ImageNetInfo().label_descriptions() if outputs == _IMAGENET and not classes else []
    description = Description(
        # A folder's name means nothing elsewhere.
        model=configuration["architecture"] if found.name.startswith(SOURCES) else found.name,
        classes=_mapped(found.data) or tuple(classes),
        dtype=dtype,
        **_images(found.module, found.data, found.name),
    )
    description.check_outputs(outputs)
    return description


def _mapped(data: Data) -> tuple[str, ...]:
    """Return the class names of a class map; none without one."""
    return tuple(read_class_map(data.class_map)) if data.class_map else ()


def _images(module: nn.Module, data: Data, name: str) -> dict[str, Any]:
    """Return how images are prepared for a model, as attributes of a description."""
    images = data_config(module, data, name)
    return {
        "input_size": tuple(images["input_size"]),
        "mean": tuple(map(float, images["mean"])),
        "std": tuple(map(float, images["std"])),
        "crop_pct": float(images["crop_pct"]),
        "crop_mode": images["crop_mode"],
        "interpolation": images["interpolation"],
        "image_mode": image_mode(data),
    }
