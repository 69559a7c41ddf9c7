"""CIFAR-10's training through the program's own entry, with tiny models and images; stopping, going on, and judging."""

import contextlib
import math
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import cifar10
from benchmarks.parts import common
from benchmarks.report import figures, tables
from flashkat.cli.main import main

TINY = ("--img-size", "8", "--model-kwargs", "patch_size=4", "embed_dim=16", "depth=1", "num_heads=2")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("dark", "light"):
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


class InThisProcess:
    """Runs the command at once, without the seconds that a new Python takes."""

    def __init__(self, command, stdout, stderr, env):
        assert command[:3] == [sys.executable, "-m", "flashkat"]
        assert env["CUDA_VISIBLE_DEVICES"] == "0"
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
            self.returncode = main(command[3:])

    def poll(self):
        return self.returncode


@pytest.fixture
def small(monkeypatch):
    """The command at toy sizes on the CPU, which it takes for a GPU."""
    monkeypatch.setattr(cifar10, "require_gpu", lambda: None)
    monkeypatch.setattr(cifar10, "subprocess", SimpleNamespace(Popen=InThisProcess, STDOUT=subprocess.STDOUT))
    monkeypatch.setattr("flashkat.training.outputs.folder.draw_curves", lambda rows, path: None)
    monkeypatch.setitem(cifar10.CONTENDERS, "KAT", ("--model", "kat_tiny_patch16_224", *TINY))
    monkeypatch.setattr(cifar10, "_MACHINE", ("--device", "cpu"))
    monkeypatch.setattr(cifar10, "_TIMED_EPOCHS", 2)
    fake = ("--fake-data", "--num-classes", "2", "--train-num-samples", "8", "--val-num-samples", "4")
    monkeypatch.setattr(cifar10, "_FAKE", fake)


@pytest.fixture
def call(small, images, tmp_path):
    def call(*flags):
        output, work = tmp_path / "results" / "cifar10.json", tmp_path / "work"
        argv = [
            images,
            "--work",
            work,
            "--output",
            output,
            "--batch-size",
            4,
            "--contenders",
            "KAT",
            "--val-interval",
            1,
        ]
        cifar10.main([str(argument) for argument in (*argv, *flags)])
        return common.read(output)

    return call


def test_training_goes_on_and_ends_in_the_readme(call, tmp_path):
    first = call("--epochs", 1, "--rounds", 0)
    assert first["settings"]["unfinished"] == []
    assert first["rows"][0]["images_per_second"] is None

    document = call("--epochs", 2, "--rounds", 1)
    (row,) = document["rows"]
    assert (row["contender"], row["epochs"], row["finite"]) == ("KAT", 2, True)
    assert row["curve"]["eval_top1"][:1] == first["rows"][0]["curve"]["eval_top1"]
    assert row["top1"] == row["curve"]["eval_top1"][-1]
    for name in ("images_per_second", "images_per_second_with_loading", "seconds_per_epoch"):
        assert 0 < row[name]["min"] <= row[name]["median"] <= row[name]["max"]
    assert all(found["met"] for found in document["targets"])
    assert "in epoch 2, after 2 updates" in (tmp_path / "work" / "KAT-42.log").read_text()

    assert re.search(r"\| KAT \| `[^|]+` \| [\d,]+ \| 2 \| ", tables.render("cifar10", tmp_path / "results"))
    assert len(figures.draw(tmp_path / "results", tmp_path / "pictures")) == 1
    # Nothing is left to do.
    log = (tmp_path / "work" / "KAT-42.log").read_text()
    assert call("--epochs", 2, "--rounds", 1)["rows"] == document["rows"]
    assert (tmp_path / "work" / "KAT-42.log").read_text() == log


def test_epochs_that_are_not_evaluated(call):
    (row,) = call("--epochs", 3, "--rounds", 0, "--val-interval", 2)["rows"]
    assert row["curve"]["epoch"] == [2, 3]
    assert len(row["train_losses"]) == row["epochs"] == 3
    assert row["top1"] == row["curve"]["eval_top1"][-1]


def test_without_time_nothing_is_begun(call, tmp_path):
    with pytest.raises(SystemExit, match="give more --minutes"):
        call("--minutes", 0)
    assert not (tmp_path / "work").exists()


def test_a_failure_is_told(call, capsys):
    with pytest.raises(SystemExit, match="no epoch is finished"):
        call("--epochs", 1, "--rounds", 0, "--batch-size", 5)
    assert "KAT-42 failed: flashkat train: error: mixup and cutmix pair up images" in capsys.readouterr().err


def test_what_runs_is_interrupted_at_the_deadline(monkeypatch, tmp_path):
    """What was done counts as no failure."""
    script = "import pathlib, sys, time; path = pathlib.Path(sys.argv[1])\ntry: path.touch(); time.sleep(60)\n"
    script += "except KeyboardInterrupt: path.write_text('interrupted'); sys.exit(130)"
    runs = [cifar10.Run(name, 1, (), 1) for name in "ab"]
    started = [tmp_path / run.name for run in runs]
    monkeypatch.setattr(
        cifar10.Run, "command", lambda run, *_: [sys.executable, "-c", script, str(tmp_path / run.name)]
    )
    clock = SimpleNamespace(monotonic=lambda: all(path.exists() for path in started), sleep=time.sleep)
    monkeypatch.setattr(cifar10, "time", clock)
    assert list(cifar10.train(runs, tmp_path, tmp_path, deadline=1)) == []
    assert [path.read_text() for path in started] == ["interrupted"] * 2


