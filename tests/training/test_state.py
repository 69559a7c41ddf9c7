"""A run that is stopped and resumed gives the same results as an uninterrupted one."""

import csv
import shutil

import pytest
import tiny
import torch
import yaml

from flashkat.checkpoints.export import renamed_for
from flashkat.cli.main import main
from flashkat.training.state import read_resumed

# All that is random: augmentation, erasing, mixing, dropping.
RANDOM = ["--mixup", 0.5, "--reprob", 0.5, "--drop", 0.2, "--drop-path", 0.3, "--aa", "rand-m9-mstd0.5"]
RANDOM += ["--model-kwargs", "patch_size=4", "embed_dim=16", "depth=2", "num_heads=2"]
TIMES = ("images_per_second", "data_wait", "seconds")
AVERAGED = ["--model-ema", "--model-ema-decay", 0.9, "--model-ema-warmup"]


def rows_of(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return [{**row, **dict.fromkeys(TIMES, "")} for row in csv.DictReader(file)]


def tensors_in(value, path=""):
    """All tensors and numbers of a checkpoint, by where they are."""
    if isinstance(value, dict):
        return {name: leaf for key in value for name, leaf in tensors_in(value[key], f"{path}/{key}").items()}
    if isinstance(value, list):
        return {
            name: leaf for key, item in enumerate(value) for name, leaf in tensors_in(item, f"{path}/{key}").items()
        }
    return {path: value}


def assert_equal(folder, other, name="last"):
    """The same bits in every part of the checkpoints, and the same summary, but for times and names."""
    assert rows_of(folder) == rows_of(other)
    a, b = (torch.load(path / f"{name}.pth.tar", weights_only=True) for path in (folder, other))
    for checkpoint in (a, b):
        for key in ("experiment", "resume"):
            del checkpoint["args"][key]
        for row in checkpoint["run"]["history"]:
            for name in TIMES:
                row.pop(name, None)  # an epoch that is resumed at its evaluation has no speed
    a, b = tensors_in(a), tensors_in(b)
    assert a.keys() == b.keys()
    different = [key for key in a if not (torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key])]
    assert different == []


@pytest.mark.parametrize(
    "flags",
    [
        [*RANDOM, *AVERAGED, "--opt", "adamw", "--lr", 1e-3],
        [*RANDOM, "--opt", "sgd", "--lr", 0.1, "--sched-on-updates", "--grad-accum-steps", 3, "-j", 2],
        ["--opt", "lamb", "--lr", 1e-2, "--sched", "step", "--amp", "--amp-dtype", "float16", "--clip-grad", 1.0],
        [
            "--opt",
            "adamw",
            "--lr",
            1e-2,
            "--sched",
            "plateau",
            "--lr-noise",
            0.3,
            "--rational-lr-scale",
            0.1,
            "--torchcompile",
            "aot_eager",
        ],
        [
            *("--model-dtype", "bfloat16", *AVERAGED, "--opt", "lookahead_adamw", "--lr", 1e-2, "--layer-decay", 0.7),
            *("--channels-last", "--no-prefetcher", "--reprob", 0.5, "--lr-noise", 0.1),
        ],
        ["--opt", "lookahead_adafactorbv", "--lr", 1e-2, "--reprob", 0.5],
        [
            *("--aug-splits", 2, "--jsd-loss", "--reprob", 0.5, "--opt", "adamw", "--lr", 1e-2),
            *("--val-interval", 2, "--eval-metric", "loss", "--tta", 2),
        ],
    ],
    ids=["all that is random", "loader processes", "scaled loss", "plateau", "low precision", "dtypes", "views"],
)
def test_two_epochs_and_two_are_four(train, flags):
    flags = ["--epochs", 4, "--warmup-epochs", 1, *flags]
    straight = train(*flags, experiment="straight")
    resumed = train(*flags, "--resume", straight / "checkpoint-1.pth.tar", experiment="resumed")
    assert len(rows_of(straight)) == 4
    assert_equal(straight, resumed)


