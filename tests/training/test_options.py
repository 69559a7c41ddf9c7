"""Runs with timm's less usual flags, by the real command: they run, and do what they say."""

import csv
import math
import sys
import types

import pytest
import torch
import yaml

from flashkat import errors
from flashkat.cli.main import main

DEEPER = ["--model-kwargs", "patch_size=4", "embed_dim=16", "depth=3", "num_heads=2"]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing takes longer than all else here."""
    monkeypatch.setattr("flashkat.training.outputs.folder.draw_curves", lambda rows, path: None)


def checkpoint_of(folder, name="last.pth.tar"):
    return torch.load(folder / name, weights_only=True)


def refused(images, tiny, tmp_path, capsys, *flags, at_once=True):
    argv = ["train", str(images), *tiny, "-j", "0", "-b", "4", "--output", str(tmp_path / "output"), *flags]
    assert main(argv) == 2
    assert not (tmp_path / "output").exists()
    out, err = capsys.readouterr()
    assert not at_once or out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    "flags",
    [
        ["--bce-loss", "--bce-target-thresh", 0.2, "--mixup", 0.5],
        ["--jsd-loss", "--aug-splits", 2, "--aa", "rand-m3"],
        ["--mixup", 0.5, "--mixup-mode", "half", "--mixup-off-epoch", 1],
        ["--opt", "adamw", "--layer-decay", 0.7, "--opt-betas", 0.9, 0.95],
        ["--clip-grad", 0.1, "--clip-mode", "agc"],
        ["--channels-last", "--fast-norm", "--pin-mem"],
        ["--model-dtype", "bfloat16"],
        ["--no-prefetcher", "--synchronize-step", "--worker-seeding", "part"],
        ["--lr-noise", 0.2, "--sched", "step", "--decay-epochs", 1],
        ["--sched", "plateau", "--eval-metric", "loss", "--warmup-epochs", 0],
        ["--head-init-scale", 0.1, "--head-init-bias", -1, "--gp", "avg"],
        ["--train-crop-mode", "rkrc", "--grayscale-prob", 0.5, "--gaussian-blur-prob", 0.5, "--img-size", 32],
        ["--model-ema", "--model-ema-force-cpu", "--tta", 2],
        ["--sync-bn", "--dist-bn", "broadcast", "-vb", 3],
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_flags_run(train, summary_of, flags):
    rows = summary_of(train("--epochs", 2, *flags))
    assert len(rows) == 2
    assert all(math.isfinite(row["train_loss"]) and math.isfinite(row["eval_loss"]) for row in rows)


def test_compiled_model_leaves_an_ordinary_checkpoint(train, images):
    flags = ["--epochs", 1, "--model-ema", "--model-ema-decay", 0.5]
    compiled = train(*flags, "--torchcompile", "eager", experiment="compiled")
    plain = train(*flags, experiment="plain")
    ours, theirs = checkpoint_of(compiled), checkpoint_of(plain)
    for key in ("state_dict", "state_dict_ema"):
        assert list(ours[key]) == list(theirs[key])
        torch.testing.assert_close(ours[key], theirs[key])
    for ema in ([], ["--use-ema"]):
        assert not main(["validate", str(images), "--checkpoint", str(compiled / "last.pth.tar"), "-j", "0", *ema])


def test_average_warms_up(train):
    flags = ["--epochs", 1, "--model-ema", "--lr", 0.5, "--warmup-epochs", 0]

    def distance(*more):
        checkpoint = checkpoint_of(train(*flags, *more))
        pairs = zip(checkpoint["state_dict"].values(), checkpoint["state_dict_ema"].values(), strict=True)
        return sum(float((a - b).square().sum()) for a, b in pairs)

    # Four updates in, an average that decays by 0.9998 is still where it began.
    assert distance("--model-ema-warmup") < 0.7 * distance()


def test_too_slow_an_average_is_noted(train, capsys):
    train("--epochs", 1, "--model-ema")
    assert "The averaged weights will be 100% those at the start: try --model-ema-warmup" in capsys.readouterr().out


def test_best_says_which_weights_it_is_of(train, summary_of, monkeypatch):
    folder = train("--epochs", 2, "--model-ema", "--model-ema-decay", 0.5, "--lr", 0.1, "--warmup-epochs", 0)
    best, rows = checkpoint_of(folder, "model_best.pth.tar"), summary_of(folder)
    column = {"state_dict": "eval_top1", "state_dict_ema": "eval_ema_top1"}[best["metric_weights"]]
    assert max(row[name] for row in rows for name in ("eval_top1", "eval_ema_top1")) == best["metric"]
    assert rows[best["epoch"]][column] == best["metric"]


@pytest.mark.parametrize(("share", "hints"), [(1.0, 1), (0.11, 1), (0.1, 0), (0.0, 0)])
def test_waiting_for_data_is_shown(train, summary_of, capsys, monkeypatch, share, hints):
    monkeypatch.setattr("flashkat.training.loop.share_waited", lambda loader, seconds: share)
    rows = summary_of(train("--epochs", 2))
    out = capsys.readouterr().out
    assert [row["data_wait"] for row in rows] == [share] * 2
    assert out.count(f"data wait {share:.0%}") == 2
    assert out.count(f"Training waited for data {share:.0%} of that epoch: try more --workers") == hints


def test_peak_memory_is_shown(train, summary_of, capsys, monkeypatch):
    """Of a GPU, which alone knows it."""
    monkeypatch.setattr("flashkat.training.loop.peak_memory", lambda model: {"peak_memory_gib": 2.5})
    (row,) = summary_of(train("--epochs", 1))
    assert row["peak_memory_gib"] == 2.5
    assert " images/s  peak 2.50 GiB  data wait" in capsys.readouterr().out


def test_fake_data_waits_for_nothing(train, summary_of):
    flags = ["--fake-data", "--num-classes", 2, "--train-num-samples", 40, "--val-num-samples", 4]
    (row,) = summary_of(train("--epochs", 1, *flags))
    assert 0 <= row["data_wait"] < 1


def test_evaluation_now_and_then(train):
    with (train("--epochs", 5, "--val-interval", 2) / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows if row["eval_loss"]] == ["1", "3", "4"]


@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_best_by_another_metric(train, summary_of, metric):
    folder = train("--epochs", 3, "--eval-metric", metric, "--lr", 0.1, "--warmup-epochs", 0)
    values = [row[f"eval_{metric}"] for row in summary_of(folder)]
    best = min(values) if metric == "loss" else max(values)
    assert checkpoint_of(folder, "model_best.pth.tar")["metric"] == pytest.approx(best, abs=1e-4)


def test_images_of_batches_are_saved(train):
    folder = train("--epochs", 1, "--save-images", "--log-interval", 1)
    assert len(list(folder.glob("train-batch-0-*.jpg"))) == 4


def test_cooldown_adds_epochs(train, summary_of):
    rows = summary_of(train("--epochs", 2, "--cooldown-epochs", 1, "--min-lr", 1e-4, "--warmup-epochs", 0))
    assert len(rows) == 3
    assert rows[-1]["lr"] == pytest.approx(1e-4)


def test_a_run_again_from_its_own_arguments(train, summary_of):
    first = train("--epochs", 1, "--lr", 0.1, "--mixup", 0.4, *DEEPER)
    again = train("-c", first / "args.yaml", experiment="again")
    a, b = (yaml.safe_load((folder / "args.yaml").read_text()) for folder in (first, again))
    assert {**a, "config": "", "experiment": ""} == {**b, "config": "", "experiment": ""} | {
        "model_kwargs": a["model_kwargs"]
    }


def test_a_checkpoint_of_a_run_starts_another(train, capsys):
    first = train("--epochs", 1, "--lr", 0.1)
    second = train(
        "--epochs",
        1,
        "--lr",
        1e-12,
        "--warmup-epochs",
        0,
        "--initial-checkpoint",
        first / "last.pth.tar",
        "--num-classes",
        3,
    )
    assert "the classifier is new: 2 classes" in capsys.readouterr().out
    old, new = checkpoint_of(first)["state_dict"], checkpoint_of(second)["state_dict"]
    torch.testing.assert_close(new["patch_embed.proj.weight"], old["patch_embed.proj.weight"], atol=1e-6, rtol=0)


def test_augmentation_that_an_image_is_too_small_for(images, tiny, tmp_path, capsys):
    err = refused(images, tiny, tmp_path, capsys, "--gaussian-blur-prob", "1", at_once=False)
    assert "cannot augment the image" in err


# --- Weights & Biases -------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in that keeps what it is given."""
    seen = {"rows": []}
    run = types.SimpleNamespace(log=seen["rows"].append)
    module = types.ModuleType("wandb")
    module.init = lambda **kwargs: seen.update(kwargs) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return seen