def test_a_run_begins_when_another_has_ended(monkeypatch, tmp_path):
    """At most two run at once, and the last line of a failed run is told."""
    running, most = set(), []

    class Process:
        def __init__(self, command, **settings):
            self.name, self.gpu, self.polls = command[0], settings["env"]["CUDA_VISIBLE_DEVICES"], 0
            self.returncode = None
            running.add(self)
            most.append(len(running))
            assert len({process.gpu for process in running}) == len(running)
            settings["stdout"].write(f"{self.name} is out of memory\n")

        def poll(self):
            self.polls += 1
            if self.polls > len(self.name):  # longer names run longer
                self.returncode = int(self.name == "bb")
                running.discard(self)
            return self.returncode

    monkeypatch.setattr(cifar10, "subprocess", SimpleNamespace(Popen=Process, STDOUT=subprocess.STDOUT))
    monkeypatch.setattr(cifar10, "_visible_gpus", lambda: ["3", "5"])
    monkeypatch.setattr(cifar10.Run, "command", lambda run, *_: [run.contender])
    monkeypatch.setattr(cifar10, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None))
    runs = [cifar10.Run(name, 1, (), 1) for name in ("aaaaaa", "bb", "c", "dd")]
    ended = list(cifar10.train(runs, tmp_path, tmp_path, math.inf, at_once=2))
    assert [(run.contender, line) for run, line in ended] == [
        ("bb", "bb is out of memory"), ("c", ""), ("aaaaaa", ""), ("dd", "")
    ]  # fmt: skip
    assert max(most) == 2


def _row(name, top1=90.0, **changes):
    row = {"contender": name, "seed": 42, "parameters": 1000, "epochs": 3, "finite": True}
    return {**row, "top1": top1, "ema_top1": top1, **changes}


@pytest.mark.parametrize(
    ("kat", "vit", "missed"),
    [
        (_row("KAT"), _row("ViT"), 0),
        (_row("KAT", 91.0), _row("ViT", 91.5), 2),
        (_row("KAT", 87.9), _row("ViT", 80.0), 2),
        (_row("KAT", ema_top1=89.0), _row("ViT"), 1),
        (_row("KAT", finite=False), _row("ViT"), 1),
        (_row("KAT"), _row("ViT", epochs=2), 1),
        (_row("KAT", parameters=1011), _row("ViT"), 1),
    ],
)
def test_judging(kat, vit, missed):
    assert sum(not found["met"] for found in cifar10.targets([kat, vit], 3)) == missed


def test_judging_by_means_over_seeds():
    rows = [_row("KAT", 88.4), _row("ViT", 88.9), _row("KAT", 90.0, seed=43), _row("ViT", 89.3, seed=43)]
    assert all(found["met"] for found in cifar10.targets(rows, 3))
    rows[2]["finite"] = False
    assert [found["name"] for found in cifar10.targets(rows, 3) if not found["met"]] == [
        "KAT, seed 43, has finite losses"
    ]


def test_loaders_are_compared():
    others = [_row("KAT-timm-loader", top1, seed=seed) for seed, top1 in ((1, 90.1), (2, 90.3))]
    (found,) = (each for each in cifar10.targets([_row("KAT"), *others], 3) if "with timm's loader" in each["name"])
    assert (found["value"], found["met"]) == (pytest.approx(0.2), True)


def test_each_trains_with_each_seed_and_is_timed_with_one(small, images):
    argv = [str(images), "--contenders", "KAT", "ViT", "--seeds", "4", "5"]
    training, *alone = cifar10.plan(common.arguments("cifar10", "", argv, cifar10._add_flags))
    assert [run.name for run in training] == ["KAT-4", "ViT-4", "KAT-5", "ViT-5"]
    assert all(run.flags[run.flags.index("--seed") + 1] == str(run.seed) for run in training)
    assert {run.name for (run,) in alone[:4]} == {
        f"alone/{name}-4-{kind}-0" for name in ("KAT", "ViT") for kind in ("images", "model")
    }


def test_contenders_differ_in_nothing_but_their_own_flags(small, images):
    argv = [str(images), "--contenders", *cifar10.CONTENDERS, "--in-turn"]
    stages = cifar10.plan(common.arguments("cifar10", "", argv, cifar10._add_flags))
    assert all(len(runs) == 1 for runs in stages)
    rests = {
        run.flags[len(own) :]
        for (run,), own in zip(stages, cifar10.CONTENDERS.values(), strict=False)
        if run.flags[: len(own)] == own
    }
    assert len(rests) == 1


def test_images_in_folders_or_as_torchvision_downloads_them(tmp_path):
    run = cifar10.Run("KAT", 1, (), 1)
    assert "--dataset" not in run.command(tmp_path, tmp_path / "work", 1)
    (tmp_path / "cifar-10-batches-py").mkdir()
    command = run.command(tmp_path, tmp_path / "work", 1)
    assert command[command.index("--dataset") + 1] == "torch/cifar10"


@pytest.mark.parametrize(("given", "off"), [([], "0"), (["--mixed-epochs", "7"], "7")])
def test_mixing_in_some_epochs_or_in_all(small, images, given, off):
    argv = [str(images), "--contenders", "KAT", *given]
    (training,), *_ = cifar10.plan(common.arguments("cifar10", "", argv, cifar10._add_flags))
    assert training.flags[training.flags.index("--mixup-off-epoch") + 1] == off


def test_speed_is_measured_with_an_evaluation_after_each_epoch(small, images):
    argv = [str(images), "--contenders", "KAT", "--val-interval", "7"]
    (training,), *alone = cifar10.plan(common.arguments("cifar10", "", argv, cifar10._add_flags))
    assert "--val-interval" in training.flags
    assert alone
    assert not any("--val-interval" in run.flags for (run,) in alone)