@pytest.mark.parametrize("loading", [["-j", 0], ["-j", 2], ["-j", 2, "--use-multi-epochs-loader"]], ids=str)
def test_in_the_middle_of_an_epoch(train, loading):
    flags = ["--epochs", 2, *RANDOM, *AVERAGED, "--opt", "adamw", "--recovery-interval", 1, "-b", 2, *loading]
    flags += ["--grad-accum-steps", 3, "--sched-on-updates"]
    straight = train(*flags, experiment="straight")
    # 8 batches are 3 updates, the last one of 2 batches.
    assert {path.name for path in straight.glob("recovery*")} == {"recovery-1-1.pth.tar", "recovery-1-2.pth.tar"}
    recovery = torch.load(straight / "recovery-1-1.pth.tar", weights_only=True)
    assert (recovery["epoch"], recovery["run"]["batch"], recovery["run"]["updates"]) == (1, 6, 5)
    for number in (1, 2):
        resumed = train(*flags, "--resume", straight / f"recovery-1-{number}.pth.tar", experiment="resumed")
        assert_equal(straight, resumed)


@pytest.mark.parametrize(
    "flags",
    [
        ["--lr-noise", 0.0, "--warmup-epochs", 0],
        ["--sched", "multistep", "--decay-milestones", 1, "--warmup-epochs", 0],
        ["--sched", "tanh", "--warmup-epochs", 0],
        ["--sched", "none"],
        ["--sched-on-updates", "--lr-noise", 0.0],
    ],
    ids=str,
)
def test_in_the_middle_of_the_first_epoch(train, flags):
    """timm's schedules give another rate for epoch 0 than the one that they are made with."""
    flags = ["--epochs", 2, "--opt", "adamw", "--lr", 1e-2, "--recovery-interval", 2, "-b", 4, *flags]
    kept = train(*flags, "--epochs", 1, experiment="kept") / "recovery-0-1.pth.tar"
    checkpoint = torch.load(kept, weights_only=True)
    checkpoint["args"]["epochs"] = 2
    torch.save(checkpoint, kept)
    straight = train(*flags, experiment="straight")
    assert_equal(straight, train(*flags, "--resume", kept, experiment="resumed"))


@pytest.mark.parametrize("changed", [["-b", 2], ["--grad-accum-steps", 2]], ids=str)
def test_a_schedule_of_updates_with_other_batches(train, changed):
    """Updates of the epochs so far are counted in the new batches."""
    flags = ["--epochs", 4, "--opt", "adamw", "--lr", 1e-3, "--sched-on-updates", "--warmup-epochs", 1]
    first = train(*flags, experiment="first")
    straight = train(*flags, *changed, experiment="straight")
    again = train(*flags, *changed, "--resume", first / "checkpoint-1.pth.tar", experiment="again")
    assert [row["lr"] for row in rows_of(again)][2:] == [row["lr"] for row in rows_of(straight)][2:]


@pytest.mark.parametrize("sched", ["none", "cosine", "plateau"])
def test_new_settings_of_the_optimiser_take_effect(train, sched):
    flags = ["--epochs", 2, "--sched", sched, "--warmup-epochs", 0, "--opt", "adamw"]
    begun = ["--lr", 1e-3, "--weight-decay", 0.1, "--rational-lr-scale", 0.5, "--rational-weight-decay", 0.3]
    begun += ["--layer-decay", 0.9, "--opt-kwargs", "maximize=True"]
    changed = ["--lr", 3e-3, "--weight-decay", 0.2, "--rational-lr-scale", 0.7, "--rational-weight-decay", 0.4]
    changed += ["--layer-decay", 0.8, "--opt-eps", 1e-6, "--opt-betas", 0.8, 0.99]
    first = train(*flags, *begun, experiment="first")
    straight = train(*flags, *changed, experiment="straight")
    again = train(*flags, *changed, "--resume", first / "checkpoint-0.pth.tar", experiment="again")
    expected, found = (
        torch.load(folder / "last.pth.tar", weights_only=True)["optimizer"]["param_groups"]
        for folder in (straight, again)
    )
    assert found == expected


