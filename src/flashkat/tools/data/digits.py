"""Write scikit-learn's handwritten digits as image files in the ImageNet layout: ``flashkat data digits``."""

from pathlib import Path

from ...errors import require
from ...system.files import new_folder

__all__ = ["write_digits"]

_HELD_OUT = 0.2
_SEED = 0


def write_digits(folder: str | Path) -> dict[str, int]:
    """Write the 1,797 digits as ``folder/{train,val}/{0..9}/*.png``, 8 x 8 pixels, 8-bit grey.

    The split is fixed and stratified: a fifth of every digit's images is held out. A file's number is its index in
    the original data (Alpaydin & Kaynak, UCI, 1998). After an error no file is left behind.

    Args:
        folder: a new or empty folder.

    Returns:
        The number of images in each split.

    Raises:
        InputError: the folder is not empty, or cannot be written.
    """
    require("sklearn")
    # Before the folder, as a signal during an import ends the process at once.
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    numbers = np.arange(len(digits.target))
    train, val = train_test_split(numbers, test_size=_HELD_OUT, stratify=digits.target, random_state=_SEED)
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    with new_folder(Path(folder).resolve()) as staging:
        for split, chosen in (("train", train), ("val", val)):
            for number in chosen:
                path = staging / split / str(digits.target[number]) / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[number]).save(path)
    return {"train": len(train), "val": len(val)}
