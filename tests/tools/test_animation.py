"""Animations of a run: ``flashkat plot --animate``."""

import shutil
import subprocess

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from flashkat import checkpoints
from flashkat.cli.main import main
from flashkat.models.create import create_model
from flashkat.nn.learned.rationals import learned
from flashkat.tools import animation
from flashkat.tools.inspect.history import Snapshot


@pytest.fixture
def run(tmp_path):
    """A run with three checkpoints, whose functions double from one to the next."""
    torch.manual_seed(0)
    model = create_model(tiny.MODEL, img_size=8, num_classes=2, **tiny.KWARGS)
    args = {"model_kwargs": tiny.KWARGS, "img_size": 8, "num_classes": 2}
    folder = tmp_path / "run"
    folder.mkdir()
    for epoch, name in ((0, "checkpoint-0"), (1, "checkpoint-1"), (2, "last")):
        factor = 2.0**epoch
        state = {key: value * factor if "numerator" in key else value for key, value in model.state_dict().items()}
        content = {"arch": tiny.MODEL, "args": args, "epoch": epoch, "state_dict": state}
        checkpoints.write(folder / f"{name}.pth.tar", content)
    return folder


def plot(*argv):
    return main(["plot", *(str(argument) for argument in argv), "--animate", "--device", "cpu", "-j", "0"])


def refused(capsys, *argv):
    assert plot(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_gif_beside_the_checkpoint(run, capsys):
    assert plot(run / "last.pth.tar") == 0
    assert capsys.readouterr().out == f"The rationals are drawn in {run / 'rationals.gif'}\n"
    with Image.open(run / "rationals.gif") as image:
        assert (image.format, image.n_frames, image.info["loop"]) == ("GIF", 3, 0)
        frames, durations = [], []
        for number in range(3):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    assert durations == [500, 500, 2000]
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])
    assert not list(run.glob("*.partial"))


def test_axes_stay_and_lines_move(run):
    entries = [checkpoints.read(run / f"{name}.pth.tar") for name in ("checkpoint-0", "last")]
    model = create_model(tiny.MODEL, img_size=8, num_classes=2, **tiny.KWARGS)
    series = [Snapshot(f"after epoch {each['epoch'] + 1}", learned(model, each["state_dict"])) for each in entries]
    seen = []
    for figure in animation._frames(series, {"blocks.0.mlp.act2": (-1.0, 2.0)}, "mine"):
        panel = figure.axes[1]
        seen.append((panel.get_ylim(), panel.lines[3].get_ydata(), figure.get_suptitle()))
        assert panel.lines[3].get_xdata()[[0, -1]].tolist() == [-1, 2]
        assert panel.lines[-1].get_linestyle() == "--"
    (limits, y, title), (later_limits, later_y, later_title) = seen
    assert limits == later_limits
    np.testing.assert_allclose(later_y, 4 * y)
    assert limits[1] > later_y.max() > y.max()
    assert title.startswith("mine after epoch 1\n")
    assert later_title.startswith("mine after epoch 3\n")


def test_ranges_of_data(run, images, tmp_path):
    assert plot(run / "last.pth.tar", "--data", images, "-o", tmp_path / "a.gif") == 0
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 3


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffmpeg")
def test_a_film(run, tmp_path):
    assert plot(run / "last.pth.tar", "-o", tmp_path / "a.mp4") == 0
    asked = [
        "-count_frames",
        "-select_streams",
        "v",
        "-show_entries",
        "stream=nb_read_frames,pix_fmt",
        "-of",
        "csv=p=0",
    ]
    shown = subprocess.run(["ffprobe", *asked, tmp_path / "a.mp4"], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "yuv420p,3"


def test_bad_input_is_one_line(run, tmp_path, capsys, monkeypatch):
    assert "give a name that ends in .gif, .mp4" in refused(capsys, run / "last.pth.tar", "-o", tmp_path / "a.png")
    assert "no checkpoint at" in refused(capsys, tmp_path / "none.pth.tar")
    monkeypatch.setattr("matplotlib.animation.FFMpegWriter.isAvailable", lambda: False)
    assert "ffmpeg is not installed" in refused(capsys, run / "last.pth.tar", "-o", tmp_path / "a.mp4")
    for name in ("checkpoint-0", "checkpoint-1"):
        (run / f"{name}.pth.tar").unlink()
    assert "an animation needs several checkpoints" in refused(capsys, run / "last.pth.tar")
    assert not list(tmp_path.glob("a.*"))