@pytest.mark.parametrize(
    ("begun", "changed", "words"),
    [
        ([], ["--batch-size", 4], "with --batch-size 2: give that"),
        ([], ["--grad-accum-steps", 4], "with --grad-accum-steps 1: give that"),
        ([], ["--seed", 7], "with --seed 42: give that"),
        ([], ["--epoch-repeats", 2], "with --epoch-repeats 0.0: give that"),
        (["--val-fraction", 0.5], [], "with --val-fraction 0.5: give that"),
        ([], ["--class-map", "classes.txt"], "without --class-map: leave it out"),
    ],
)
def test_an_epoch_is_ended_in_the_batches_it_began_with(train, begun, changed, words, capsys, images, tmp_path):
    data = images / "train" if begun[:1] == ["--val-fraction"] else images
    flags = ["--recovery-interval", 1, "--grad-accum-steps", 1, "--opt", "sgd", *begun]
    straight = train("--epochs", 2, "-b", 2, *flags, data=data)
    (tmp_path / "classes.txt").write_text("dark\nlight\n")
    argv = ["train", images, *tiny.FLAGS, "-j", 0, "-b", 2, "--epochs", 3, "--opt", "sgd"]
    argv += [tmp_path / word if word == "classes.txt" else word for word in changed]
    capsys.readouterr()
    recovery = min(straight.glob("recovery-1-*"))
    assert main([str(each) for each in [*argv, "--resume", recovery]]) == 2
    err = capsys.readouterr().err
    assert f"{recovery} is from the middle of an epoch {words}, or resume from last.pth.tar\n" in err
    # Between two epochs nothing is cut.
    if "--class-map" not in changed:
        assert main([str(each) for each in [*argv, "--resume", straight / "last.pth.tar"]]) == 0


@pytest.mark.parametrize("count", [4, 12])
def test_an_epoch_of_a_data_set_that_has_other_images(train, count, capsys, images, tmp_path):
    straight = train("--epochs", 2, "--recovery-interval", 1, "-b", 2, "--opt", "sgd")
    recovery = straight / "recovery-1-6.pth.tar"
    other = tiny.write_images(tmp_path / "other", train=count)
    argv = ["train", other, *tiny.FLAGS, "-j", 0, "-b", 2, "--epochs", 3, "--opt", "sgd", "--resume"]
    has = f"is from after batch 7 of an epoch, and this data has {2 * count} images in {count} batches"
    assert main([str(each) for each in [*argv, recovery]]) == 2
    assert f"{has}, not 16 in 8: give the run's data, or resume" in capsys.readouterr().err
    assert main([str(each) for each in [*argv, straight / "last.pth.tar"]]) == 0
    # An older checkpoint does not say what the epoch began with.
    checkpoint = torch.load(recovery, weights_only=True)
    del checkpoint["run"]["batches"], checkpoint["run"]["images"]
    torch.save(checkpoint, recovery)
    capsys.readouterr()
    assert main([str(each) for each in [*argv, recovery]]) == (2 if count < 7 else 0)
    assert (f"{has}: give the run's data" in capsys.readouterr().err) == (count < 7)


def test_goes_on_in_its_folder(train, images, tmp_path, capsys):
    flags = ["--epochs", 4, "--opt", "adamw", "--lr", 1e-3, *AVERAGED]
    straight = train(*flags, experiment="straight")
    stopped = tmp_path / "output" / "stopped"
    shutil.copytree(straight, stopped)
    for epoch in (2, 3):
        (stopped / f"checkpoint-{epoch}.pth.tar").unlink()
    argv = ["train", images, *tiny.FLAGS, "-j", 0, "-b", 4, *flags, "--resume", stopped / "checkpoint-1.pth.tar"]
    capsys.readouterr()
    assert main([str(argument) for argument in argv]) == 0
    out = capsys.readouterr().out
    assert f"Continuing {stopped / 'checkpoint-1.pth.tar'} in epoch 3, after 8 updates" in out
    assert f"The run is in {stopped}\n" in out
    assert rows_of(stopped) == rows_of(straight)
    assert {path.name for path in stopped.iterdir()} == {path.name for path in straight.iterdir()}
    flags = yaml.safe_load((stopped / "args.yaml").read_text())
    assert (flags["resume"], flags["experiment"], flags["epochs"]) == ("", "", 4)
    a, b = (torch.load(path / "last.pth.tar", weights_only=True)["state_dict"] for path in (straight, stopped))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_averages_that_are_left_out_are_named(train, capsys):
    first = train("--epochs", 1, *AVERAGED)
    capsys.readouterr()
    train("--epochs", 2, "--resume", first / "last.pth.tar", experiment="without")
    assert capsys.readouterr().out.count("Its averaged weights are left out, as this run has no --model-ema") == 1
    train("--epochs", 2, *AVERAGED, "--resume", first / "last.pth.tar", experiment="with")
    assert "averaged weights are left out" not in capsys.readouterr().out


