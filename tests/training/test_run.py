"""``flashkat train`` as a user types it, on real image files."""

import csv
import math
import re
import sys
import time

import numpy as np
import pytest
import tiny
import torch
import yaml
from PIL import Image
from tiny import write_images

from flashkat import training
from flashkat.cli.main import main
from flashkat.errors import InputError
from flashkat.training import Config, Model, Output


def checkpoint_of(folder, name="last.pth.tar"):
    return torch.load(folder / name, weights_only=True)


COLUMNS = ["epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr"]
COLUMNS += ["images_per_second", "data_wait", "seconds"]

# Of the tiny model's single block nothing is dropped.
DEEPER = ["--model-kwargs", "patch_size=4", "embed_dim=16", "depth=2", "num_heads=2"]


def losses(rows):
    return [
        (row["train_loss"], *(value for name, value in row.items() if name.startswith("eval") or name == "lr"))
        for row in rows
    ]


@pytest.fixture
def built(train, monkeypatch):
    """What a run is built of for some flags, without the run."""

    def build(*flags):
        calls = []
        monkeypatch.setattr("flashkat.training.run.run_epochs", lambda *args: calls.append(args))
        train(*flags)
        ((state, parts, _config),) = calls
        return {"state": state, "loss": parts.step.loss_function, "mixup": parts.mixup, "precision": parts.precision}

    return build


def train_and_fail(images, output, *flags):
    argv = ["train", images, *tiny.FLAGS, "-j", 0, "-b", 4, "--output", output, "--experiment", "run", *flags]
    return main([str(argument) for argument in argv])


def test_what_a_run_leaves_behind(train, summary_of, capsys, curves):
    folder = train("--epochs", 3, "--opt", "adamw", "--warmup-epochs", 1, "--lr", 1e-3)
    assert folder.name == "run"
    assert {path.name for path in folder.iterdir()} == {
        *("args.yaml", "summary.csv", "curves.png", "last.pth.tar", "model_best.pth.tar"),
        *(f"checkpoint-{epoch}.pth.tar" for epoch in range(3)),
    }
    assert str(folder) in capsys.readouterr().out.partition("\n--result\n")[0].splitlines()[-1]

    args = yaml.safe_load((folder / "args.yaml").read_text())
    assert args["model"] == "kat_tiny_patch16_224"
    assert args["model_kwargs"] == {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    assert (args["epochs"], args["opt"], args["lr"], args["batch_size"]) == (3, "adamw", 1e-3, 4)
    # What was found out, and defaults.
    assert args["num_classes"] == 2
    assert args["sched"] == "cosine"
    assert args["seed"] == 42

    with (folder / "summary.csv").open() as file:
        assert file.readline().strip().split(",") == COLUMNS
    rows = summary_of(folder)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert 0 < row["train_loss"] < 5
        assert 0 < row["eval_loss"] < 5
        assert 0 <= row["eval_top1"] <= 100
        # Of two classes.
        assert row["eval_top5"] == 100
        assert row["images_per_second"] > 0

    for name in ("last.pth.tar", "model_best.pth.tar"):
        checkpoint = torch.load(folder / name, weights_only=True)
        assert checkpoint["arch"] == "kat_tiny_patch16_224"
        assert checkpoint["args"] == {**args, "experiment": "run"}
        assert checkpoint["classes"] == ["dark", "light"]
        assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())
        assert checkpoint["optimizer"]["param_groups"]
    assert torch.load(folder / "last.pth.tar", weights_only=True)["epoch"] == 2

    with Image.open(folder / "curves.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_every_run_has_its_own_folder(train, summary_of):
    first = train("--epochs", 1)
    kept = {path.name: path.read_bytes() for path in first.iterdir()}
    second = train("--epochs", 2)
    third = train("--epochs", 1)
    assert len({first, second, third}) == 3
    assert {path.name: path.read_bytes() for path in first.iterdir()} == kept
    assert len(summary_of(second)) == 2


def test_name_of_a_run_without_one(train):
    folder = train("--epochs", 1, experiment="")
    assert re.fullmatch(r"20\d{6}-\d{6}-kat_tiny_patch16_224-8", folder.name)


def test_learns(train, summary_of):
    rows = summary_of(train("--epochs", 8, "--opt", "adamw", "--lr", 5e-3, "--warmup-epochs", 0, "--smoothing", 0))
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]
    assert rows[-1]["eval_loss"] < 0.5 * math.log(2)
    assert rows[-1]["eval_top1"] == 100


