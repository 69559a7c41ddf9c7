"""TensorBoard's files of a run."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from flashkat.training import Tracking
from flashkat.training.outputs.tensorboard import open_tensorboard

ROW = {"epoch": 0, "train_loss": 2.5, "lr": 0.1}


def events(folder):
    """What TensorBoard reads from a folder: scalars and images by name, each a list of steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    scalars = {name: [(each.step, each.value) for each in found.Scalars(name)] for name in found.Tags()["scalars"]}
    images = {
        name: [(each.step, each.encoded_image_string) for each in found.Images(name)] for name in found.Tags()["images"]
    }
    return scalars, images


def test_rows_and_pictures_of_a_run(train, summary_of):
    folder = train("--epochs", 3, "--log-tensorboard", "--log-functions", 2)
    scalars, images = events(folder / "tensorboard")
    rows = summary_of(folder)
    assert scalars.keys() == rows[0].keys() - {"epoch"}
    for name, values in scalars.items():
        assert [step for step, _ in values] == [0, 1, 2]
        assert [value for _, value in values] == pytest.approx([row[name] for row in rows])
    ((step, encoded),) = images["functions"]
    assert step == 1
    with Image.open(io.BytesIO(encoded)) as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 100


def test_none_is_drawn(train):
    folder = train("--epochs", 1, "--log-tensorboard", "--log-functions", 0)
    scalars, images = events(folder / "tensorboard")
    assert scalars["train_loss"]
    assert images == {}


def test_without_the_flag_there_are_no_files(train):
    assert not (train("--epochs", 1) / "tensorboard").exists()


def test_a_resumed_run_replaces_the_epochs_after_its_checkpoint(tmp_path):
    before = open_tensorboard(Tracking(log_tensorboard=True), tmp_path)
    for epoch in range(3):
        before.log({**ROW, "epoch": epoch})
    before.close()
    after = open_tensorboard(Tracking(log_tensorboard=True), tmp_path, is_resumed=True)
    after.log({**ROW, "epoch": 1, "train_loss": 1.0})
    after.close()
    assert events(tmp_path)[0]["train_loss"] == [(0, 2.5), (1, 1.0)]


def test_nothing_to_close(tmp_path):
    open_tensorboard(Tracking(log_tensorboard=True), tmp_path / "none").close()
    assert not (tmp_path / "none").exists()


def test_without_the_package_there_is_no_run(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("flashkat.errors.is_installed", lambda module: module != "tensorboard")
    assert "--log-tensorboard needs a package that is not installed: pip install tensorboard" in refused(
        "--log-tensorboard"
    )