def test_more_epochs_than_planned(train):
    short = train("--epochs", 1, "--opt", "adamw", "--lr", 1e-3, experiment="short")
    longer = train("--epochs", 3, "--opt", "adamw", "--lr", 1e-3, "--resume", short / "last.pth.tar", experiment="long")
    straight = train("--epochs", 3, "--opt", "adamw", "--lr", 1e-3, experiment="straight")
    # The schedule is that of the flags.
    assert [row["lr"] for row in rows_of(longer)] == [row["lr"] for row in rows_of(straight)]
    assert len(rows_of(short)) == 1


def test_start_epoch(train):
    """It wins over the checkpoint, whose epoch ends there."""
    flags = ["--epochs", 3, "--opt", "adamw", "--lr", 1e-3, "--recovery-interval", 1]
    straight = train(*flags, experiment="straight")
    recovery = straight / "recovery-2-2.pth.tar"
    again = train(*flags, "--resume", recovery, "--start-epoch", 1, experiment="again")
    last = torch.load(again / "last.pth.tar", weights_only=True)["run"]
    assert (last["epoch"], last["updates"]) == (3, 12)
    assert [row["epoch"] for row in rows_of(again)] == ["0", "1", "2"]


def test_a_best_epoch_that_is_trained_again_is_forgotten(train):
    flags = ["--opt", "adamw", "--lr", 1e-3, "--warmup-epochs", 0]
    first = train("--epochs", 2, *flags, experiment="first")
    checkpoint = torch.load(first / "last.pth.tar", weights_only=True)
    for row, top1 in zip(checkpoint["run"]["history"], (12.3457, 100.0), strict=True):
        row["eval_top1"] = top1

    def best_of(best, start):
        checkpoint["run"]["best"] = {"metric": best, "weights": "state_dict"}
        torch.save(checkpoint, first / "changed.pth.tar")
        again = train(
            "--epochs", 3, *flags, "--resume", first / "changed.pth.tar", "--start-epoch", start, experiment="again"
        )
        rows = rows_of(again)
        assert [row["epoch"] for row in rows] == ["0", "1", "2"]
        found = torch.load(again / "last.pth.tar", weights_only=True)["run"]["best"]["metric"]
        return found, max(float(row["eval_top1"]) for row in rows)

    found, highest = best_of(100.0, start=1)
    assert round(found, 4) == highest
    # Kept: the epoch is not trained again, or it is none of the rows'.
    assert best_of(100.0, start=2)[0] == 100
    assert best_of(101.0, start=1)[0] == 101


def test_without_the_state_of_the_optimiser(train):
    first = train("--epochs", 1, "--opt", "adamw", "--lr", 1e-3)
    flags = ["--opt", "sgd", "--lr", 1e-3, "--no-resume-opt", "--resume", first / "last.pth.tar"]
    other = train("--epochs", 2, *flags, experiment="other")
    assert [row["epoch"] for row in rows_of(other)] == ["0", "1"]


def test_a_plateau_schedule_without_the_state_of_the_optimiser(train):
    """It goes on at the share of the first rate to which it had come."""
    # With two classes, no evaluation is better than the first one.
    flags = ["--sched", "plateau", "--eval-metric", "top5", "--patience-epochs", 0, "--decay-rate", 0.5]
    flags += ["--warmup-epochs", 1, "--warmup-lr", 1e-7, "--epochs", 5, "--opt", "sgd", "--lr"]
    straight = train(*flags, 1e-6, experiment="straight")
    expected = [float(row["lr"]) for row in rows_of(straight)]
    assert expected == pytest.approx([1e-7, 1e-6, 1e-6, 5e-7, 2.5e-7])
    for epoch, lr in ((0, 1e-6), (2, 1e-6), (2, 2e-6)):
        argv = [*flags, lr, "--no-resume-opt", "--resume", straight / f"checkpoint-{epoch}.pth.tar"]
        found = [float(row["lr"]) for row in rows_of(train(*argv, experiment="again"))][epoch + 1 :]
        assert found == pytest.approx([lr / 1e-6 * rate for rate in expected[epoch + 1 :]])


