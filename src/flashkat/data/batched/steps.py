"""The steps of an augmentation: draw them as timm does, and keep them as numbers in place of applying them.

timm's own transforms run on a stand-in for the image. So they draw the same random numbers in the same order.
"""

import copy
import math
import random
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.auto_augment import AugmentOp, AutoAugment, RandAugment
from torchvision import transforms

__all__ = ["NUMBERS", "Operation", "Recipe", "Step", "UnsupportedError", "as_table"]


class Operation(IntEnum):
    """What a step does to an image, as Pillow and timm define it.

    Those from INVERT to EQUALIZE map each channel's values by a table. AUTOCONTRAST and EQUALIZE take theirs from the
    image's histograms, and CONTRAST from its mean.
    """

    NOTHING = 0
    INVERT = 1
    POSTERIZE = 2
    SOLARIZE = 3
    SOLARIZE_ADD = 4
    BRIGHTNESS = 5
    CONTRAST = 6
    AUTOCONTRAST = 7
    EQUALIZE = 8
    COLOR = 9
    SHARPNESS = 10
    BILINEAR = 11
    BICUBIC = 12


NUMBERS = 6
"""Numbers of a step: a factor, a threshold, a count of bits, or the six coefficients of an affine map."""

Step = tuple[Operation, tuple[float, ...]]


class UnsupportedError(Exception):
    """A transform that cannot be drawn as steps. The message names it."""


class _StandIn:
    """Stands in for an image of (width, height), and collects the steps."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.steps: list[Step] = []


_Draw = Callable[[_StandIn], object]


class Recipe:
    """What timm does to an image after crop and flips.

    Args:
        transforms: instances of RandAugment, AutoAugment, ColorJitter without hue, and RandomGrayscale.

    Raises:
        UnsupportedError: for any other, and for operations in them that are not among :class:`Operation`.

    Attributes:
        fill: the colour (red, green, blue) of places outside the image, after an affine map.
    """

    def __init__(self, transforms: Iterable[Any]) -> None:
        transforms = list(transforms)
        self._draws: list[_Draw] = [_drawing(transform) for transform in transforms]
        fills = {each.kwargs["fillcolor"] for transform in transforms for each in _operations(transform)}
        if len(fills) > 1:
            raise UnsupportedError("several colours to fill with")
        self.fill: tuple[int, ...] = fills.pop() if fills else (0, 0, 0)

    def draw(self, size: tuple[int, int]) -> list[Step]:
        """Draw the steps of one image from the random states of Python, NumPy and PyTorch.

        Args:
            size: width and height of the image.
        """
        stand_in = _StandIn(size)
        for draw in self._draws:
            draw(stand_in)
        return stand_in.steps


def as_table(images: Sequence[Sequence[Step]]) -> torch.Tensor:
    """Return the steps of a batch as numbers (L, B, 1 + NUMBERS) in float64: operation and numbers of each step.

    L is the most steps of an image. Others do nothing at their end.
    """
    table = np.zeros((max(map(len, images), default=0), len(images), 1 + NUMBERS))
    for index, steps in enumerate(images):
        for number, (operation, numbers) in enumerate(steps):
            table[number, index, : 1 + len(numbers)] = operation, *numbers
    return torch.from_numpy(table)


def _drawing(transform: Any) -> _Draw:
    if isinstance(transform, (RandAugment, AutoAugment)):
        return _recording(transform)
    if isinstance(transform, transforms.ColorJitter):
        if transform.hue is not None:
            raise UnsupportedError("colour jitter of the hue")
        return _Jitter(transform)
    if isinstance(transform, transforms.RandomGrayscale):
        return _Grayscale(transform.p)
    raise UnsupportedError(type(transform).__name__)


def _recording(transform: RandAugment | AutoAugment) -> Any:
    """Return a copy of a transform whose operations record themselves."""
    recording = copy.deepcopy(transform)
    for operation in _operations(recording):
        _record(operation)
    return recording


def _operations(transform: Any) -> list[AugmentOp]:
    """Return the operations that RandAugment and AutoAugment draw from."""
    if isinstance(transform, RandAugment):
        return list(transform.ops)
    return [each for group in transform.policy for each in group] if isinstance(transform, AutoAugment) else []


def _record(operation: AugmentOp) -> None:
    known = _STEPS.get(operation.name.removesuffix("Increasing").removesuffix("Original"))
    if known is None:
        raise UnsupportedError(operation.name)
    resampling = operation.kwargs["resample"]
    resamplings = resampling if isinstance(resampling, (list, tuple)) else [resampling]
    if known in _MAPS.values() and not set(resamplings) <= set(_RESAMPLING):
        raise UnsupportedError(f"{operation.name} with another interpolation than bilinear and bicubic")
    operation.aug_fn = known


class _Jitter:
    """torchvision's ColorJitter without hue."""

    def __init__(self, jitter: transforms.ColorJitter) -> None:
        self._ranges = jitter.brightness, jitter.contrast, jitter.saturation, None

    def __call__(self, stand_in: _StandIn) -> None:
        order, *factors, _ = transforms.ColorJitter.get_params(*self._ranges)
        for index in order.tolist():
            # The hue is drawn too, and None.
            if index < len(factors) and factors[index] is not None:
                operation = (Operation.BRIGHTNESS, Operation.CONTRAST, Operation.COLOR)[index]
                stand_in.steps.append((operation, (factors[index],)))


