"""``dist_train.sh``: it says what is wrong in one line, and ends as its processes do."""

import signal
from pathlib import Path

import pytest
import tiny
import torch
from processes import interrupted, started
from tiny import write_images
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from flashkat.cli import launch as launcher

FLAGS = [*tiny.FLAGS, "-j", 0, "--device", "cpu", "--epochs", 2, "-b", 2]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def refused(tmp_path):
    """Training by dist_train.sh, which does not start; the one line that says why."""

    def run(data, *flags):
        output = ("--output", tmp_path / "output")
        done = started("bash", ROOT / "dist_train.sh", 2, data, *FLAGS, *output, *flags)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "output").exists()
        return done.stderr.removeprefix("flashkat train: error: ")

    return run


def test_mistyped_flags_start_no_processes(monkeypatch, capsys):
    monkeypatch.setattr("torch.distributed.run.run", lambda options: pytest.fail("started"))
    with pytest.raises(SystemExit) as end:
        launcher.launch(2, ["data", "--epoch-repeat-s", "3"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flashkat train: error: unknown argument --epoch-repeat-s, did you mean --epoch-repeats;")


@pytest.mark.parametrize(
    ("codes", "status", "line"),
    [
        ({0: 1, 1: 2}, 2, ""),
        ({0: -signal.SIGTERM, 1: 1}, 1, ""),
        ({0: -signal.SIGTERM, 1: -signal.SIGKILL}, 137, "flashkat train: error: process 1 was ended by SIGKILL\n"),
    ],
)
def test_exit_status(monkeypatch, capsys, codes, status, line):
    def fail(args):
        raise ChildFailedError("train", {rank: ProcessFailure(rank, 1, code, "") for rank, code in codes.items()})

    monkeypatch.setattr(torch.distributed.run, "run", fail)
    assert launcher.launch(2, ["data"]) == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hangup_that_is_ignored_is_not_forwarded(monkeypatch, ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    given = []
    monkeypatch.setattr("torch.distributed.run.run", given.append)
    try:
        assert launcher.launch(2, ["data"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    forwarded = given[0].signals_to_handle.split(",")
    assert ("SIGHUP" in forwarded) != ignored
    assert {"SIGTERM", "SIGINT", "SIGUSR1"} <= set(forwarded)


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGUSR1, 1), pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow)]
)
def test_a_signal_is_told_in_one_line(images, tmp_path, number, workers):
    command = ["bash", ROOT / "dist_train.sh", 2, images, *FLAGS, "--epochs", 100000, "-j", workers]
    status, err = interrupted(command, tmp_path, number)
    assert status == 128 + number
    assert err.startswith("flashkat train: error: stopped")
    assert err.count("\n") == 1


def test_an_error_of_one_process_ends_all(refused, tmp_path):
    data = write_images(tmp_path / "data", val=3)
    # In the share of the second process.
    (data / "val" / "dark" / "1.png").write_bytes(b"no image")
    assert refused(data).startswith(f"cannot decode the image {data / 'val' / 'dark' / '1.png'}: ")


@pytest.mark.slow
def test_the_first_process_alone_finds_that_it_cannot_write(images, refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    assert refused(images, "--output", tmp_path / "file" / "runs").startswith("cannot write to ")
    assert (tmp_path / "file").read_text() == "precious"