def test_rows_go_to_wandb(train, wandb, summary_of):
    flags = ["--log-wandb", "--wandb-project", "kats", "--wandb-tags", "a", "b", "--wandb-resume-id", "xyz"]
    folder = train("--epochs", 2, *flags)
    assert (wandb["project"], wandb["tags"], wandb["id"], wandb["resume"]) == ("kats", ["a", "b"], "xyz", "must")
    assert wandb["name"] == folder.name
    assert wandb["config"]["epochs"] == 2
    assert [row["train_loss"] for row in wandb["rows"]] == pytest.approx(
        [row["train_loss"] for row in summary_of(folder)]
    )


def test_without_wandb(images, tiny, tmp_path, capsys, monkeypatch):
    installed = errors.is_installed
    monkeypatch.setattr(errors, "is_installed", lambda module: module != "wandb" and installed(module))
    err = refused(images, tiny, tmp_path, capsys, "--log-wandb")
    assert "--log-wandb needs a package that is not installed: pip install wandb" in err


def test_wandb_that_does_not_start(images, tiny, tmp_path, capsys, wandb, monkeypatch):
    def fail(**kwargs):
        raise RuntimeError("no API key\nand more")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    err = refused(images, tiny, tmp_path, capsys, "--log-wandb")
    assert "Weights & Biases does not start: no API key; WANDB_MODE=offline logs to files" in err


def test_flags_of_wandb_alone(images, tiny, tmp_path, capsys):
    assert "need --log-wandb" in refused(images, tiny, tmp_path, capsys, "--wandb-project", "kats")
