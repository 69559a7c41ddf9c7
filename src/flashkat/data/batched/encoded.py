"""JPEG files that workers read and leave encoded, and what is cut out of each.

The random numbers of crop and flips are timm's, so the cut is the same as without this.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from ...errors import InputError
from ...system.terminal import printable_name
from ..images import as_mode, open_image, read_image, without_warnings
from .batches import DrawnBatch
from .steps import Recipe, Step, UnsupportedError, as_table

__all__ = ["CollateEncoded", "Cut", "EncodedBatch", "EvaluationCut", "Jpeg", "TrainingCut", "read_encoded"]

_RESAMPLING = {
    InterpolationMode.BILINEAR: Image.Resampling.BILINEAR,
    InterpolationMode.BICUBIC: Image.Resampling.BICUBIC,
}

# The bytes that end a JPEG file, and how many may follow them. The data of an image cannot hold them.
_END, _AFTER_END = b"\xff\xd9", 1024


@dataclass
class Jpeg:
    """An encoded image.

    Attributes:
        data: the file's bytes, in uint8.
        name: what messages call it.
        size: (width, height).
    """

    data: np.ndarray
    name: str
    size: tuple[int, int]


def read_encoded(file: IO[bytes], mode: str) -> Jpeg | Image.Image:
    """Read a JPEG file and its size. Decode what is no JPEG, or has other colours than grey or red, green and blue.

    A file that is cut off is decoded too, so that the error comes here.
    """
    data = file.read()
    with without_warnings():
        image = open_image(BytesIO(data))
        if image.format == "JPEG" and image.mode in ("RGB", "L") and _END in data[-_AFTER_END:]:
            return Jpeg(np.frombuffer(data, dtype=np.uint8), printable_name(str(getattr(file, "name", ""))), image.size)
        return as_mode(image, mode)


@dataclass(frozen=True)
class Cut:
    """What becomes of a decoded image: a part of it is resized, flipped, and cut again.

    Attributes:
        box: the part, as (top, left, height, width).
        size: its (height, width) after resizing.
        window: the (top, left) of the result within that.
        resampling: Pillow's BILINEAR or BICUBIC.
        flip_x: exchange left and right.
        flip_y: exchange top and bottom.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    window: tuple[int, int] = (0, 0)
    resampling: Image.Resampling = Image.Resampling.BILINEAR
    flip_x: bool = False
    flip_y: bool = False

    def apply(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        """Return the result (H, W, 3) of ``size`` by Pillow, as timm's transforms give it."""
        top, left, height, width = self.box
        image = image.crop((left, top, left + width, top + height)).resize(self.size[::-1], self.resampling)
        if self.flip_x:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.flip_y:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        top, left = self.window
        return np.asarray(image)[top : top + size[0], left : left + size[1]]

    def numbers(self) -> tuple[int, ...]:
        """Return the cut as eleven numbers: box, whether it is bicubic, the two flips, size, and window."""
        is_bicubic = self.resampling == Image.Resampling.BICUBIC
        return *self.box, is_bicubic, self.flip_x, self.flip_y, *self.size, *self.window

    @classmethod
    def of_numbers(cls, numbers: Sequence[int]) -> "Cut":
        """Return the cut that :meth:`numbers` gave."""
        top, left, height, width, is_bicubic, flip_x, flip_y, rows, columns, y, x = numbers
        resampling = Image.Resampling.BICUBIC if is_bicubic else Image.Resampling.BILINEAR
        return cls((top, left, height, width), (rows, columns), (y, x), resampling, bool(flip_x), bool(flip_y))


Encoded = tuple[Jpeg, Cut] | np.ndarray


class TrainingCut:
    """A data set's transform: draw crop, flips and further steps of an image, and leave them to the GPU.

    Args:
        primary: timm's transform of crop and flips.
        recipe: draws the further steps.

    Raises:
        UnsupportedError: the transform does anything else, or resizes by other ways than bilinear and bicubic.
    """

    def __init__(self, primary: transforms.Compose, recipe: Recipe) -> None:
        self.primary, self.recipe = primary, recipe
        crop, *flips = primary.transforms
        if not isinstance(crop, RandomResizedCropAndInterpolation):
            raise UnsupportedError(f"the crop {type(crop).__name__}")
        self._crop = crop
        several = crop.interpolation if isinstance(crop.interpolation, (tuple, list)) else (crop.interpolation,)
        _check_resampling(several)
        self._flips: list[tuple[str, float]] = [(_flipped_axis(each), each.p) for each in flips]

    def __call__(self, image: Jpeg | Image.Image) -> tuple[Encoded, list[Step]]:
        if not isinstance(image, Jpeg):
            image = self.primary(image)
            return np.asarray(image), self.recipe.draw(image.size)
        crop = self._crop
        # timm only asks for the size.
        box = crop.get_params(Image.new("1", image.size), crop.scale, crop.ratio)
        several = crop.interpolation
        chosen = random.choice(several) if isinstance(several, (tuple, list)) else several
        flips = {name for name, probability in self._flips if torch.rand(1) < probability}
        cut = Cut(box, tuple(crop.size), (0, 0), _RESAMPLING[chosen], "x" in flips, "y" in flips)
        return (image, cut), self.recipe.draw(tuple(crop.size)[::-1])


def _flipped_axis(transform: Any) -> str:
    if isinstance(transform, transforms.RandomHorizontalFlip):
        return "x"
    if isinstance(transform, transforms.RandomVerticalFlip):
        return "y"
    raise UnsupportedError(type(transform).__name__)


def _check_resampling(several: Sequence[Any]) -> None:
    for each in several:
        if each not in _RESAMPLING:
            raise UnsupportedError(f"the interpolation {each}")


class EvaluationCut:
    """A data set's transform for evaluation: where timm resizes and cuts an image, left to the GPU.

    Args:
        transform: timm's transform.

    Raises:
        UnsupportedError: it does more than resize and cut the centre, or pads.
    """

    def __init__(self, transform: transforms.Compose) -> None:
        resize, crop, *rest = transform.transforms
        if not (isinstance(resize, transforms.Resize) and isinstance(crop, transforms.CenterCrop) and len(rest) == 1):
            raise UnsupportedError(f"the crop {type(resize).__name__}")
        _check_resampling([resize.interpolation])
        self._resize, self._crop, self._size = resize, crop, tuple(crop.size)
        if any(have < want for have, want in zip(_least(resize.size), self._size, strict=True)):
            raise UnsupportedError("a --crop-pct above 1")

    def __call__(self, image: Jpeg | Image.Image) -> tuple[Encoded, list[Step]]:
        if not isinstance(image, Jpeg):
            return np.asarray(self._crop(self._resize(image))), []
        width, height = image.size
        size = _resized(height, width, self._resize.size)
        top, left = (round((have - want) / 2.0) for have, want in zip(size, self._size, strict=True))
        return (image, Cut((0, 0, height, width), size, (top, left), _RESAMPLING[self._resize.interpolation])), []


def _least(size: int | Sequence[int]) -> tuple[int, int]:
    """Return the least height and width that torchvision resizes to: of the shorter side, or of both."""
    return _resized(1, 1, size)


def _resized(height: int, width: int, size: int | Sequence[int]) -> tuple[int, int]:
    """Return the height and width that torchvision resizes to: of the shorter side, or of both."""
    if not isinstance(size, int) and len(size) == 2:
        return size[0], size[1]
    shorter = size if isinstance(size, int) else size[0]
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


@dataclass
class EncodedBatch:
    """Images of which some are encoded. timm's prefetcher takes it for a tensor of images.

    Attributes:
        files: the bytes of all encoded images. As a tensor, they come from a worker through shared memory.
        jpegs: name, size and number of bytes of each.
        cuts: what to cut out of each, (N, 11) in int64, see :meth:`Cut.numbers`.
        places: their places in the batch.
        drawn: the other images alone, and the steps of all.
        others: the places of the other images.
        decoded: gives the encoded images, decoded and cut on the GPU; set in the training process.
    """

    files: Tensor
    jpegs: list[tuple[str, tuple[int, int], int]]
    cuts: Tensor
    places: Tensor
    drawn: DrawnBatch
    others: Tensor
    decoded: Callable[[], Tensor] | None = field(default=None, repr=False)

    def pin_memory(self) -> "EncodedBatch":
        """Return a batch whose tensors for the GPU are in pinned memory, as PyTorch's loader asks for."""
        places, others = self.places.pin_memory(), self.others.pin_memory()
        return EncodedBatch(self.files, self.jpegs, self.cuts, places, self.drawn.pin_memory(), others)

    def encoded(self) -> list[Jpeg]:
        """Return the encoded images."""
        files, first, found = self.files.numpy(), 0, []
        for name, size, length in self.jpegs:
            found.append(Jpeg(files[first : first + length], name, size))
            first += length
        return found

    def start(self, decoder: Any) -> None:
        """Let a decoder begin, see :meth:`flashkat.data.batched.dali.Decoder.start`."""
        if self.jpegs:
            self.decoded = decoder.start(self.encoded(), self.cuts.numpy())

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        """Return the augmented images (B, 3, H, W) in uint8 on a GPU."""
        images = self.drawn.images
        if self.jpegs:
            assert self.decoded is not None
            decoded = self.decoded()
            images = self._with_others(decoded) if len(images) else decoded
        return DrawnBatch(images, self.drawn.steps, self.drawn.fill).to(device, non_blocking)

    def _with_others(self, decoded: Tensor) -> Tensor:
        others, device = self.drawn.images, decoded.device
        images = torch.empty(len(decoded) + len(others), *others.shape[1:], dtype=torch.uint8, device=device)
        for places, part in ((self.places, decoded), (self.others, others)):
            images.index_copy_(0, places.to(device, non_blocking=True), part.to(device, non_blocking=True))
        return images


class CollateEncoded:
    """Put the images of :class:`TrainingCut` or :class:`EvaluationCut` and their labels together.

    Args:
        size: height and width of the results.
        fill: see :class:`DrawnBatch`.
    """

    def __init__(self, size: tuple[int, int], fill: tuple[int, ...] = (0, 0, 0)) -> None:
        self.size, self.fill = size, fill

    def __call__(self, batch: Sequence[tuple[Any, int]]) -> tuple[EncodedBatch, Tensor]:
        drawn, labels = zip(*batch, strict=True)
        files, jpegs, cuts, places, images, others = [], [], [], [], [], []
        for place, (image, _) in enumerate(drawn):
            if isinstance(image, tuple):
                jpeg, cut = image
                files.append(jpeg.data)
                jpegs.append((jpeg.name, jpeg.size, len(jpeg.data)))
                cuts.append(cut.numbers())
                places.append(place)
            else:
                images.append(image)
                others.append(place)
        encoded = torch.from_numpy(np.concatenate(files) if files else np.empty(0, dtype=np.uint8))
        decoded = torch.from_numpy(np.stack(images) if images else np.empty((0, *self.size, 3), dtype=np.uint8))
        rest = DrawnBatch(decoded, as_table([each for _, each in drawn]), self.fill)
        at, rest_at = (torch.tensor(each, dtype=torch.int64) for each in (places, others))
        numbers = torch.tensor(cuts, dtype=torch.int64).view(-1, 11)
        return EncodedBatch(encoded, jpegs, numbers, at, rest, rest_at), torch.tensor(labels)


def decode_by_pillow(jpegs: Sequence[Jpeg], cuts: Iterable[Cut], size: tuple[int, int]) -> Tensor:
    """Decode and cut images by Pillow: (N, H, W, 3) in uint8.

    Raises:
        InputError: an image cannot be decoded.
    """
    return torch.from_numpy(np.stack([_decode_by_pillow(*each, size) for each in zip(jpegs, cuts, strict=True)]))


def _decode_by_pillow(jpeg: Jpeg, cut: Cut, size: tuple[int, int]) -> np.ndarray:
    try:
        return cut.apply(read_image(BytesIO(jpeg.data.tobytes()), "RGB"), size)
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise InputError(f"cannot decode the image {jpeg.name}: replace or remove it") from error
