"""Image files: which formats are read, and how their pixels become 8 bits per channel.

Images are not turned by their EXIF orientation, as in timm.
"""

import contextlib
import warnings
from collections.abc import Iterator, Set
from functools import cache
from typing import IO

import numpy as np
from PIL import Image, ImageMode

from ..errors import InputError
from .config import Data

__all__ = ["as_mode", "formats", "image_mode", "image_suffixes", "open_image", "read_image", "without_warnings"]

# Pillow only identifies these, or runs another program to read them (EPS: Ghostscript).
_UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

# Models see 8 bits per channel. Images in these modes become grey.
_GREY_BY_RANGE = ("1", "F", "I", "I;16", "I;16B", "I;16L", "I;16N")
_MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", *_GREY_BY_RANGE)
# Pillow may open 16-bit files of these formats with 32 bits.
_SIXTEEN_BITS = ("PNG", "PPM")
_DEFAULT_MODES = {1: "L", 3: "RGB"}
_MODES_TO_ASK_FOR = {2: "LA", 4: "RGBA"}


@cache
def formats() -> tuple[str, ...]:
    """Return the formats that :func:`read_image` tries, in Pillow's order."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _UNREADABLE)


@cache
def image_suffixes() -> Set[str]:
    """Return the suffixes of files that count as images, in lower case with the dot."""
    readable = {*formats(), "MPO"}  # MPO is opened as JPEG
    return {suffix for suffix, name in Image.registered_extensions().items() if name in readable}


def image_mode(data: Data) -> str:
    """Return Pillow's mode of a data set's images.

    Raises:
        InputError: the mode is unknown, or has other channels than the model takes.
    """
    channels, mode = data.channels, data.input_img_mode or _DEFAULT_MODES.get(data.channels)
    if mode is None:
        instead = _MODES_TO_ASK_FOR.get(channels)
        hint = f"give --input-img-mode {instead}" if instead else "no mode of Pillow has as many"
        raise InputError(f"images have 3 channels by default, not the {channels} of --in-chans: {hint}")
    if mode not in _MODES:
        raise InputError(f"no --input-img-mode {mode!r:.40}: give {', '.join(_MODES)}")
    found = len(ImageMode.getmode(mode).bands)
    if found != channels:
        counted = f"{found} channel{'' if found == 1 else 's'}"
        raise InputError(f"--input-img-mode {mode} has {counted}, the model takes {channels}: give --in-chans {found}")
    return mode


def open_image(file: IO[bytes]) -> Image.Image:
    """Open an image file, which is decoded later, in one of the formats that are read."""
    return Image.open(file, formats=formats())


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silence Pillow, which warns of EXIF data, which is not used, and of large images, which are decoded whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_image(file: IO[bytes], mode: str) -> Image.Image:
    """Decode an image file, of animations the first picture, to one of Pillow's modes."""
    with without_warnings():
        return as_mode(open_image(file), mode)


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to a mode with 8 bits per channel, in place of a deeper mode to grey.

    Pillow itself clips 16-bit and float images at 255.
    """
    if image.mode in _GREY_BY_RANGE and image.mode != "1":
        image = Image.fromarray(_eight_bits(np.asarray(image), by_range=image.format not in _SIXTEEN_BITS))
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        # Pillow warns of the direct way. The colours are the same.
        image = image.convert("RGBA")
    elif image.mode == "LAB":
        # Pillow converts it to no other mode.
        image = image.convert("RGB")
    image = image.convert("L" if mode in _GREY_BY_RANGE and mode != "1" else mode)
    return image.convert("L") if mode == "1" else image


def _eight_bits(pixels: np.ndarray, by_range: bool) -> np.ndarray:
    """Scale pixels to 8 bits, from 16 bits or from the smallest usual range that holds them.

    Args:
        pixels: integers of 16 or 32 bits, or floats.
        by_range: whether 32-bit integers up to 255 are 8-bit values. Otherwise all integers are 16-bit values.

    Raises:
        ValueError: there are larger numbers.
    """
    if pixels.dtype.kind == "f":
        pixels = np.nan_to_num(pixels, nan=0.0, posinf=np.inf)
    highest = pixels.max(initial=0)
    if highest > 65535:
        raise ValueError(f"it has pixels of {highest:g}, more than 16 bits hold")
    pixels = pixels.clip(0)
    if pixels.dtype.kind != "f":
        if by_range and pixels.dtype.itemsize == 4 and highest <= 255:
            return pixels.astype(np.uint8)
        # The high byte is exact for 8 bits that were multiplied by 256 or by 257.
        return (pixels >> 8).astype(np.uint8)
    scale = 255 if highest <= 1 else 1 if highest <= 255 else 1 / 257
    return (pixels * scale).round().astype(np.uint8)