class _Grayscale:
    """torchvision's RandomGrayscale."""

    def __init__(self, probability: float) -> None:
        self._probability = probability

    def __call__(self, stand_in: _StandIn) -> None:
        if torch.rand(1) < self._probability:
            stand_in.steps.append((Operation.COLOR, (0.0,)))


class _Plain:
    """An operation that takes timm's arguments as they are."""

    def __init__(self, operation: Operation) -> None:
        self._operation = operation

    def __call__(self, stand_in: _StandIn, *arguments: float, **unused: Any) -> _StandIn:
        stand_in.steps.append((self._operation, arguments))
        return stand_in


def _desaturate(stand_in: _StandIn, factor: float, **unused: Any) -> _StandIn:
    stand_in.steps.append((Operation.COLOR, (min(1.0, max(0.0, 1.0 - factor)),)))
    return stand_in


_RESAMPLING = {
    Image.Resampling.BILINEAR: Operation.BILINEAR,
    Image.Resampling.BICUBIC: Operation.BICUBIC,
}


class _Affine:
    """An affine map from places of the result to places of the image: (x, y) to (a x + b y + c, d x + e y + f)."""

    def __init__(self, coefficients: Callable[[float, int, int], tuple[float, ...] | None]) -> None:
        self._coefficients = coefficients

    def __call__(self, stand_in: _StandIn, argument: float, *, resample: Any, **unused: Any) -> _StandIn:
        coefficients = self._coefficients(argument, *stand_in.size)
        # timm draws the interpolation whether it is needed or not.
        chosen = random.choice(resample) if isinstance(resample, (list, tuple)) else resample
        if coefficients is not None:
            stand_in.steps.append((_RESAMPLING[chosen], coefficients))
        return stand_in


def _rotation(degrees: float, width: int, height: int) -> tuple[float, ...] | None:
    """Return the map of Pillow's ``Image.rotate``, which rounds its coefficients; None does not rotate."""
    if degrees % 360 == 0:
        return None
    angle = -math.radians(degrees % 360)
    a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
    d, e = round(-math.sin(angle), 15), round(math.cos(angle), 15)
    x, y = width / 2, height / 2
    return a, b, a * -x + b * -y + 0.0 + x, d, e, d * -x + e * -y + 0.0 + y


def _shear_x(factor: float, width: int, height: int) -> tuple[float, ...]:
    return 1, factor, 0, 0, 1, 0


def _shear_y(factor: float, width: int, height: int) -> tuple[float, ...]:
    return 1, 0, 0, factor, 1, 0


def _translate_x(pixels: float, width: int, height: int) -> tuple[float, ...]:
    return 1, 0, pixels, 0, 1, 0


def _translate_y(pixels: float, width: int, height: int) -> tuple[float, ...]:
    return 1, 0, 0, 0, 1, pixels


def _translate_x_by_share(share: float, width: int, height: int) -> tuple[float, ...]:
    return _translate_x(share * width, width, height)


def _translate_y_by_share(share: float, width: int, height: int) -> tuple[float, ...]:
    return _translate_y(share * height, width, height)


# Named functions, as workers may receive them pickled.
_MAPS: dict[str, Callable[..., Any]] = {
    "Rotate": _Affine(_rotation),
    "ShearX": _Affine(_shear_x),
    "ShearY": _Affine(_shear_y),
    "TranslateX": _Affine(_translate_x),
    "TranslateY": _Affine(_translate_y),
    "TranslateXRel": _Affine(_translate_x_by_share),
    "TranslateYRel": _Affine(_translate_y_by_share),
}
# By timm's names, without the endings of variants that draw their arguments otherwise.
_STEPS: dict[str, Callable[..., Any]] = {
    **_MAPS,
    "AutoContrast": _Plain(Operation.AUTOCONTRAST),
    "Equalize": _Plain(Operation.EQUALIZE),
    "Invert": _Plain(Operation.INVERT),
    "Posterize": _Plain(Operation.POSTERIZE),
    "Solarize": _Plain(Operation.SOLARIZE),
    "SolarizeAdd": _Plain(Operation.SOLARIZE_ADD),
    "Color": _Plain(Operation.COLOR),
    "Contrast": _Plain(Operation.CONTRAST),
    "Brightness": _Plain(Operation.BRIGHTNESS),
    "Sharpness": _Plain(Operation.SHARPNESS),
    "Desaturate": _desaturate,
}
assert set(_STEPS) <= set(auto_augment.NAME_TO_OP)