def test_a_plateau_schedule_from_another_rate(train):
    """The new rate has come to the same share."""
    flags = ["--sched", "plateau", "--eval-metric", "top5", "--patience-epochs", 0, "--decay-rate", 0.5]
    flags += ["--warmup-epochs", 0, "--epochs", 4, "--opt", "sgd", "--lr"]
    first = train(*flags, 1e-6, experiment="first")
    assert [float(row["lr"]) for row in rows_of(first)] == pytest.approx([1e-6, 1e-6, 5e-7, 2.5e-7])
    again = train(*flags, 2e-6, "--resume", first / "checkpoint-2.pth.tar", experiment="again")
    assert float(rows_of(again)[-1]["lr"]) == pytest.approx(5e-7)


@pytest.mark.parametrize("sched", ["cosine", "plateau"])
@pytest.mark.parametrize("name", ["initial_lr", "lr_scale"])
def test_a_checkpoint_with_an_empty_rate_takes_that_of_the_flags(train, tmp_path, name, sched):
    flags = ["--sched", sched, "--warmup-epochs", 0, "--opt", "adamw", "--lr", 1e-3, "--epochs"]
    saved = torch.load(train(*flags, 1, experiment="first") / "last.pth.tar", weights_only=True)
    for group in saved["optimizer"]["param_groups"]:
        group[name] = None
    torch.save(saved, tmp_path / "odd.pth.tar")
    again = train(*flags, 2, "--resume", tmp_path / "odd.pth.tar", experiment="again")
    straight = train(*flags, 2, experiment="straight")
    assert [row["lr"] for row in rows_of(again)] == [row["lr"] for row in rows_of(straight)]


def test_best_so_far_is_kept(train):
    first = train("--epochs", 1, "--opt", "adamw", "--lr", 5e-3, "--warmup-epochs", 0, experiment="first")
    best = torch.load(first / "model_best.pth.tar", weights_only=True)
    # No epoch is better than 100 %.
    torch.save({**best, "run": {**best["run"], "best": {"metric": 100.0, "weights": "state_dict"}}}, first / "full.tar")
    second = train("--epochs", 3, "--opt", "adamw", "--lr", 5e-3, "--resume", first / "full.tar", experiment="second")
    assert torch.load(second / "model_best.pth.tar", weights_only=True)["epoch"] == 0
    assert torch.load(second / "last.pth.tar", weights_only=True)["best_metric"] == 100.0


def test_the_best_so_far_by_another_metric(train):
    first = train("--epochs", 1, "--opt", "adamw", experiment="first")
    checkpoint = torch.load(first / "last.pth.tar", weights_only=True)
    checkpoint["run"]["history"][0]["eval_loss"] = 1e-9
    torch.save(checkpoint, first / "changed.tar")
    flags = ["--opt", "adamw", "--eval-metric", "loss", "--resume", first / "changed.tar"]
    second = train("--epochs", 3, *flags, experiment="second")
    best = torch.load(second / "last.pth.tar", weights_only=True)["run"]["best"]
    assert best == {"metric": 1e-9, "weights": "state_dict", "epoch": 0}


def test_a_plateau_schedule_by_another_metric(train):
    """Its first evaluation is the best one."""
    flags = ["--sched", "plateau", "--patience-epochs", 0, "--decay-rate", 0.5, "--lr", 1e-6, "--warmup-epochs", 0]
    first = train(*flags, "--epochs", 3, "--opt", "sgd", "--eval-metric", "top5", experiment="first")
    assert [float(row["lr"]) for row in rows_of(first)] == [1e-6, 1e-6, 5e-7]
    flags += ["--eval-metric", "loss", "--resume", first / "checkpoint-0.pth.tar"]
    second = train(*flags, "--epochs", 3, "--opt", "sgd", experiment="second")
    assert [float(row["lr"]) for row in rows_of(second)] == [1e-6] * 3


def test_a_plateau_schedule_by_the_flags_of_the_resumed_run(train):
    # With two classes, no evaluation is better than the first one.
    flags = ["--sched", "plateau", "--eval-metric", "top5", "--patience-epochs", 0, "--lr", 1e-6, "--warmup-epochs", 0]
    flags += ["--opt", "sgd", "--epochs", 4]
    first = train(*flags, "--decay-rate", 0.5, experiment="first")
    assert [float(row["lr"]) for row in rows_of(first)] == pytest.approx([1e-6, 1e-6, 5e-7, 2.5e-7])
    flags += ["--decay-rate", 0.1, "--resume", first / "checkpoint-1.pth.tar"]
    again = [float(row["lr"]) for row in rows_of(train(*flags, experiment="second"))]
    assert again == pytest.approx([1e-6, 1e-6, 5e-7, 5e-8])


