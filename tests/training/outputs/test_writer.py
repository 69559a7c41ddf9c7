"""Files that cannot be written cost a line, and training goes on."""

import contextlib
import errno
import os
import shutil
import threading
from types import SimpleNamespace

import pytest
import tiny
import torch
from processes import together
from torch import nn

from flashkat import GroupRational, checkpoints
from flashkat.cli.main import main
from flashkat.errors import InputError
from flashkat.evaluation.metrics import Meters
from flashkat.training import loop
from flashkat.training.outputs.background import Background
from flashkat.training.outputs.folder import RunFolder
from flashkat.training.outputs.writer import Writer
from flashkat.training.state import TrainingState

ROW = {"epoch": 0, "train_loss": 2.5, "eval_loss": 2.25, "eval_top1": 10.0, "eval_top5": 50.0, "lr": 0.1}


@pytest.fixture
def writer(tmp_path, training_config):
    """A writer in a folder ``run`` that waits for its files, and the lines that it says."""
    config, model = training_config("--output", tmp_path, "--experiment", "run"), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = TrainingState(
        model=model,
        optimizer=optimizer,
        scheduler=None,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        ema=None,
        classes=["a", "b"],
        epochs=3,
        name=config.model.name,
        flags=config.flags(),
    )
    said = []
    folder = RunFolder(config.output, config.model.name, 8, config.flags())
    yield Writer(state, folder, said.append, lambda: None, Background(beside=False)), said, folder
    folder.close()


def failing(monkeypatch, code):
    """Let every file be refused by the system."""

    @contextlib.contextmanager
    def refused(path, **how):
        raise OSError(code, os.strerror(code), str(path))
        yield

    monkeypatch.setattr("flashkat.training.outputs.folder.replaced", refused)
    monkeypatch.setattr("flashkat.checkpoints.io.replaced", refused)
    monkeypatch.setattr("flashkat.training.outputs.folder.draw_curves", lambda rows, path: refused(path).__enter__())


CODES = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE, errno.EDQUOT]


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_an_epoch_that_cannot_be_written_costs_one_line(writer, monkeypatch, code):
    writer, said, folder = writer
    with monkeypatch.context() as patch:
        failing(patch, code)
        writer.write_epoch(ROW, is_best=True)
    line = f"Cannot write the checkpoint, summary.csv and curves.png to {folder.path}: {os.strerror(code)}. Training"
    assert said == [f"{line} goes on, and tries again at its next checkpoint"]
    with pytest.raises(InputError, match="no checkpoint is there, so what was trained is lost"):
        writer.finish()
    writer.write_epoch({**ROW, "epoch": 1}, is_best=False)
    assert said[1:] == [f"{folder.path} can be written again"]
    assert (folder.path / "summary.csv").read_text().count("\n") == 3
    assert folder.best_checkpoint.is_file()
    writer.finish()


def test_the_end_names_the_last_good_checkpoint(writer, monkeypatch):
    writer, said, folder = writer
    writer._state.updates = 7
    writer.write_epoch(ROW, is_best=True)
    writer._state.updates = 14
    with monkeypatch.context() as patch:
        failing(patch, errno.EROFS)
        writer.write_recovery(0)
    line = f"Cannot write the checkpoint to {folder.path}: Read-only file system. Training goes on"
    assert said == [f"{line}, and tries again at its next checkpoint"]
    with pytest.raises(InputError) as error:
        writer.finish()
    assert str(error.value) == (
        f"cannot write the checkpoint to {folder.path}: Read-only file system; the last good checkpoint is "
        f"{folder.path / 'last.pth.tar'}, after 7 updates: make the folder writable, and go on with --resume"
    )


def test_a_folder_of_another_run_gets_nothing(writer, training_config, tmp_path):
    writer, said, folder = writer
    folder.path.rename(tmp_path / "mine")
    config = training_config("--output", tmp_path, "--experiment", "run")
    other = RunFolder(config.output, config.model.name, 8, config.flags())
    before = sorted(other.path.iterdir())
    writer.write_epoch(ROW, is_best=True)
    writer.write_recovery(1)
    assert sorted(other.path.iterdir()) == before
    assert "wait for its end" in said[0]
    assert len(said) == 2
    other.close()
    writer.write_epoch({**ROW, "epoch": 1}, is_best=False)
    assert said[2:] == [f"{folder.path} can be written again"]
    assert torch.load(folder.best_checkpoint, weights_only=True)["run"]["history"] == []


def test_pictures_of_batches_cost_one_line_in_a_row(writer):
    writer, said, folder = writer
    images = torch.zeros(2, 3, 4, 4)
    (folder.path / "train-batch-0-1.jpg").mkdir()
    (folder.path / "train-batch-0-2.jpg").mkdir()
    for batch in range(4):
        writer.save_images(images, batch)
    assert said == [f"Cannot write the picture of a batch to {folder.path}: Is a directory. Training goes on"]
    assert (folder.path / "train-batch-0-3.jpg").is_file()
    writer.finish()