def test_best_checkpoint_is_of_the_best_epoch(train, summary_of):
    folder = train("--epochs", 6, "--opt", "sgd", "--lr", 0.5, "--warmup-epochs", 0, "--seed", 3)
    tops = [row["eval_top1"] for row in summary_of(folder)]
    best = torch.load(folder / "model_best.pth.tar", weights_only=True)
    assert best["epoch"] == tops.index(max(tops))
    assert best["metric"] == pytest.approx(max(tops), abs=1e-3)
    assert best["metric_weights"] == "state_dict"
    assert torch.load(folder / "last.pth.tar", weights_only=True)["best_metric"] == best["metric"]


def test_same_seed_same_run(train, summary_of):
    flags = [
        "--epochs",
        2,
        "--opt",
        "adamw",
        "--lr",
        1e-3,
        "--drop-path",
        0.2,
        "--mixup",
        0.2,
        "--reprob",
        0.5,
        *DEEPER,
    ]
    first, second = (train(*flags, "--seed", 7) for _ in range(2))
    assert losses(summary_of(first)) == losses(summary_of(second))
    a, b = (torch.load(folder / "last.pth.tar", weights_only=True)["state_dict"] for folder in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = train(*flags, "--seed", 8)
    assert losses(summary_of(other)) != losses(summary_of(first))


@pytest.mark.parametrize(
    "flags",
    [
        ["--amp"],
        ["--amp", "--amp-dtype", "float16"],
        ["--mixup", 0.8],
        ["--cutmix", 1.0],
        ["--mixup", 0.8, "--cutmix", 1.0, "--smoothing", 0],
        ["--smoothing", 0],
        ["--drop-path", 0.5, "--drop", 0.5, *DEEPER],
        ["--grad-checkpointing"],
        ["--clip-grad", 1.0],
        ["--sched-on-updates"],
        ["--no-aug"],
        ["--aa", "rand-m9-mstd0.5", "--reprob", 0.25, "--vflip", 0.5],
        ["--model", "vit_tiny_patch16_224"],
        ["--model", "flash_kat_tiny_swish_patch16_224", "--num-classes", 5],
        ["--opt", "lamb", "--sched", "step"],
        ["--opt", "adamw", "--sched", "none"],
        ["--mean", 0.5, "--std", 0.5, "--crop-pct", 1, "--interpolation", "bilinear"],
        ["--opt", "lookahead_adamw"],
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_flags_run(train, summary_of, flags):
    folder = train("--epochs", 1, *flags)
    (row,) = summary_of(folder)
    assert math.isfinite(row["train_loss"])
    assert math.isfinite(row["eval_loss"])
    checkpoint = torch.load(folder / "last.pth.tar", weights_only=True)
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())
    assert ("amp_scaler" in checkpoint) == ("float16" in flags)
    assert "state_dict_ema" not in checkpoint


def test_flags_reach_the_model(built):
    model = built("--drop", 0.25, "--drop-path", 0.5, "--num-classes", 4, *DEEPER)["state"].model
    assert model.head_drop.p == 0.25
    # The first block drops nothing.
    assert model.blocks[1].drop_path1.drop_prob == 0.5
    assert model.num_classes == 4
    assert not model.grad_checkpointing
    assert built("--grad-checkpointing")["state"].model.grad_checkpointing


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], [True, False]), (["--no-recompute-rationals"], [False] * 2), (["--grad-checkpointing"], [False] * 2)],
)
def test_rationals_are_recomputed_unless_nothing_is_saved_by_it(built, flags, expected):
    assert [block.mlp.recompute for block in built(*flags, *DEEPER)["state"].model.blocks] == expected


def test_flags_reach_the_optimiser(built):
    flags = ["--opt", "sgd", "--momentum", 0.7, "--weight-decay", 0.03, "--lr", 0.2, "--warmup-epochs", 0]
    optimizer = built(*flags)["state"].optimizer
    assert {group["momentum"] for group in optimizer.param_groups} == {0.7}
    # Biases and such are spared.
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.03, 0.0}
    assert {group["lr"] for group in optimizer.param_groups} == {0.2}
    assert isinstance(built("--opt", "adamw")["state"].optimizer, torch.optim.AdamW)