def test_a_checkpoint_of_timms_scripts(train):
    """Which has no more than weights, the optimiser, and the epoch."""
    first = train("--epochs", 2, "--opt", "adamw", "--lr", 1e-3, experiment="first")
    checkpoint = torch.load(first / "last.pth.tar", weights_only=True)
    kept = {key: checkpoint[key] for key in ("arch", "epoch", "state_dict", "optimizer", "version")}
    torch.save(kept, first / "timm.pth.tar")
    second = train(
        "--epochs", 3, "--opt", "adamw", "--lr", 1e-3, "--resume", first / "timm.pth.tar", experiment="other"
    )
    assert [row["epoch"] for row in rows_of(second)] == ["2"]
    assert torch.load(second / "last.pth.tar", weights_only=True)["run"]["updates"] == 12


# As KAT's code registers the parts of its MLP; ours has act1 first.
KAT_ORDER = ("fc1", "act1", "act2", "fc2")


def in_kats_order(names):
    def key(name):
        block, mlp, part = name.partition(".mlp.")
        first = next(number for number, other in enumerate(names) if other.startswith(block + mlp))
        return first, KAT_ORDER.index(part.split(".")[0]) if mlp else 0

    return sorted(names, key=key)


def as_kats_code_has_it(checkpoint):
    """A checkpoint of ours with the names, and in the order, of KAT's code, its optimiser's state too."""
    state, optimizer = checkpoint["state_dict"], checkpoint["optimizer"]
    spared = [
        name for name, value in state.items() if value.ndim == 1 or name.endswith((".bias", "cls_token", "pos_embed"))
    ]
    decayed = [name for name in state if name not in spared]
    groups, moments = [], {}
    for group, names in zip(optimizer["param_groups"], (spared, decayed), strict=True):
        number_of = dict(zip(names, group["params"], strict=True))
        groups.append({**group, "params": []})
        for name in in_kats_order(names):
            groups[-1]["params"].append(len(moments))
            moments[len(moments)] = optimizer["state"][number_of[name]]
    weights = renamed_for(state, "kat", "ours")
    return {
        **{key: checkpoint[key] for key in ("arch", "epoch", "args", "version")},
        "state_dict": {name: weights[name] for name in in_kats_order(list(weights))},
        "optimizer": {"state": moments, "param_groups": groups},
    }


def test_a_checkpoint_of_kats_code(train):
    """Its optimiser numbers the parameters in another order; training goes on to the same bits."""
    kat = ["--opt", "adamw", "--lr", 1e-3, "--weight-decay", 0.05, "--model", "kat_tiny_swish_patch16_224"]
    first = train("--epochs", 2, *kat, experiment="first")
    checkpoint = torch.load(first / "last.pth.tar", weights_only=True)
    torch.save(as_kats_code_has_it(checkpoint), first / "kat.pth.tar")
    results = [
        torch.load(
            train("--epochs", 3, *kat, "--resume", first / name, experiment=name) / "last.pth.tar", weights_only=True
        )
        for name in ("last.pth.tar", "kat.pth.tar")
    ]
    ours, theirs = (tensors_in({key: result[key] for key in ("state_dict", "optimizer")}) for result in results)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if torch.is_tensor(ours[key]) and not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize(("saved", "lists"), [(None, True), ([], True), (["dark", "light"], False)])
def test_classes_that_one_side_does_not_list(train, saved, lists):
    """They are not other classes."""
    last = train("--epochs", 1, "--opt", "adamw") / "last.pth.tar"
    checkpoint = torch.load(last, weights_only=True)
    if saved is None:
        del checkpoint["classes"]
    else:
        checkpoint["classes"] = saved
    torch.save(checkpoint, last)
    resumed = read_resumed(str(last), ["cat", "dog", "cow"] if lists else [])
    assert resumed["epoch"] == 0


