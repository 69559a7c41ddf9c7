"""The commands of trainings, and the rows that they leave."""

import math

import pytest
from parsing import parse as parse_flags

from benchmarks.recipes import trials
from benchmarks.recipes.contenders import DATA_SETS, parse

CPU = ("--device", "cpu")


def plan(*names, data="cifar10", seeds=(1,), split="test", epochs=1, from_epochs=1, flags=CPU):
    contenders = [parse(name, DATA_SETS[data]) for name in names]
    return trials.plan(contenders, seeds, split, "toy", epochs, from_epochs, (*DATA_SETS[data].flags.split(), *flags))


def measure(planned, folder, work, known=(), deadline=math.inf, errors=None):
    rows = trials.measured(planned, known, folder, work, deadline, 2, {} if errors is None else errors)
    return [row for piece in rows for row in piece]


def test_pairs_are_complete_early():
    planned = plan("kat", "vit,wd=0.2", seeds=(5, 6))
    assert [trial.name for trial in planned] == [
        "test-1/kat-5", "test-1/vit,wd=0.2-5", "test-1/kat-6", "test-1/vit,wd=0.2-6"
    ]  # fmt: skip
    assert all(trial.flags[-2:] == ("--seed", str(trial.seed)) for trial in planned)


def test_what_comes_twice_trains_once():
    planned = plan("kat", "kat,opt=adamw", "vit,from=vit", "vit,from=vit", seeds=(5, 6, 5))
    assert [trial.name for trial in planned] == [
        "test-1/kat-5", "test-1-after-1/vit,from=vit-5", "test-1/kat-6", "test-1-after-1/vit,from=vit-6"
    ]  # fmt: skip


def test_choices_are_made_on_training_images(tmp_path):
    (choosing,), (claiming,) = plan("kat", split="validation"), plan("kat")
    assert choosing.name != claiming.name
    command = choosing.command(tmp_path, tmp_path / "work", 1)
    assert command[4] == str(tmp_path / "train")
    assert command[command.index("--val-fraction") + 1] == "0.1"
    command = claiming.command(tmp_path, tmp_path / "work", 1)
    assert command[4] == str(tmp_path)
    assert "--val-fraction" not in command


@pytest.mark.parametrize(("data", "epochs", "warmup"), [("cifar10", 300, 10), ("cifar10", 30, 6), ("digits", 40, 5)])
def test_short_trainings_warm_up_faster(data, epochs, warmup):
    (trial,) = plan("vit", data=data, epochs=epochs)
    assert parse_flags("train", *trial.flags, "images").warmup_epochs == warmup


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_row_tells_what_was_trained(few_images, tmp_path, split):
    planned = plan("kat,start=gelu", "vit", split=split, epochs=2)
    kat, vit = measure(planned, few_images, tmp_path / "work")
    assert [kat[key] for key in trials.KEYS] == ["kat,start=gelu", 1, split, 2, 0]
    assert kat["curve"]["epoch"] == [1, 2]
    assert kat["top1"] == kat["curve"]["top1"][-1]
    assert kat["finite"]
    assert 0 < vit["gflops"] <= kat["gflops"]
    assert kat["parameters"] - vit["parameters"] == 40  # two rationals, each with 4 and 8 times 2 coefficients
    assert [each["layer"] for each in kat["functions"]] == ["blocks.0.mlp.act1", "blocks.0.mlp.act2"]
    assert kat["functions"][1]["nearest"] == "gelu"
    assert vit["functions"] == []
    assert not (tmp_path / "work" / planned[0].name).exists()  # the result has all that is needed


def test_what_is_known_does_not_train_again(few_images, tmp_path):
    planned = plan("kat", "vit")
    rows = measure(planned, few_images, tmp_path / "work", known={planned[0].key})
    assert [row["contender"] for row in rows] == ["vit"]


def test_what_ended_in_an_earlier_call_is_taken(few_images, tmp_path):
    """A call that stops between the end of a training and its row loses nothing."""
    planned, work = plan("kat"), tmp_path / "work"
    stopped = trials.measured(planned, (), few_images, work, math.inf, 1, {})
    (row,) = next(stopped)
    stopped.close()
    log = (work / "test-1/kat-1.log").read_text()
    assert measure(planned, few_images, work) == [row]
    assert (work / "test-1/kat-1.log").read_text() == log


def test_what_was_killed_after_its_last_checkpoint_is_completed(few_images, tmp_path):
    planned, work = plan("kat"), tmp_path / "work"
    stopped = trials.measured(planned, (), few_images, work, math.inf, 1, {})
    (row,) = next(stopped)
    stopped.close()
    (work / planned[0].name / "summary.csv").unlink()
    errors = {}
    (again,) = measure(planned, few_images, work, errors=errors)
    assert errors == {}
    assert again == row


def test_what_stopped_within_its_first_epoch_goes_on(few_images, tmp_path):
    (trial,), work = plan("kat"), tmp_path / "work"
    assert "--resume" not in trial.command(few_images, work, 1)
    (work / trial.name).mkdir(parents=True)
    (work / trial.name / "recovery-0-3.pth.tar").touch()
    assert trial.command(few_images, work, 1)[-2:] == ["--resume", "auto"]
    assert (work / trial.name / "recovery-0-3.pth.tar").exists()


def test_a_kat_starts_from_the_vit_of_its_seed(few_images, tmp_path):
    planned, work = plan("kat,start=gelu,from=vit", "vit,from=vit", from_epochs=2), tmp_path / "work"
    source, kat, vit = measure(planned, few_images, work)
    assert [(row["contender"], row["epochs"], row["from_epochs"]) for row in (source, kat, vit)] == [
        ("vit", 2, 0), ("kat,start=gelu,from=vit", 1, 2), ("vit,from=vit", 1, 2)
    ]  # fmt: skip
    log = (work / "test-1-after-2/kat,start=gelu,from=vit-1.log").read_text()
    assert "test-2/vit-1/last.pth.tar" in log
    assert (work / "test-2/vit-1/last.pth.tar").is_file()  # others may start from it
    assert not (work / "test-1-after-2/vit,from=vit-1").exists()


def test_nothing_starts_from_a_vit_that_is_not_done(few_images, tmp_path):
    assert measure(plan("kat,from=vit"), few_images, tmp_path / "work", deadline=-math.inf) == []
    assert not (tmp_path / "work").exists()


def test_a_failure_is_told(few_images, tmp_path):
    errors = {}
    assert (
        measure(
            plan("kat", flags=(*CPU, "--batch-size", "500")),
            few_images,
            tmp_path,
            (),
            math.inf,
            errors,
        )
        == []
    )
    ((name, line),) = errors.items()
    assert name == "test-1/kat-1"
    assert line.startswith("flashkat train: error: ")