@pytest.mark.parametrize("smoothing", [0, 0.1, 0.4])
def test_smoothing(built, smoothing):
    parts = built("--smoothing", smoothing)
    assert parts["mixup"] is None
    scores, target = torch.randn(6, 2), torch.randint(0, 2, (6,))
    expected = torch.nn.functional.cross_entropy(scores, target, label_smoothing=smoothing)
    torch.testing.assert_close(parts["loss"](scores, target), expected)


@pytest.mark.parametrize("flags", [["--mixup", 0.8], ["--cutmix", 0.6], ["--mixup", 0.8, "--cutmix", 0.6]])
def test_mixing(built, flags):
    parts = built(*flags, "--smoothing", 0.2)
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    mixup = parts["mixup"]
    assert (mixup.mixup_alpha, mixup.cutmix_alpha) == (given.get("--mixup", 0), given.get("--cutmix", 0))
    _, target = mixup(torch.randn(4, 3, 8, 8), torch.tensor([0, 0, 0, 0]))
    # All of one class, so that only the smoothing is left.
    torch.testing.assert_close(target, torch.tensor([[0.9, 0.1]]).expand(4, 2))
    scores = torch.randn(4, 2)
    expected = torch.nn.functional.cross_entropy(scores, target)
    torch.testing.assert_close(parts["loss"](scores, target), expected)


def test_averages_as_asked_for(built):
    state = built("--model-ema", "--model-ema-decay", 0.75, "--model-ema-warmup")["state"]
    assert state.ema.decay == 0.75
    assert state.ema.use_warmup
    assert built("--model-ema")["state"].ema.decay == 0.9998
    assert built()["state"].ema is None


def test_precision_as_asked_for(built):
    for flags, dtype, scaled in (
        ([], None, False),
        (["--amp"], torch.bfloat16, False),
        (["--amp", "--amp-dtype", "float16"], torch.float16, True),
    ):
        parts = built(*flags, "--device", "cpu")
        with parts["precision"]:
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (dtype or torch.float32)
        assert parts["state"].scaler.is_enabled() == scaled


def test_checkpointed_gradients_are_the_same_gradients(train, summary_of):
    flags = ["--epochs", 2, "--warmup-epochs", 0, "--opt", "adamw", "--lr", 1e-3, "--drop-path", 0.3, *DEEPER]
    plain, checkpointed = (summary_of(train(*flags, *more)) for more in ([], ["--grad-checkpointing"]))
    assert np.allclose(losses(plain), losses(checkpointed), rtol=1e-4)


def test_averaged_weights(train, summary_of):
    folder = train("--epochs", 2, "--model-ema", "--model-ema-decay", 0.5, "--lr", 0.1, "--warmup-epochs", 0)
    names = list(summary_of(folder)[0])
    assert names == [*COLUMNS[:5], "eval_ema_loss", "eval_ema_top1", "eval_ema_top5", *COLUMNS[5:]]
    checkpoint = torch.load(folder / "last.pth.tar", weights_only=True)
    ours, average = checkpoint["state_dict"], checkpoint["state_dict_ema"]
    assert ours.keys() == average.keys()
    assert any(not torch.equal(ours[name], average[name]) for name in ours)
    row = summary_of(folder)[-1]
    assert 0 <= row["eval_ema_top1"] <= 100
    assert row["eval_ema_loss"] != row["eval_loss"]


def test_warm_up_then_cosine(train, summary_of):
    rates = ["--lr", 0.1, "--warmup-lr", 0.01, "--min-lr", 0.001]
    rows = summary_of(train("--epochs", 5, "--warmup-epochs", 2, *rates))
    cosine = [0.001 + 0.099 * (1 + math.cos(math.pi * epoch / 5)) / 2 for epoch in range(5)]
    assert [row["lr"] for row in rows] == pytest.approx([0.01, 0.055, *cosine[2:]], rel=1e-5)


