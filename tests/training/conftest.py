import csv

import numpy as np
import pytest
import torch
from configs import config_of
from PIL import Image

from flashkat.cli.main import main

TINY = ["--model", "kat_tiny_patch16_224", "--img-size", 8]
TINY += ["--model-kwargs", "patch_size=4", "embed_dim=16", "depth=1", "num_heads=2"]


def write_images(root, train=8, val=4, val_name="val"):
    """Two classes of 8x8 images that differ in brightness."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), (val_name, val)):
        for name, level in (("dark", 70), ("light", 185)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.normal(level, 20, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Models this small are slower on several threads, by tens where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session", name="write_images")
def _write_images():
    return write_images


@pytest.fixture
def write_image_folders():
    return write_images


@pytest.fixture(scope="session")
def tiny():
    """Flags of a tiny model."""
    return [str(flag) for flag in TINY]


@pytest.fixture
def train(tmp_path, images):
    """Trains a tiny model by the real command, and returns the folder of the run."""

    def run(*flags, data=images, experiment="run"):
        output = tmp_path / "output"
        before = set(output.glob("*"))
        argv = ["train", data, *TINY, "-j", 0, "-b", 4, "--output", output, "--experiment", experiment, *flags]
        assert main([str(argument) for argument in argv]) == 0
        (folder,) = set(output.glob("*")) - before
        return folder

    return run


@pytest.fixture(scope="session")
def training_config():
    """The configuration of ``flashkat train`` with the flags given."""

    def parse(*flags):
        return config_of("data", *flags)

    return parse


@pytest.fixture(scope="session")
def summary_of():
    """The rows of a run's summary, as numbers."""

    def read(folder):
        with (folder / "summary.csv").open(newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]

    return read
