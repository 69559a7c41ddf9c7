"""The checkpoint that ``--resume auto`` picks."""

import csv
import errno
import functools
import os
import signal
from pathlib import Path

import pytest
import tiny
import torch
import yaml

from flashkat import checkpoints
from flashkat.cli.main import main
from flashkat.training.outputs.recovery import differences, is_finite, newest_good
from flashkat.training.step import TrainingStep


def write(folder, name, second, value=1.0, **more):
    checkpoints.write(folder / name, {"epoch": second, "state_dict": {"weight": torch.tensor([value])}, **more})
    os.utime(folder / name, (second, second))
    return str(folder / name)


def test_the_newest(tmp_path):
    assert newest_good(tmp_path / "nowhere", pytest.fail) == ("", {})
    write(tmp_path, "last.pth.tar", 1)
    newest = write(tmp_path, "recovery-2-7.pth.tar", 3)
    write(tmp_path, "checkpoint-1.pth.tar", 2)
    (tmp_path / "last.pth.tar.partial").write_bytes(b"half")
    path, checkpoint = newest_good(tmp_path, pytest.fail)
    assert (path, checkpoint["epoch"]) == (newest, 3)


@pytest.mark.parametrize("fault", ["truncated", "nan", "no run", "odd run"])
def test_a_bad_one_is_passed_over_with_a_line(tmp_path, fault):
    good = write(tmp_path, "checkpoint-0.pth.tar", 1)
    bad = write(tmp_path, "last.pth.tar", 2, value=float("nan") if fault == "nan" else 1.0)
    if fault == "truncated":
        with open(bad, "r+b") as file:  # noqa: PTH123 - no method of a path truncates
            file.truncate(100)
        os.utime(bad, (2, 2))
    if fault == "no run":
        checkpoints.write(tmp_path / "last.pth.tar", {"weight": torch.ones(1)})
    if fault == "odd run":
        write(tmp_path, "last.pth.tar", 2, run={"updates": "many"})
    said = []
    assert newest_good(tmp_path, said.append)[0] == good
    (line,) = said
    reasons = {"truncated": "truncated or damaged", "nan": "not finite", "no run": "not the state of a run"}
    reasons["odd run"] = "its run.updates is 'many'"
    assert line.startswith("Not resuming from last.pth.tar: ")
    assert reasons[fault] in line