def test_weights_and_biases_that_fail(writer, monkeypatch):
    writer, said, folder = writer
    monkeypatch.setattr(folder, "log", lambda row, functions: {"Weights & Biases": "the network is down"})
    writer.write_epoch(ROW, is_best=True)
    assert said == ["Weights & Biases has not taken epoch 1: the network is down. Training goes on"]
    writer.finish()


def test_bad_images_beyond_the_limit_are_an_error_all_the_same(writer, monkeypatch):
    def too_many(datasets):
        raise InputError("too many")

    writer, _, folder = writer
    monkeypatch.setattr("flashkat.training.outputs.writer.check_bad_images", too_many)
    with pytest.raises(InputError, match="too many"):
        writer.write_epoch(ROW, is_best=True)
    assert folder.best_checkpoint.is_file()


class Held:
    """Holds up the write of each checkpoint until it is let go, and takes note of those that have begun."""

    def __init__(self, monkeypatch):
        self.begun, self.ended, self._go, write = [], [], threading.Semaphore(0), checkpoints.write

        def held(path, checkpoint):
            self.begun.append(path.name)
            assert self._go.acquire(timeout=60)
            write(path, checkpoint)
            self.ended.append(path.name)

        monkeypatch.setattr(checkpoints, "write", held)

    def let_go(self):
        self._go.release()


@pytest.fixture
def held(monkeypatch):
    return Held(monkeypatch)


def test_training_goes_on_beside_a_write_which_has_the_state_of_before(writer, held):
    first, said, folder = writer
    weight = first._state.model.weight
    before = weight.detach().clone()
    with Background() as background:
        beside = Writer(first._state, folder, said.append, lambda: None, background)
        beside.write_epoch(ROW, is_best=True)
        weight.data += 1
        first._state.updates = 9
        assert held.ended == []
        held.let_go()
        beside.finish()
        saved = torch.load(folder.best_checkpoint, weights_only=True)
    assert torch.equal(saved["state_dict"]["weight"], before)
    assert saved["run"]["updates"] == 0
    assert (folder.path / "summary.csv").is_file()


def test_one_write_at_a_time_and_errors_with_the_next(writer, held, monkeypatch):
    first, said, folder = writer
    with Background() as background:
        beside = Writer(first._state, folder, said.append, lambda: None, background)
        beside.write_epoch(ROW, is_best=True)
        held.let_go()
        beside.write_recovery(0)
        assert held.ended == ["last.pth.tar"]
        held.let_go()
        background.wait()
        assert held.begun == held.ended == ["last.pth.tar", "recovery-0-0.pth.tar"]
        monkeypatch.setattr(folder, "save_recovery", lambda *_: 1 / 0)
        beside.write_recovery(1)
        with pytest.raises(ZeroDivisionError):
            beside.write_recovery(2)


def test_the_best_one_that_fails_outlives_the_memory_of_its_copy(writer, monkeypatch):
    writer, _, folder = writer
    weight = writer._state.model.weight
    with monkeypatch.context() as patch:
        failing(patch, errno.ENOSPC)
        writer.write_epoch(ROW, is_best=True)
    best = weight.detach().clone()
    weight.data += 1
    writer.write_epoch({**ROW, "epoch": 1}, is_best=False)
    assert torch.equal(torch.load(folder.best_checkpoint, weights_only=True)["state_dict"]["weight"], best)


def test_too_many_bad_images_end_no_process_before_the_checkpoint_is_there(writer, held, monkeypatch):
    """Else another process might remove the folder, which has no checkpoint yet."""

    def too_many(datasets):
        held.let_go()
        raise InputError("too many")

    first, said, folder = writer
    monkeypatch.setattr("flashkat.training.outputs.writer.check_bad_images", too_many)
    written = []
    monkeypatch.setattr("flashkat.system.distributed.gather", lambda value: written.append(list(held.ended)) or [value])
    with Background() as background:
        beside = Writer(first._state, folder, said.append, lambda: None, background)
        with pytest.raises(InputError, match="too many"):
            beside.write_epoch(ROW, is_best=True)
    assert written[0] == []
    assert written[-1] == ["last.pth.tar"]


def test_without_a_folder_nothing_is_written(monkeypatch):
    """As in all processes but the first one."""
    model = nn.Linear(2, 2)
    state = SimpleNamespace(model=model, optimizer=torch.optim.SGD(model.parameters()), ema=None, epoch=0, updates=1)
    state.checkpoint, state.meters = dict, Meters()
    writer = Writer(state, None, pytest.fail, lambda: None, Background(beside=False))
    writer.write_epoch(ROW, is_best=True)
    writer.write_recovery(1)
    writer.save_images(torch.zeros(1, 3, 4, 4), 0)
    writer.finish()


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(images, tmp_path, no_curves):
    def run(*flags):
        argv = ["train", images, *tiny.FLAGS, "-j", 0, "-b", 4, "--output", tmp_path / "output", "--experiment", "run"]
        return main([str(word) for word in (*argv, *flags)])

    return run


