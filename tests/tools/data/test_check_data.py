"""``flashkat data check``."""

import os
import signal

import numpy as np
import pytest
from PIL import Image

from flashkat.cli.main import main


@pytest.fixture
def data(tmp_path):
    """A data set without faults."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "d" / split / name
            folder.mkdir(parents=True)
            for number in range(40):
                size = (20, 10) if number else (8, 8)
                Image.fromarray(np.zeros(size[::-1], np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "d"


def test_a_whole_data_set(data, capsys):
    Image.new("RGB", (40, 30)).save(data / "train" / "cat" / "0.webp")
    assert main(["data", "check", str(data)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{data}/train: 81 images, 2 classes",
        "  formats  PNG 80, WEBP 1",
        "  modes    L 80, RGB 1",
        "  sizes    8 x 8 to 40 x 30, most often 20 x 10 (78)",
        f"{data}/val: 80 images, 2 classes",
        "  formats  PNG 80",
        "  modes    L 80",
        "  sizes    8 x 8 to 20 x 10, most often 20 x 10 (78)",
    ]


def test_faults(data, capsys):
    whole = (data / "val" / "dog" / "3.png").read_bytes()
    (data / "val" / "dog" / "3.png").write_bytes(whole[: len(whole) // 2])
    (data / "val" / "dog" / "4.png").write_bytes(b"")
    (data / "val" / "dog" / "notes.txt").write_text("")
    for split in ("train", "val"):
        (data / split / "Cat").mkdir()
        Image.new("L", (20, 10)).save(data / split / "Cat" / "0.png")
    assert main(["data", "check", str(data)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("    dog/3.png: ") for line in lines)
    assert "    dog/4.png: cannot identify image file" in lines
    assert "  broken   2" in lines
    assert lines.count("  alike    cat and Cat") + lines.count("  alike    Cat and cat") == 2
    assert "  left out 1 file that is no image (dog/notes.txt)" in lines


def test_a_class_of_one_split(data, capsys):
    (data / "val" / "dog").rename(data / "val" / "emu")
    assert main(["data", "check", str(data)]) == 1
    assert "  missing  emu" in capsys.readouterr().out.splitlines()


def test_one_split(data, capsys):
    assert main(["data", "check", str(data / "val")]) == 0
    assert capsys.readouterr().out.startswith(f"{data}/val: 80 images")


@pytest.mark.parametrize("folder", ["nothing", "empty"])
def test_no_data(tmp_path, folder, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "DataLoader worker"), (signal.SIGSTOP, "DataLoader timed")]
)
def test_a_process_that_is_killed_or_stopped(data, capsys, monkeypatch, number, words):
    def end(image, mode):
        os.kill(os.getpid(), number)

    monkeypatch.setattr("flashkat.tools.data.check_data._LIMIT", 2.0)
    monkeypatch.setattr("flashkat.tools.data.check_data.as_mode", end)
    assert main(["data", "check", str(data)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"loading images stopped: {words}" in err
    assert "worker 0 at cat/0.png" in err
