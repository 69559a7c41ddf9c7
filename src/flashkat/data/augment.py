"""Adapt timm's augmentation to every mode of images and every Pillow."""

from typing import Any

from PIL import Image
from timm.data.auto_augment import AugmentOp, posterize

from ..errors import InputError
from .config import Augmentation, Data
from .images import image_mode

__all__ = ["check_mode", "mend_posterize", "takes_policies"]


def takes_policies(mode: str) -> bool:
    """Return whether timm's policies, as RandAugment, and grey copies work on images of a mode of Pillow."""
    return mode not in ("LA", "RGBA", "CMYK", "YCbCr", "HSV")


def check_mode(data: Data, augmentation: Augmentation) -> None:
    """Raise InputError for a mode of images that is unknown, or that the augmentation does not take."""
    mode = image_mode(data)
    for flag, is_given in (("--aa", augmentation.aa), ("--grayscale-prob", augmentation.grayscale_prob)):
        if is_given and not augmentation.no_aug and not takes_policies(mode):
            raise InputError(f"{flag} works on images in the modes RGB and L, not {mode}: leave it out")


def mend_posterize(transform: Any) -> None:
    """Let the posterising of a transform, or of several, take 0 bits, which timm's policies draw.

    Up to Pillow 12.0 an image of 0 bits was black. Pillow 13.0 raises an error. The random numbers stay the same.
    """
    if isinstance(transform, AugmentOp):
        if transform.aug_fn is posterize:
            transform.aug_fn = _posterize
    elif isinstance(transform, (list, tuple)):
        for each in transform:
            mend_posterize(each)
    else:
        # The attributes of compositions, of RandAugment and AugMix, and of AutoAugment.
        for name in ("transforms", "ops", "policy"):
            mend_posterize(getattr(transform, name, ()))


def _posterize(image: Image.Image, bits_to_keep: int, **unused: Any) -> Image.Image:
    if bits_to_keep > 0:
        return posterize(image, bits_to_keep)
    return Image.new(image.mode, image.size)