@pytest.fixture
def before_evaluation(monkeypatch):
    """Calls functions before an epoch's evaluation, by the epoch. The files of the epoch before are written by then."""
    calls, real, seen = {}, loop.evaluate, []

    def evaluate(*arguments):
        seen.append(1)
        calls.get(len(seen), lambda: None)()
        return real(*arguments)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    return calls


def test_files_are_the_same_beside_training(command, tmp_path, monkeypatch, summary_of):
    """As on a GPU."""
    assert command("--epochs", 2) == 0
    (tmp_path / "output" / "run").rename(tmp_path / "at once")
    monkeypatch.setattr("flashkat.training.run.Background", lambda beside: Background())
    assert command("--epochs", 2) == 0
    found, expected = (
        checkpoints.read(folder / "last.pth.tar")["state_dict"]
        for folder in (tmp_path / "output" / "run", tmp_path / "at once")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert len(summary_of(tmp_path / "output" / "run")) == 2


def test_a_folder_that_is_removed_in_the_run(command, tmp_path, before_evaluation, capsys, summary_of):
    folder = tmp_path / "output" / "run"
    before_evaluation[2] = lambda: shutil.rmtree(folder)
    assert command("--epochs", 3) == 0
    assert capsys.readouterr().out.count(f"{folder} was removed or renamed. It is made again") == 1
    assert len(summary_of(folder)) == 3
    before_evaluation.clear()
    assert command("--epochs", 4, "-c", folder / "args.yaml", "--resume", folder / "last.pth.tar") == 0
    assert len(summary_of(folder)) == 4


def test_a_file_in_place_of_the_folder(command, tmp_path, before_evaluation, capsys):
    """Nothing can be written to the end, and the last line says so."""
    folder = tmp_path / "output" / "run"

    def replace():
        folder.rename(tmp_path / "elsewhere")
        folder.write_text("in the way")

    before_evaluation[2] = replace
    assert command("--epochs", 3) == 2
    out, err = capsys.readouterr()
    assert out.count(f"Cannot write the checkpoint to {folder}: Not a directory. Training goes on") == 2
    assert err.count("\n") == 1
    assert err.endswith("was written after 4 updates\n")
    assert (
        f"error: cannot write the checkpoint to {folder}: Not a directory; no checkpoint is there now, the last one was"
        in err
    )
    assert folder.read_text() == "in the way"
    assert (tmp_path / "elsewhere" / "last.pth.tar").is_file()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_becomes_read_only(command, tmp_path, before_evaluation, capsys):
    folder = tmp_path / "output" / "run"
    before_evaluation[2] = lambda: folder.chmod(0o500)
    before_evaluation[3] = lambda: folder.chmod(0o700)
    assert command("--epochs", 3) == 0
    out = capsys.readouterr().out
    assert out.count(f"to {folder}: Permission denied. Training goes on") == 1
    assert out.count(f"{folder} can be written again") == 1


def test_several_processes_end_together(images, tmp_path):
    """Only the first one writes, and no file may be larger than 8 KiB."""
    argv = [
        "train",
        images,
        *tiny.FLAGS,
        "-j",
        0,
        "-b",
        4,
        "--device",
        "cpu",
        "--epochs",
        2,
        "--output",
        tmp_path / "o",
    ]
    done = together(tmp_path, *argv, "--experiment", "run", largest=8192)
    assert done.status == [2, 2], done.stderr
    assert done.stdout.count("File too large. Training goes on, and tries again at its next checkpoint") == 2
    (line,) = (line for line in done.stderr.splitlines() if "flashkat train: error: " in line)
    assert "File too large; no checkpoint is there" in line


@pytest.mark.parametrize(("every", "drawn"), [(0, []), (1, [1, 2, 3, 4]), (2, [2, 4])])
def test_functions_are_logged_each_so_many_epochs(tmp_path, writer, monkeypatch, every, drawn):
    first, _, folder = writer
    model = nn.Sequential(GroupRational(8, 2, start="gelu"))
    first._state.model = model
    monkeypatch.setattr(RunFolder, "is_tracked", True)
    logged = {}
    monkeypatch.setattr(folder, "log", lambda row, functions: logged.update({row["epoch"] + 1: functions}) or {})
    logs = Writer(first._state, folder, pytest.fail, lambda: None, Background(beside=False), log_functions=every)
    for epoch in range(4):
        logs.write_epoch({**ROW, "epoch": epoch}, is_best=False)
    assert [number for number, functions in logged.items() if functions is not None] == drawn
    assert all(torch.equal(logged[number]["0"].numerator, model[0].numerator.double()) for number in drawn)