def test_schedule_by_updates(train, summary_of):
    flags = ["--epochs", 4, "--lr", 0.1, "--warmup-epochs", 1, "--warmup-lr", 0.02]
    rows = summary_of(train(*flags, "--sched-on-updates"))
    # Four updates an epoch, one epoch of warm-up, and then the cosine over all sixteen.
    cosine = [0.1 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert [row["lr"] for row in rows] == pytest.approx([0.02, *cosine[1:]], rel=1e-5)


@pytest.mark.parametrize(
    ("opt", "scaled"), [("sgd", 0.1 * 4 / 256), ("adamw", 0.1 * math.sqrt(4 / 256)), ("lion", 0.1 * 4 / 256)]
)
def test_learning_rate_scales_with_the_batch(train, summary_of, opt, scaled):
    folder = train("--epochs", 1, "--opt", opt, "--warmup-epochs", 0)
    assert summary_of(folder)[0]["lr"] == pytest.approx(scaled)
    assert yaml.safe_load((folder / "args.yaml").read_text())["lr"] == pytest.approx(scaled)


def test_given_learning_rate_is_not_scaled(train, summary_of):
    folder = train("--epochs", 1, "--lr", 0.03, "--lr-base", 0.5, "--warmup-epochs", 0)
    assert summary_of(folder)[0]["lr"] == 0.03


@pytest.mark.parametrize("name", ["validation", "valid"])
def test_other_names_of_the_evaluation_folder(train, summary_of, tmp_path, name):
    data = write_images(tmp_path / "data", val_name=name)
    assert len(summary_of(train("--epochs", 1, data=data))) == 1


def test_images_of_odd_sizes_and_modes(train, summary_of, tmp_path):
    data = write_images(tmp_path / "data")
    for split in ("train", "val"):
        for name, value in (("dark", 70), ("light", 185)):
            folder = data / split / name
            Image.new("L", (5, 31), value).save(folder / "grey.png")
            Image.new("RGBA", (40, 3), (value, value, value, 128)).save(folder / "transparent.png")
            palette = Image.new("P", (9, 9), 1)
            palette.putpalette([0, 0, 0, value, value, value])
            palette.save(folder / "palette.png")
            Image.new("L", (1, 1), value).save(folder / "point.jpg")
            Image.new("CMYK", (12, 12), (value, 0, 0, 0)).save(folder / "cmyk.jpeg")
    (row,) = summary_of(train("--epochs", 1, data=data))
    assert math.isfinite(row["train_loss"])
    assert math.isfinite(row["eval_loss"])


def test_with_loader_processes(train, summary_of, capfd):
    flags = ["--epochs", 2, "--opt", "adamw", "--lr", 1e-3, "--warmup-epochs", 0]
    alone, helped = summary_of(train(*flags, "--no-aug")), summary_of(train(*flags, "--no-aug", "-j", 2))
    # Without augmentation the processes have nothing random to do; the order is drawn in this one.
    assert helped[0]["eval_top5"] == 100
    assert helped[-1]["train_loss"] == pytest.approx(alone[-1]["train_loss"], rel=0.2)
    assert capfd.readouterr().err == ""


def test_log_is_plain_lines(train, capsys):
    train("--epochs", 2, "--log-interval", 2)
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert "\r" not in out
    lines = out.splitlines()
    assert lines[0].startswith("kat_tiny_patch16_224: ")
    assert "16 training and 8 evaluation images, 2 classes" in lines[1]
    batches = [
        re.match(r"Train: (\d)/2 \[ *(\d+)/4\]  loss (\S+)  top-1 (\S+)%  ([\d.]+) images/s ", line) for line in lines
    ]
    # Four batches an epoch: the first, the third, and the last.
    assert [match.groups()[:2] for match in batches if match] == [
        *(("1", "1"), ("1", "3"), ("1", "4"), ("2", "1"), ("2", "3"), ("2", "4"))
    ]
    epochs = [line for line in lines if line.startswith("Epoch ")]
    assert len(epochs) == 2
    for words in ("train loss", "eval loss", "top-1", "images/s"):
        assert all(words in line for line in epochs)
    assert epochs[0].endswith("best")


def test_rate_is_that_of_the_clock(train, summary_of):
    start = time.perf_counter()
    (row,) = summary_of(train("--epochs", 1))
    # An epoch, and sixteen images in it, cannot have taken longer than all of the run.
    whole = time.perf_counter() - start
    assert row["images_per_second"] > 16 / whole
    assert 16 / row["images_per_second"] < row["seconds"] < whole


@pytest.mark.parametrize("lr", ["1e12", "1e38"])
def test_diverging_run_stops_with_one_line(images, tmp_path, capsys, lr):
    status = train_and_fail(images, tmp_path / "output", "--lr", lr, "--warmup-epochs", 0, "--epochs", 9)
    out, err = capsys.readouterr()
    assert status == 1
    assert len(err.splitlines()) == 1
    assert re.match(r"flashkat train: error: the loss is (nan|inf) in epoch \d, batch \d, at .*: try a lower --lr", err)
    assert f"at the learning rate {float(lr):.3g}: " in err
    assert err.endswith("--find-nonfinite names the layer where it begins\n")
    assert "9/9" not in out


def test_diverging_in_the_last_update(images, tmp_path, capsys):
    flags = ["--lr", "1e30", "--warmup-epochs", 0, "--epochs", 1, "-b", 16]
    assert train_and_fail(images, tmp_path / "output", *flags) == 1


def test_interrupt_after_an_epoch_keeps_it(images, tmp_path, capsys, monkeypatch, summary_of):
    from flashkat.training import loop

    real, calls = loop.evaluate, []

    def interrupt(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "evaluate", interrupt)
    assert train_and_fail(images, tmp_path / "output", "--epochs", 9) == 130
    folder = tmp_path / "output" / "run"
    hint = f"go on with the same flags and --resume {folder / 'last.pth.tar'}"
    assert capsys.readouterr().err == f"flashkat train: error: interrupted: {hint}\n"
    assert len(summary_of(folder)) == 2
    assert torch.load(folder / "last.pth.tar", weights_only=True)["epoch"] == 1


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
def test_timms_less_usual_flags_run(train, summary_of, flags):
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


def test_evaluation_now_and_then(train):
    with (train("--epochs", 5, "--val-interval", 2) / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows if row["eval_loss"]] == ["1", "3", "4"]


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


def test_augmentation_that_an_image_is_too_small_for(refused):
    err = refused("--gaussian-blur-prob", "1", at_once=False)
    assert "cannot augment the image" in err


def test_a_loaders_process_that_dies_while_something_else_runs(images, tmp_path, monkeypatch, capsys):
    """PyTorch raises its error in whatever runs."""

    def draw(rows, path):
        raise RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. ")

    monkeypatch.setattr("flashkat.training.outputs.folder.draw_curves", draw)
    assert train_and_fail(images, tmp_path, "--epochs", 1) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "loading images stopped: DataLoader worker (pid 3) is killed by signal: Killed; try fewer --workers" in err


def test_a_loaders_process_that_dies_during_an_evaluation(images, train, monkeypatch, capsys):
    def forward(*args):
        raise RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. ")

    checkpoint = train("--epochs", 1) / "last.pth.tar"
    monkeypatch.setattr(sys.modules["flashkat.evaluation.validate"], "evaluate", forward)
    assert main(["validate", str(images), "--checkpoint", str(checkpoint), "-j", "0"]) == 2
    assert "error: loading images stopped: DataLoader worker (pid 3)" in capsys.readouterr().err


def test_a_run_keeps_the_name_of_its_start_and_takes_no_function(tmp_path):
    """Nothing is written before."""
    model = Model(model=tiny.MODEL, model_kwargs={**tiny.KWARGS, "act_init": torch.sin})
    with pytest.raises(InputError, match="act_init of a run has to be a name"):
        training.train(Config(model=model, output=Output(output=str(tmp_path / "runs"))))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"parallel": training.Parallel(grad_accum_steps=-1)}, "--grad-accum-steps must be at least 1, not -1"),
        ({"optimizer": training.Optimizer(clip_grad=-1.0)}, "--clip-grad must be more than 0, not -1.0"),
        ({"schedule": training.Schedule(lr=0.0)}, "--lr must be more than 0, not 0.0"),
        ({"schedule": training.Schedule(lr_base_scale="Sqrt")}, "--lr-base-scale must be one of '', 'linear', 'sqrt'"),
        ({"schedule": training.Schedule(epochs=1.5)}, "--epochs must be a whole number, not 1.5"),
        ({"output": Output(eval_metric="acc1")}, "--eval-metric must be one of 'top1', 'top5', 'loss', not 'acc1'"),
        ({"output": Output(log_interval=0)}, "--log-interval must be at least 1, not 0"),
        ({"mixing": training.Mixing(cutmix_minmax=(0.5,))}, "--cutmix-minmax takes 2 numbers, not (0.5,)"),
        ({"model": Model(model_kwargs=None)}, "--model-kwargs must not be None"),
    ],
)
def test_values_that_their_flags_refuse(section, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        training.train(Config(**section))
