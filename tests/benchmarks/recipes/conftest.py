"""A data set of a few images, and runs in this process."""

import contextlib
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny

from benchmarks import cifar10
from benchmarks.recipes import contenders
from flashkat.cli.main import main


class InThisProcess:
    """Runs a command at once, without the seconds that a new Python takes."""

    def __init__(self, command, stdout, stderr, env):
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
            self.returncode = main(command[3:])

    def poll(self):
        return self.returncode


@pytest.fixture
def few_images(monkeypatch, tmp_path):
    """A folder of two classes in place of CIFAR-10."""
    monkeypatch.setattr(cifar10, "subprocess", SimpleNamespace(Popen=InThisProcess, STDOUT=subprocess.STDOUT))
    monkeypatch.setattr("flashkat.training.outputs.folder.draw_curves", lambda rows, path: None)
    flags = "--img-size 8 --workers 0 --no-aug --model-ema --batch-size 4 --val-interval 1"
    data = replace(contenders.DATA_SETS["cifar10"], flags=flags, held_out="0.5", defaults={"mixing": "off"})
    monkeypatch.setitem(contenders.DATA_SETS, "cifar10", data)
    return tiny.write_images(tmp_path / "images")
