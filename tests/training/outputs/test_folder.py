import csv
import errno
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from flashkat import GroupRational
from flashkat.errors import InputError
from flashkat.nn.learned.rationals import learned
from flashkat.training.outputs.folder import RunFolder, discard_if_empty
from flashkat.training.outputs.lock import Lock
from flashkat.training.outputs.tracker import Tracker

ROW = {"epoch": 0, "train_loss": 2.5, "eval_loss": 2.25, "eval_top1": 10.0, "eval_top5": 50.0, "lr": 0.1}
ROW |= {"images_per_second": 100.0}


@pytest.fixture
def make(tmp_path, training_config):
    def run(*flags, output=tmp_path / "output"):
        config = training_config("--output", output, *flags)
        return RunFolder(config.output, config.model.name, 224, config.flags(), resume=config.resume.resume)

    return run


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def test_names(make, tmp_path):
    names = [make("--experiment", "mine").path for _ in range(3)]
    assert names == [tmp_path / "output" / name for name in ("mine", "mine-1", "mine-2")]
    assert make("--experiment", "deeper/mine").path == tmp_path / "output" / "deeper" / "mine"
    assert re.fullmatch(r"\d{8}-\d{6}-kat_tiny_patch16_224-224", make().path.name)


@pytest.mark.parametrize("model", ["local-dir:/models/mine", "hf_hub:models/mine"])
def test_a_model_named_by_a_path_makes_one_folder(make, tmp_path, model):
    path = make("--model", model).path
    assert path.parent == tmp_path / "output"
    assert path.name.endswith("models_mine-224")


def test_arguments(make, training_config, tmp_path):
    flags = ["--experiment", "a", "--model-kwargs", "m=5", "act_init=gelu", "--mean", 0.5, 0.5, 0.5, "--lr", 1e-5]
    folder = make(*flags)
    found = yaml.safe_load((folder.path / "args.yaml").read_text())
    # The folder's name is this run's alone.
    assert found == {**training_config("--output", tmp_path / "output", *flags).flags(), "experiment": ""}
    assert found["lr"] == 1e-5
    assert found["model_kwargs"] == {"m": 5, "act_init": "gelu"}


def test_rows(make):
    folder = make()
    rows = [ROW, {**ROW, "epoch": 1, "train_loss": 1.0 / 3.0}]
    for number, row in enumerate(rows, start=1):
        folder.add(row)
        folder.write_summary()
        with (folder.path / "summary.csv").open(newline="") as file:
            found = list(csv.DictReader(file))
        assert [list(row) for row in found] == [list(ROW)] * number
        assert [{name: float(value) for name, value in row.items()} for row in found] == rows[:number]


def test_curves_are_drawn_anew(make, curves):
    folder = make()
    folder.add(ROW)
    folder.draw()
    first = pixels(folder.path / "curves.png")
    folder.add({**ROW, "epoch": 1, "train_loss": 2.0, "eval_top1": 20.0})
    folder.draw()
    second = pixels(folder.path / "curves.png")
    assert first.shape[0] < first.shape[1]
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 10
    assert first.shape != second.shape or not np.array_equal(first, second)


def test_curves_are_not_drawn_after_epochs_without_evaluation(make, curves):
    folder = make()
    folder.add({"epoch": 0, "train_loss": 1.0, "lr": 0.1})
    folder.draw()
    assert not (folder.path / "curves.png").exists()


def test_curves_of_what_is_no_number(make, curves):
    folder = make()
    folder.add({**ROW, "eval_loss": float("nan"), "eval_ema_loss": float("inf"), "eval_ema_top1": 0.0})
    folder.draw()
    assert pixels(folder.path / "curves.png").size


def test_checkpoints(make):
    folder = make()
    folder.save({"epoch": 0, "weight": torch.ones(2)}, ROW, best=True)
    folder.save({"epoch": 1, "weight": torch.zeros(2)}, ROW, best=False)
    assert folder.best_checkpoint == folder.path / "model_best.pth.tar"
    best, last = (
        torch.load(path, weights_only=True) for path in (folder.best_checkpoint, folder.path / "last.pth.tar")
    )
    assert (best["epoch"], last["epoch"]) == (0, 1)
    folder.save({"epoch": 2}, ROW, best=True)
    assert torch.load(folder.best_checkpoint, weights_only=True) == {"epoch": 2}
    assert not list(folder.path.glob("*.partial"))


def rows(name, values):
    return [{"epoch": epoch, **({} if value is None else {name: value})} for epoch, value in enumerate(values)]


@pytest.mark.parametrize(
    ("metric", "name", "values", "kept"),
    [
        ("top1", "eval_top1", [10.0, 30.0, 20.0, 30.0], {1, 3}),
        ("loss", "eval_ema_loss", [0.5, 0.25, 1.0, 0.125], {1, 3}),
        ("top1", "eval_top1", [10.0, None, 5.0, None], {0, 2}),
    ],
)
def test_the_best_are_kept(make, metric, name, values, kept):
    folder = make("--checkpoint-hist", 2, "--eval-metric", metric)
    for row in rows(name, values):
        folder.save({"epoch": row["epoch"]}, row, best=False)
    assert {path.name for path in folder.path.glob("checkpoint-*")} == {f"checkpoint-{epoch}.pth.tar" for epoch in kept}
    assert torch.load(folder.path / "last.pth.tar", weights_only=True) == {"epoch": 3}


