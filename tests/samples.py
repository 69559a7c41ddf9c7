"""Small images of known brightness, and their batches by the package's own loaders."""

import io
import tarfile

import numpy as np
import torch
from configs import config_of, evaluation_loader
from PIL import Image

from flashkat.data import datasets

CPU = torch.device("cpu")
CONFIG = {
    **{"input_size": (3, 8, 8), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"},
    **{"mean": (0.0,) * 3, "std": (1.0,) * 3},
}
NORMALISING = {**CONFIG, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}

# Brightness and class of the evaluation images of every data set in data/conftest.py.
CLASSES = ("dark", "light")
EXPECTED = [(0, 0), (10, 0), (20, 0), (100, 1), (110, 1), (120, 1)]
SHARDS = ["--dataset", "wds/", "--num-classes", 2, "--train-split", "train-{0000..0001}.tar|16"]
SHARDS += ["--val-split", "validation-{0000..0001}.tar|6"]


def args_of(*argv):
    return config_of("-j", 0, "-b", 4, *argv)


def open_dataset(config, split, **more):
    return datasets.open_dataset(config.data, split, num_classes=config.model.num_classes, **more)


def picture(level):
    return Image.fromarray(np.full((8, 8, 3), level, dtype=np.uint8))


def as_bytes(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def as_jpeg(width, height, mode="RGB", format="JPEG"):
    """Return a file of a smooth coloured image, the same for the same width."""
    generator = np.random.default_rng(width)
    few = Image.fromarray(generator.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8))
    file = io.BytesIO()
    few.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file, format)
    return file.getvalue()


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def contents(args, split="validation", **more):
    """Sorted pairs of brightness and class."""
    loader = evaluation_loader(open_dataset(args, split, **more), CONFIG, args, CPU)
    pairs = [
        (round(float(image.mean()) * 255), int(label))
        for images, target in loader
        for image, label in zip(images, target, strict=True)
    ]
    return sorted(pairs)


def write_classes(folder, classes, count=3, seed=0):
    """Class folders of 8x8 images; returns path -> pixels."""
    generator = np.random.default_rng(seed)
    pixels = {}
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            path = folder / name / f"{number}.png"
            pixels[path] = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels[path]).save(path)
    return pixels


def normalised(pixels):
    values = (pixels / 255 - np.array(NORMALISING["mean"])) / np.array(NORMALISING["std"])
    return torch.tensor(values.transpose(2, 0, 1), dtype=torch.float32)


def loader_of(dataset, config, batch_size, workers):
    return evaluation_loader(dataset, config, args_of("data", "-j", workers), CPU, batch_size)
