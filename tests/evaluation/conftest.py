"""A run to evaluate, and the command that does."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image

from flashkat.cli.main import main

LEVELS = {"dark": 30, "light": 225, "middle": 128}
# Not timm's own, so that they have to come from the checkpoint.
PROCESSING = ["--crop-pct", 1, "--interpolation", "bilinear", "--mean", 0.5, 0.4, 0.3, "--std", 0.2, 0.3, 0.4]


def run(*argv):
    return main([str(argument) for argument in argv])


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Three classes of a brightness each, with a third of the evaluation images in a wrong folder."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    classes = list(LEVELS)
    for split, count in (("train", 8), ("val", 9)):
        for index, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                shown = classes[(index + 1) % 3] if split == "val" and number % 3 == 0 else name
                pixels = generator.normal(LEVELS[shown], 15, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def trained(images, tmp_path_factory):
    """The folder of a run with averaged weights."""
    output = tmp_path_factory.mktemp("output")
    assert not run(
        *("train", images, *tiny.FLAGS, *PROCESSING, "-j", 0, "-b", 8, "--output", output, "--experiment", "run"),
        *("--epochs", 6, "--opt", "adamw", "--lr", 0.01, "--warmup-epochs", 0, "--no-aug"),
        *("--model-ema", "--model-ema-decay", 0.9, "--smoothing", 0),
    )
    return output / "run"


@pytest.fixture(scope="session")
def config_flags():
    """What weights alone do not say."""
    return [*tiny.FLAGS, *PROCESSING]


@pytest.fixture
def validate(capsys):
    """Runs ``flashkat validate``: its result, and the lines of its log."""

    def call(*argv):
        capsys.readouterr()
        status = run("validate", *argv, "-j", 0)
        out, err = capsys.readouterr()
        assert status == 0, err
        assert out.startswith("--result\n")
        return json.loads(out.removeprefix("--result\n")), err.splitlines()

    return call


@pytest.fixture
def refused(capsys):
    """The last line of ``flashkat validate`` where it fails."""

    def call(*argv):
        capsys.readouterr()
        assert run("validate", *argv, "-j", 0) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()[-1]

    return call


@pytest.fixture(scope="session")
def numbered(tmp_path_factory):
    """Ten images named as ImageNet's, two in each of five classes."""
    root = tmp_path_factory.mktemp("numbered")
    generator = np.random.default_rng(0)
    for number in range(10):
        folder = root / f"class{number // 2}"
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"ILSVRC2012_val_{number + 1:08d}.JPEG", "png")
    return root


@pytest.fixture
def validated(numbered, capsys):
    """Runs ``flashkat validate`` on numbered images: its result and its log, or its log where it fails."""

    def call(*flags, data=numbered, status=0):
        assert run("validate", data, *tiny.FLAGS, "--crop-pct", 1, "-j", 0, "-b", 4, *flags) == status
        out, err = capsys.readouterr()
        return (json.loads(out.removeprefix("--result\n")), err) if status == 0 else err

    return call