def test_an_empty_run_is_discarded(make, tmp_path):
    discard_if_empty(make("--experiment", "a").made)
    assert not list(tmp_path.iterdir())


def test_discarding_leaves_what_others_made(make, tmp_path):
    (tmp_path / "output").mkdir()
    discard_if_empty(make("--experiment", "a").made)
    assert list(tmp_path.iterdir()) == [tmp_path / "output"]
    first = make("--experiment", "a", output=tmp_path / "new")
    second = make("--experiment", "a", output=tmp_path / "new")
    discard_if_empty(first.made)
    assert list((tmp_path / "new").iterdir()) == [second.path]


@pytest.mark.parametrize("name", ["last.pth.tar", "last.pth.tar.1.partial", "recovery-0-2.pth.tar"])
def test_a_run_with_a_checkpoint_is_kept(make, name):
    folder = make()
    (folder.path / name).write_bytes(b"weights")
    discard_if_empty(folder.made)
    assert (folder.path / name).read_bytes() == b"weights"


def test_a_run_that_goes_on_is_kept(make):
    first = make()
    first.close()
    again = make("--resume", first.path / "last.pth.tar")
    assert again.path == first.path
    discard_if_empty(again.made)
    assert (first.path / "args.yaml").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_behind(make, monkeypatch):
    """A full disk, say."""

    def write(checkpoint, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    folder = make()
    monkeypatch.setattr(torch, "save", write)
    with pytest.raises(OSError, match="No space left"):
        folder.save({"epoch": 0}, ROW, best=True)
    assert {path.name for path in folder.path.iterdir()} == {"args.yaml", ".lock"}


@pytest.mark.parametrize("below", ["", "runs", "runs/mine"])
def test_a_file_in_the_way(make, tmp_path, below):
    (tmp_path / "results").write_text("precious")
    with pytest.raises(InputError, match=f"cannot write to {tmp_path / 'results' / below}: "):
        make(output=tmp_path / "results" / below)
    assert (tmp_path / "results").read_text() == "precious"


def test_a_folder_that_cannot_be_filled_is_not_left_behind(make, tmp_path, monkeypatch):
    def write_text(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(InputError, match="No space left on device"):
        make("--experiment", "a", output=tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_name_that_is_too_long(make, tmp_path):
    with pytest.raises(InputError, match="cannot write to"):
        make("--experiment", "x" * 300)


def test_the_folder_of_another_run_is_not_discarded(make):
    """It has taken the name of this run's folder."""
    mine = make("--experiment", "a")
    mine.path.rename(mine.path.with_name("b"))
    other = make("--experiment", "a")
    discard_if_empty(mine.made)
    assert (other.path / "args.yaml").is_file()


# --- folders that go away ---------------------------------------------------------------------------------------------


def contents(path):
    return sorted(file.name for file in path.iterdir())


def test_a_folder_in_place_is_left_alone(make):
    folder = make()
    flags = (folder.path / "args.yaml").stat().st_mtime_ns
    folder.renew(pytest.fail)
    assert (folder.path / "args.yaml").stat().st_mtime_ns == flags


def test_named_pipes_in_the_place_of_its_files_are_replaced(make, curves):
    """Nothing reads them, so writing to one would wait for ever."""
    names = ("last.pth.tar", "model_best.pth.tar", "checkpoint-0.pth.tar", "summary.csv", "curves.png")
    folder = make("--experiment", "run")
    for name in names:
        os.mkfifo(folder.path / name)
    assert folder.newest() is None
    folder.add(ROW)
    folder.save({"epoch": 0, "state_dict": {}}, ROW, best=True)
    folder.write_summary()
    folder.draw()
    folder.close()
    (folder.path / "args.yaml").unlink()
    os.mkfifo(folder.path / "args.yaml")
    folder._write_flags()
    assert all((folder.path / name).is_file() for name in (*names, "args.yaml"))


@pytest.mark.parametrize("gone", ["removed", "renamed", "removed with its parent"])
def test_a_folder_that_is_gone_is_made_again(make, gone):
    folder, said = make("--experiment", "a"), []
    folder.save({"epoch": 0}, ROW, best=True)
    flags = (folder.path / "args.yaml").read_text()
    if gone == "renamed":
        folder.path.rename(folder.path.with_name("b"))
    else:
        shutil.rmtree(folder.path if gone == "removed" else folder.path.parent)
    folder.renew(said.append)
    assert said == [f"{folder.path} was removed or renamed. It is made again, without the files of before"]
    assert (folder.path / "args.yaml").read_text() == flags
    for epoch in (1, 2):
        folder.save({"epoch": epoch}, {**ROW, "epoch": epoch}, best=False)
    folder.renew(pytest.fail)
    with pytest.raises(InputError, match="wait for its end"):
        Lock(folder.path)
    assert contents(folder.path) == [".lock", "args.yaml", *CHECKPOINTS, "last.pth.tar"]
    folder.close()
    Lock(folder.path).release()


CHECKPOINTS = ["checkpoint-1.pth.tar", "checkpoint-2.pth.tar"]


def test_only_what_is_missing_is_made_again(make):
    folder = make()
    (folder.path / ".lock").unlink()
    (folder.path / "args.yaml").unlink()
    folder.renew(pytest.fail)
    assert contents(folder.path) == [".lock", "args.yaml"]


def test_nothing_is_made_on_another_disk(make, monkeypatch):
    """As below a mount point whose disk has gone."""
    folder = make()
    shutil.rmtree(folder.path)
    monkeypatch.setattr(folder, "_device", -1)
    with pytest.raises(FileNotFoundError, match=str(folder.path)):
        folder.renew(pytest.fail)
    assert not folder.path.exists()


def test_a_folder_that_another_run_has_taken_is_left_to_it(make):
    mine = make("--experiment", "a")
    mine.path.rename(mine.path.with_name("b"))
    other = make("--experiment", "a")
    with pytest.raises(InputError, match="wait for its end"):
        mine.renew(pytest.fail)
    mine.close()
    assert contents(other.path) == [".lock", "args.yaml"]


def test_a_disk_that_does_not_answer_has_no_newest_checkpoint(make, monkeypatch):
    folder = make()
    folder.save({"epoch": 0}, ROW, best=True)

    def stale(path, *args, **kwargs):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(Path, "stat", stale)
    assert folder.newest() is None
    discard_if_empty(folder.made)
    folder.close()
    monkeypatch.undo()
    assert (folder.path / "last.pth.tar").is_file()


def test_the_best_that_cannot_be_written_is_written_with_the_next(make, monkeypatch):
    folder, weight = make(), torch.ones(2)
    with monkeypatch.context() as patch:
        patch.setattr("flashkat.checkpoints.write", refuse)
        with pytest.raises(OSError, match="No space"):
            folder.save({"epoch": 0, "state_dict": {"weight": weight}, "list": [weight]}, ROW, best=True)
    weight.zero_()
    for epoch in (1, 2):
        folder.save({"epoch": epoch, "state_dict": {"weight": weight}}, {**ROW, "epoch": epoch}, best=False)
    best = torch.load(folder.best_checkpoint, weights_only=True)
    assert best["epoch"] == 0
    assert best["state_dict"]["weight"].tolist() == best["list"][0].tolist() == [1, 1]
    assert torch.load(folder.path / "checkpoint-0.pth.tar", weights_only=True)["epoch"] == 0


def test_a_better_one_takes_the_place_of_the_best_that_could_not_be_written(make):
    folder = make()
    folder.keep({"epoch": 0}, ROW)
    folder.save({"epoch": 1}, {**ROW, "epoch": 1}, best=True)
    folder.save({"epoch": 2}, {**ROW, "epoch": 2}, best=False)
    assert torch.load(folder.best_checkpoint, weights_only=True) == {"epoch": 1}


def refuse(path, checkpoint):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class Broken(Tracker):
    name, is_on = "A service", True

    def log(self, row, picture=None):
        raise RuntimeError("it has ended\nfor a reason")

    def close(self, has_failed=False):
        raise RuntimeError("it has ended")


class Kept(Tracker):
    name, is_on = "Another", True

    def __init__(self):
        self.rows, self.pictures, self.is_closed = [], [], False

    def log(self, row, picture=None):
        self.rows.append(row)
        self.pictures.append(picture)

    def close(self, has_failed=False):
        self.is_closed = True


def test_what_a_service_does_not_take_is_no_end(make, monkeypatch):
    folder = make()
    assert not folder.is_tracked
    assert folder.log(ROW) == {}
    kept = Kept()
    monkeypatch.setattr(folder, "_trackers", [Broken(), kept])
    assert folder.is_tracked
    assert folder.log(ROW) == {"A service": "it has ended"}
    assert kept.rows == [ROW]
    folder.close()
    assert kept.is_closed


def test_services_get_a_picture_of_the_functions(make, monkeypatch):
    folder, kept = make(), Kept()
    monkeypatch.setattr(folder, "_trackers", [kept])
    folder.log(ROW, learned(torch.nn.Sequential(GroupRational(8))))
    folder.log(ROW, {})  # of a model without rationals
    picture, none = kept.pictures
    assert picture.ndim == 3
    assert picture.dtype == np.uint8
    assert none is None


def test_images_of_batches_are_saved(train):
    folder = train("--epochs", 1, "--save-images", "--log-interval", 1)
    assert len(list(folder.glob("train-batch-0-*.jpg"))) == 4


def test_a_batch_is_one_picture_of_all_its_values(make):
    folder = make()
    folder.save_images(torch.stack([torch.full((3, 8, 8), value) for value in (-2.0, 2.0)]).bfloat16(), 1, 2)
    with Image.open(folder.path / "train-batch-1-2.jpg") as picture:
        found = np.asarray(picture)
    assert found.shape == (8, 16, 3)
    assert found[:, :8].max() < 10
    assert found[:, 8:].min() > 245