def test_finite():
    weights = {"weight": torch.ones(3), "steps": torch.tensor(2), "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    assert is_finite([weights, None])
    assert is_finite({"history": torch.tensor([float("nan")]), "weight": torch.ones(1)})
    assert not is_finite([weights, {"state": {0: {"exp_avg": torch.tensor([1.0, float("inf")])}}}])
    assert is_finite([])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_numbers_are_finite(dtype):
    """Their norm is not."""
    large = torch.full((2, 8), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite([large, torch.ones(3)])
    for bad in (float("nan"), float("inf"), -float("inf")):
        large[1, 3] = bad
        assert not is_finite([torch.ones(3), large])


def test_flags_that_differ():
    before = {"opt": "adamw", "mixup": 0.8, "workers": 4, "no_recompute_rationals": False, "output": "a", "gone": 1}
    now = {"opt": "adamw", "mixup": 0.0, "workers": 8, "no_recompute_rationals": True, "output": "b", "new": 2}
    assert differences(before, now) == ["Differs from the run so far: --mixup is 0.0, it was 0.8"]


def test_a_rate_that_differs():
    assert differences({"lr": 0.5}, {"lr": 0.1}) == ["Differs from the run so far: --lr is 0.1, it was 0.5"]
    assert differences({"lr": None}, {"lr": 0.1}) == []


def test_flags_of_a_file_are_shown_in_a_line():
    (line,) = differences({"aa": "a\nEpoch 9/9"}, {"aa": None})
    assert line.endswith(r"it was a\nEpoch 9/9")


# --- going on by itself -----------------------------------------------------------------------------------------------

STEADY = ["--opt", "adamw", "--lr", 1e-3, "--warmup-epochs", 0, "--model-ema"]


def contents(folder, columns=("epoch", "train_loss", "eval_loss", "eval_top1", "eval_ema_top1", "lr")):
    """Return the files of a run, without times."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith("recovery")}
    with (folder / "summary.csv").open(newline="") as file:
        rows = [[row[name] for name in columns] for row in csv.DictReader(file)]
    files = {}
    for path in sorted(folder.glob("*.pth.tar")):
        if not path.name.startswith("recovery"):
            checkpoint = torch.load(path, weights_only=True)
            files[path.name] = (
                checkpoint["epoch"],
                checkpoint["metric"],
                checkpoint["state_dict"]["head.weight"].tolist(),
            )
    return names, rows, files


def command(images, output, *flags):
    argv = ["train", images, *tiny.FLAGS, "-j", 0, "-b", 4, "--output", output, "--experiment", "run", *STEADY, *flags]
    return main([str(argument) for argument in argv])


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def straight(images, tmp_path_factory):
    """What a run of some epochs leaves that nothing stops; of each number, one is trained."""

    @functools.cache
    def run(epochs):
        output = tmp_path_factory.mktemp("straight")
        assert command(images, output, "--epochs", epochs) == 0
        return contents(output / "run")

    return run


@pytest.mark.parametrize(
    ("epochs", "step"), [*((2, step) for step in range(1, 13)), *((3, step) for step in range(1, 14))]
)
def test_killed_anywhere_in_an_epochs_end_it_goes_on_to_the_same(straight, images, tmp_path, monkeypatch, epochs, step):
    """As if by SIGKILL: at the n-th change of a file from the second epoch on, nothing of the process runs any more.

    The second epoch is also the last one.
    """
    output, calls = tmp_path / "killed", []
    assert command(images, output, "--epochs", 1) == 0

    def counted(function):
        def call(self, *arguments, **options):
            if output in self.parents and "args.yaml" not in self.name and ".lock" not in self.name:
                calls.append(self.name)
                if len(calls) >= step:
                    raise Killed
            return function(self, *arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("flashkat.training.outputs.lock.Lock.release", lambda self: self._file.close())
        for name in ("replace", "hardlink_to", "unlink"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        with pytest.raises(Killed):
            command(images, output, "--epochs", epochs, "--resume", "auto")
    assert command(images, output, "--epochs", epochs, "--resume", "auto") == 0
    assert contents(output / "run") == straight(epochs)


def test_killed_before_its_first_checkpoint_it_starts_in_the_same_folder(images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pth.tar.123.partial").write_bytes(b"half")
    assert command(images, tmp_path, "--epochs", 1, "--resume", "auto") == 0
    assert not list((tmp_path / "run").glob("*.partial"))


def test_a_run_whose_checkpoints_are_all_bad_is_kept(images, tmp_path, capsys):
    assert command(images, tmp_path, "--epochs", 1) == 0
    for path in (tmp_path / "run").glob("*.pth.tar"):
        path.write_bytes(path.read_bytes()[:100])
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    assert command(images, tmp_path, "--epochs", 2, "--resume", "auto") == 2
    err = capsys.readouterr().err
    words = f"error: none of the checkpoints in {tmp_path / 'run'} can be resumed, and a new run would replace them: "
    assert words + "give another --experiment, or remove them. Not resuming from " in err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_first_epoch_is_for_a_new_run(images, tmp_path, capsys):
    flags = ["--epochs", 3, "--start-epoch", 1]
    assert command(images, tmp_path, *flags) == 0
    assert yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())["start_epoch"] is None
    capsys.readouterr()
    assert command(images, tmp_path, *flags, "--epochs", 4, "--resume", "auto") == 0
    out = capsys.readouterr().out
    assert "in epoch 4, after" in out
    assert out.count("train loss") == 1


def test_the_newest_is_read_once(images, tmp_path, monkeypatch):
    read, paths = checkpoints.read, []
    assert command(images, tmp_path, "--epochs", 1) == 0
    monkeypatch.setattr("flashkat.checkpoints.read", lambda path: paths.append(str(path)) or read(path))
    assert command(images, tmp_path, "--epochs", 2, "--resume", "auto") == 0
    assert paths == [str(tmp_path / "run" / "last.pth.tar")]


def test_all_epochs_done_is_no_failure(images, tmp_path, capsys):
    found = []
    for _ in range(2):
        # The last epoch is not the best one.
        flags = ["--epochs", 2, "--resume", "auto", "--checkpoint-hist", 1, "--lr", 1e-9]
        assert command(images, tmp_path, *flags) == 0
        found.append(contents(tmp_path / "run"))
    assert found[0] == found[1]
    assert "checkpoint-1.pth.tar" not in found[0][0]
    out = capsys.readouterr().out
    assert out.count("Epoch 1/2") == 1
    assert out.count("All epochs are done") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_all_epochs_done_in_a_folder_that_is_read_only(images, tmp_path, monkeypatch, capsys):
    def refuse(folder):
        raise OSError(errno.EROFS, "Read-only file system")

    assert command(images, tmp_path, "--epochs", 1) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    monkeypatch.setattr("flashkat.training.outputs.folder.Lock", refuse)
    capsys.readouterr()
    assert command(images, tmp_path, "--epochs", 1, "--resume", "auto") == 0
    out = capsys.readouterr().out
    assert f"left as they are: cannot write to {tmp_path / 'run'}: Read-only file system" in out
    assert "All epochs are done" in out
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert command(images, tmp_path, "--epochs", 2, "--resume", "auto") == 2
    assert "error: cannot write to" in capsys.readouterr().err


def test_all_epochs_done_by_timm_is_no_failure(images, tmp_path):
    """timm's checkpoints have no entry ``run``."""
    assert command(images, tmp_path, "--epochs", 1) == 0
    path = tmp_path / "run" / "last.pth.tar"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["run"]
    torch.save(checkpoint, path)
    assert command(images, tmp_path, "--epochs", 1, "--resume", "auto") == 0


def test_a_signal_writes_a_recovery_and_says_how_to_go_on(train, images, tmp_path, monkeypatch, capsys):
    straight = train(*STEADY, "--epochs", 2, experiment="straight")
    update = TrainingStep._update

    def signalled(*arguments):
        update(*arguments)
        os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "_update", signalled)
        assert command(images, tmp_path / "stopped", "--epochs", 2) == 128 + signal.SIGUSR1
    recovery = tmp_path / "stopped" / "run" / "recovery-0-0.pth.tar"
    assert (
        capsys.readouterr().err
        == f"flashkat train: error: stopped: go on with the same flags and --resume {recovery}\n"
    )
    assert command(images, tmp_path / "stopped", "--epochs", 2, "--resume", "auto") == 0
    assert contents(tmp_path / "stopped" / "run") == contents(straight)


def test_weights_that_are_not_finite_are_not_written(images, tmp_path, monkeypatch, capsys):
    update, updates = TrainingStep._update, []

    def poisoned(step):
        update(step)
        updates.append(step)
        if len(updates) == 3:
            next(step.model.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr(TrainingStep, "_update", poisoned)
    assert command(images, tmp_path, "--epochs", 2, "--recovery-interval", 1) == 1
    err = capsys.readouterr().err
    good = tmp_path / "run" / "recovery-0-1.pth.tar"
    assert (
        "weights are no longer finite after update 3 (cls_token is the first of 1), at the learning rate 0.001: " in err
    )
    assert f"go on with the same flags and --resume {good}" in err
    assert torch.load(good, weights_only=True)["state_dict"]["head.weight"].isfinite().all()


def test_a_disk_that_is_full_for_a_while(images, tmp_path, monkeypatch, capsys):
    write, full = checkpoints.io.write, [True]

    def writes(path, checkpoint):
        if full.pop() if full else False:
            raise OSError(28, "No space left on device", str(path))
        write(path, checkpoint)

    monkeypatch.setattr("flashkat.checkpoints.write", writes)
    assert command(images, tmp_path, "--epochs", 2) == 0
    out = capsys.readouterr().out
    line = f"Cannot write the checkpoint to {tmp_path / 'run'}: No space left on device. Training goes on"
    assert f"{line}, and tries again at its next checkpoint" in out
    assert torch.load(tmp_path / "run" / "last.pth.tar", weights_only=True)["epoch"] == 1


def test_a_disk_that_stays_full_is_a_failure(images, tmp_path, monkeypatch, capsys):
    def write(path, checkpoint):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("flashkat.checkpoints.write", write)
    assert command(images, tmp_path, "--epochs", 1) == 2
    line = f"cannot write the checkpoint to {tmp_path / 'run'}: No space left on device; no checkpoint is there"
    assert capsys.readouterr().err == f"flashkat train: error: {line}, so what was trained is lost\n"


def test_other_flags_are_listed(images, tmp_path, capsys):
    assert command(images, tmp_path, "--epochs", 1) == 0
    more = ["--mixup", 0.5, "--smoothing", 0.2, "--lr", 0.7, "--resume", tmp_path / "run" / "last.pth.tar"]
    assert command(images, tmp_path, "--epochs", 2, *more) == 0
    out = capsys.readouterr().out
    assert "Differs from the run so far: --mixup is 0.5, it was 0.0" in out
    assert "Differs from the run so far: --smoothing is 0.2, it was 0.1" in out
    assert "Differs from the run so far: --lr is 0.7, it was " in out
    assert out.count("Differs from the run so far: ") == 4  # and the epochs


def test_another_number_of_processes_is_said(images, tmp_path, capsys):
    assert command(images, tmp_path, "--epochs", 1) == 0
    path = tmp_path / "run" / "last.pth.tar"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["run"]["processes"] *= 2
    torch.save(checkpoint, path)
    assert command(images, tmp_path, "--epochs", 2, "--resume", "auto") == 0
    assert "Differs from the run so far: there are 1 processes, not 2" in capsys.readouterr().out