@pytest.fixture
def refused(images, tmp_path, capsys):
    """The one line that a command is refused with."""

    def run(*flags):
        before = {path: path.read_bytes() for path in (tmp_path / "output").rglob("*") if path.is_file()}
        argv = [
            "train",
            images,
            *tiny.FLAGS,
            "-j",
            0,
            "-b",
            4,
            "--opt",
            "adamw",
            "--output",
            tmp_path / "output",
            *flags,
        ]
        capsys.readouterr()
        assert main([str(argument) for argument in argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert {path: path.read_bytes() for path in (tmp_path / "output").rglob("*") if path.is_file()} == before
        return err

    return run


def test_what_cannot_be_resumed(train, refused, tmp_path):
    last = train("--epochs", 1, "--opt", "adamw") / "last.pth.tar"
    err = refused("--resume", last, "--model", "vit_small_patch16_224")
    assert "is of a run of kat_tiny_patch16_224, not vit_small_patch16_224: give --model kat_tiny_patch16_224" in err
    err = refused("--resume", last, "--num-classes", 5)
    assert "the flags give another model than that of" in err
    assert "take the flags of its args.yaml, with -c" in err
    assert "2 of another shape (head.weight" in err
    # Another name of the same model is not what is wrong.
    err = refused("--resume", last, "--model", "flash_kat_tiny_patch16_224", "--num-classes", 5)
    assert "2 of another shape (head.weight" in err
    assert "was trained with --opt adamw: give that, or --no-resume-opt" in refused("--resume", last, "--opt", "sgd")
    assert "optimiser with other parameters" in refused("--resume", last, "--rational-lr-scale", 0.5)
    saved = torch.load(last, weights_only=True)
    saved["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)
    torch.save(saved, tmp_path / "shapes.pth.tar")
    err = refused("--resume", tmp_path / "shapes.pth.tar", "--epochs", 2)
    assert "optimiser with other parameters: give its flags, or --no-resume-opt: exp_avg of shape (7,), not (" in err
    assert "has all of its 1 epochs: give more --epochs" in refused("--resume", last, "--epochs", 1)
    assert "no checkpoint at" in refused("--resume", tmp_path / "none.pth.tar")
    torch.save(torch.load(last, weights_only=True)["state_dict"], tmp_path / "weights.pth")
    assert "holds weights, but not the state of a run: " in refused("--resume", tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("of", "name", "value"),
    [
        *(("state", "exp_avg_sq", value) for value in (None, 7)),
        *(("state", "step", value) for value in (-1, "many", "bool", "complex64", "float8_e4m3fn")),
        ("group", "amsgrad", True),
    ],
)
def test_an_optimiser_that_cannot_step_is_refused_in_one_line(train, images, tmp_path, capsys, of, name, value):
    saved = torch.load(train("--epochs", 1, "--opt", "adamw") / "last.pth.tar", weights_only=True)
    optimizer = saved["optimizer"]
    for owner in optimizer["state"].values() if of == "state" else optimizer["param_groups"]:
        if value == "many":
            owner[name] = torch.ones(7)
        elif isinstance(value, str):
            owner[name] = owner[name].to(getattr(torch, value))
        elif of == "state" and value is None:
            del owner[name]
        else:
            owner[name] = value
    torch.save(saved, tmp_path / "odd.pth.tar")
    capsys.readouterr()
    argv = ["train", images, *tiny.FLAGS, "-j", 0, "-b", 4, "--opt", "adamw", "--epochs", 2, "--output", tmp_path]
    status = main([str(each) for each in (*argv, "--experiment", "b", "--resume", tmp_path / "odd.pth.tar")])
    err = capsys.readouterr().err
    assert status == 2, err
    assert err.count("\n") == 1
    assert "a state of the optimiser that cannot be used" in err or "optimiser with other parameters" in err
    assert "give --no-resume-opt" in err or "or --no-resume-opt" in err
    assert not (tmp_path / "b").exists()


def test_other_classes_cannot_be_resumed(train, refused, tmp_path):
    last = train("--epochs", 1, "--opt", "adamw") / "last.pth.tar"
    checkpoint = torch.load(last, weights_only=True)
    torch.save({**checkpoint, "classes": ["cat", "dog"]}, tmp_path / "animals.pth.tar")
    err = refused("--resume", tmp_path / "animals.pth.tar")
    assert "is of a run with other classes: 2 from cat to dog, not 2 from dark to light" in err


def test_sharding_needs_several_processes(refused):
    assert "--fsdp shards over several processes: start with torchrun" in refused("--fsdp")
