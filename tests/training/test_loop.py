"""The loop itself, on models and batches small enough to follow by hand."""

import copy
import os
import re
from contextlib import nullcontext

import pytest
import tiny
import torch
from processes import forked, free_port
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

from flashkat.cli.main import main, run
from flashkat.errors import DivergedError
from flashkat.evaluation.metrics import Metrics
from flashkat.training import loop
from flashkat.training.outputs.folder import RunFolder
from flashkat.training.state import TrainingState
from flashkat.training.step import TrainingStep


class Recorder:
    """Progress that remembers what it was told, and calls back after every batch."""

    def __init__(self, after_batch=lambda: None):
        self.lines, self.batches, self.after_batch = [], [], after_batch

    def say(self, line):
        self.lines.append(line)

    def batch(self, epoch, index, metrics, rate):
        self.batches.append((epoch, index, metrics, rate))
        self.after_batch()


def batches(count=3, size=4, features=5, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, features, generator=generator), torch.randint(0, classes, (size,), generator=generator))
        for _ in range(count)
    ]


@pytest.fixture
def start(training_config, tmp_path):
    """Builds a state and runs it; returns the state, the folder and the recorder."""

    def run(
        model=None,
        flags=(),
        train=None,
        val=None,
        lr=0.1,
        ema=None,
        sched=None,
        mixup=None,
        loss=None,
        recorder=None,
        scaler=False,
        prepare=lambda state: None,
    ):
        config = training_config("--output", tmp_path, "--experiment", "run", *flags)
        model = model or nn.Linear(5, 7)
        train = batches() if train is None else train
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        state = TrainingState(
            model=model,
            optimizer=optimizer,
            scheduler=sched and create_scheduler_v2(optimizer, updates_per_epoch=len(train), **sched)[0],
            scaler=torch.amp.GradScaler("cpu", enabled=scaler, init_scale=2.0**8),
            ema=None if ema is None else ModelEmaV3(model, decay=ema),
            classes=list("abcdefg"),
            epochs=config.schedule.epochs,
            name=config.model.name,
            flags=config.flags(),
        )
        recorder = recorder or Recorder()
        prepare(state)
        folder = RunFolder(config.output, config.model.name, 8, config.flags())
        val, loss_function = batches(2, seed=1) if val is None else val, loss or nn.CrossEntropyLoss()
        step = TrainingStep(
            model,
            loss_function,
            optimizer,
            state.scaler,
            state.meters,
            precision=nullcontext(),
            average=state.ema,
            accumulated=config.parallel.grad_accum_steps,
            clip_grad=config.optimizer.clip_grad,
            clip_mode=config.optimizer.clip_mode,
        )
        loop.run_epochs(state, loop.Parts(step, train, val, mixup, nullcontext(), folder, recorder), config)
        return state, folder, recorder

    return run


def test_updates_are_those_of_gradient_descent(start):
    torch.manual_seed(0)
    model = nn.Linear(5, 7)
    expected = copy.deepcopy(model)
    state, _, _ = start(model, ["--epochs", 2])
    for _ in range(2):
        for images, target in batches():
            expected.zero_grad()
            nn.functional.cross_entropy(expected(images), target).backward()
            with torch.no_grad():
                for parameter in expected.parameters():
                    parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(dict(state.model.named_parameters()), dict(expected.named_parameters()))
    assert state.updates == 6


def test_scaled_loss_makes_the_same_updates(start):
    torch.manual_seed(0)
    model = nn.Linear(5, 7)
    plain, _, _ = start(copy.deepcopy(model), ["--epochs", 1, "--clip-grad", 0.5])
    scaled, _, _ = start(copy.deepcopy(model), ["--epochs", 1, "--clip-grad", 0.5], scaler=True)
    torch.testing.assert_close(plain.model.state_dict(), scaled.model.state_dict())


@pytest.mark.parametrize("norm", [1e-3, 0.1, 1e6])
def test_clipped_gradients(start, norm):
    model = nn.Linear(5, 7)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    state, _, _ = start(model, ["--epochs", 1, "--clip-grad", norm], train=batches(1), lr=1.0)
    step = torch.cat([(new.detach() - old).flatten() for new, old in zip(model.parameters(), before, strict=True)])
    if norm < 1:
        assert float(step.norm()) == pytest.approx(norm, rel=1e-3)
    else:
        assert 0.1 < float(step.norm()) < norm
    assert state.updates == 1


def test_training_metrics_are_averages_over_images(start):
    model = nn.Linear(5, 7)
    train = [*batches(2), *batches(1, size=2, seed=9)]
    _, _, recorder = start(copy.deepcopy(model), ["--epochs", 1, "--log-interval", 1], train=train, lr=0.0)
    images, target = (torch.cat(tensors) for tensors in zip(*train, strict=True))
    scores = model(images).detach()
    last = recorder.batches[-1][2]
    assert last.loss == pytest.approx(float(nn.functional.cross_entropy(scores, target)), rel=1e-5)
    assert last.top1 == pytest.approx(100 * float((scores.argmax(1) == target).double().mean()), rel=1e-5)


@pytest.mark.parametrize(("interval", "known"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3, 4]), (50, [0, 4])])
def test_metrics_are_read_at_intervals_and_last(start, interval, known):
    _, _, recorder = start(flags=["--epochs", 1, "--log-interval", interval], train=batches(5))
    assert [index for _, index, metrics, _ in recorder.batches if metrics is not None] == known
    assert [index for _, index, _, _ in recorder.batches] == list(range(5))
    assert all(rate > 0 for _, _, _, rate in recorder.batches)


def test_backward_passes_run_in_the_thread_of_the_forward_pass(start, monkeypatch):
    seen, backward = [], torch.Tensor.backward

    def spy(*args, **kwargs):
        seen.append(torch._C._is_multithreading_enabled())
        backward(*args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", spy)
    start(train=batches(3))
    assert seen == [False] * len(seen)
    assert seen
    assert torch._C._is_multithreading_enabled()


def test_model_is_trained_in_training_mode(start):
    modes = []

    class Watched(nn.Linear):
        def forward(self, x):
            modes.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    start(Watched(5, 7), ["--epochs", 2])
    assert modes == [*[(True, True)] * 3, *[(False, False)] * 2] * 2


def test_an_epoch_resumed_at_its_evaluation_has_no_speed(start):
    """No image was trained on, and none was waited for."""

    class Loader(list):
        waited = 0.0

    def prepare(state):
        state.batch = 3
        state.meters.add([12.0, 600.0, 1200.0, 12])

    state, _, recorder = start(flags=["--epochs", 2], train=Loader(batches(3)), prepare=prepare)
    first, second = state.history
    assert first["train_loss"] == 1
    assert first["seconds"] > 0
    assert not first.keys() & {"images_per_second", "data_wait"}
    assert second["images_per_second"] > 0
    assert ["images/s" in line for line in recorder.lines] == [False, True]


def test_average_follows_every_update(start):
    model = nn.Linear(5, 7)
    expected = model.weight.detach().clone()

    recorder = Recorder()

    def follow():
        # As in timm, the average starts at the weights after the first update.
        decay = 0.8 if len(recorder.batches) > 1 else 0
        expected.mul_(decay).add_(model.weight.detach(), alpha=1 - decay)

    recorder.after_batch = follow
    state, folder, _ = start(model, ["--epochs", 2], ema=0.8, recorder=recorder)
    torch.testing.assert_close(state.ema.module.weight, expected)
    assert not torch.allclose(model.weight, expected)
    saved = torch.load(folder.path / "last.pth.tar", weights_only=True)
    torch.testing.assert_close(saved["state_dict_ema"]["weight"], expected)
    torch.testing.assert_close(saved["state_dict"]["weight"], model.weight.detach())


@pytest.mark.parametrize(
    ("by_epochs", "expected"), [(True, [0.1] * 4 + [0.05] * 4), (False, [0.1, 0.096194, 0.085355, 0.069134])]
)
def test_schedule_by_epochs_and_by_updates(start, by_epochs, expected):
    rates = []

    class Watched(nn.Linear):
        def forward(self, x):
            if self.training:
                rates.append(self.optimizer.param_groups[0]["lr"])
            return super().forward(x)

    def prepare(state):
        state.model.optimizer = state.optimizer

    start(
        Watched(5, 7),
        ["--epochs", 2],
        train=batches(4),
        sched={"sched": "cosine", "num_epochs": 2, "step_on_epochs": by_epochs},
        prepare=prepare,
    )
    assert len(rates) == 8
    assert rates[: len(expected)] == pytest.approx(expected, rel=1e-4)


def test_mixed_targets(start):
    mixup = Mixup(mixup_alpha=0.5, cutmix_alpha=1.0, num_classes=7)
    generator = torch.Generator().manual_seed(0)
    train = [(torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 7, (4,), generator=generator))]
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 7))
    state, _, recorder = start(
        *(model, ["--epochs", 1]),
        train=train,
        val=train,
        mixup=mixup,
        loss=SoftTargetCrossEntropy(),
    )
    ((_, _, metrics, _),) = recorder.batches
    assert 0 < metrics.loss < 20
    assert metrics.top1 in (0, 25, 50, 75, 100)
    assert state.updates == 1


def evaluations(monkeypatch, tops):
    tops = iter(tops)
    monkeypatch.setattr(
        loop, "evaluate", lambda models, *_: {name: Metrics(loss=1.0, top1=next(tops), top5=99.0) for name in models}
    )


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
@pytest.mark.parametrize("ema", [None, 0.9])
def test_plateau_goes_by_evaluations_of_the_average(start, monkeypatch, ema):
    """In epochs without one it waits. As in timm, the model's own count without an average alone."""
    own, average = [10.0, 60.0, 70.0, 80.0], [30.0, 40.0, 50.0, 50.0]
    # The model's own, then the average's, of every second epoch.
    evaluations(
        monkeypatch, average if ema is None else [top1 for both in zip(own, average, strict=True) for top1 in both]
    )
    plateau = {"sched": "plateau", "num_epochs": 8, "patience_epochs": 0, "decay_rate": 0.5, "warmup_epochs": 0}
    state, _, _ = start(flags=["--epochs", 8, "--val-interval", 2], ema=ema, sched=plateau)
    assert [row["lr"] for row in state.history] == [0.1] * 8
    assert state.optimizer.param_groups[0]["lr"] == 0.05


def test_best_is_the_first_of_the_highest_top1(start, monkeypatch):
    evaluations(monkeypatch, [30.0, 50.0, 50.0, 20.0])
    state, folder, recorder = start(flags=["--epochs", 4])
    best = torch.load(folder.best_checkpoint, weights_only=True)
    last = torch.load(folder.path / "last.pth.tar", weights_only=True)
    assert (best["epoch"], best["metric"]) == (1, 50.0)
    assert (last["epoch"], last["metric"], last["best_metric"]) == (3, 20.0, 50.0)
    assert not torch.equal(best["state_dict"]["weight"], last["state_dict"]["weight"])
    assert [line.endswith("best") for line in recorder.lines] == [True, True, False, False]
    assert state.best == {"metric": 50.0, "weights": "state_dict", "epoch": 1}


def test_best_may_be_of_the_average(start, monkeypatch):
    # The model's own, then the average's, of every epoch.
    evaluations(monkeypatch, [30.0, 10.0, 20.0, 40.0, 35.0, 35.0])
    _, folder, recorder = start(flags=["--epochs", 3], ema=0.9)
    best = torch.load(folder.best_checkpoint, weights_only=True)
    assert (best["epoch"], best["metric"], best["metric_weights"]) == (1, 40.0, "state_dict_ema")
    assert "EMA 40.00%" in recorder.lines[1]


def test_a_run_without_any_success_has_a_best_checkpoint(start, monkeypatch):
    evaluations(monkeypatch, [0.0, 0.0])
    _, folder, _ = start(flags=["--epochs", 2])
    assert torch.load(folder.best_checkpoint, weights_only=True)["epoch"] == 0


def test_checkpoint_has_timms_layout(start):
    _, folder, _ = start(flags=["--epochs", 1], scaler=True)
    checkpoint = torch.load(folder.path / "last.pth.tar", weights_only=True)
    assert checkpoint.keys() == {
        *("arch", "args", "classes", "epoch", "metric", "metric_weights", "best_metric", "state_dict"),
        *("optimizer", "version"),
        *("amp_scaler", "run"),
    }
    assert checkpoint["version"] == 2
    assert checkpoint["classes"] == list("abcdefg")
    assert checkpoint["args"]["epochs"] == 1


@pytest.mark.parametrize(("broken", "found"), [(0, 1), (1, 4), (3, 4)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(start, broken, found, value):
    train = batches(4)
    train[broken][0][0, 0] = value
    with pytest.raises(DivergedError, match=rf"the loss is (nan|inf) in epoch 1, batch {found}, at .* 0\.1: try"):
        start(flags=["--epochs", 3], train=train)


def test_a_loss_that_is_no_number_is_found_every_epoch(start):
    train = batches(2)
    recorder = Recorder()
    recorder.after_batch = lambda: train[0][0].fill_(float("nan")) if len(recorder.batches) == 2 else None
    with pytest.raises(DivergedError, match="in epoch 2, batch 1"):
        start(flags=["--epochs", 3], train=train, recorder=recorder)
    assert len(recorder.lines) == 1


# --- numbers that are not finite, in the real command -----------------------------------------------------------------


class SteepAtZero(nn.Module):
    """Finite, but not its gradient."""

    def forward(self, x):
        return x + (x * 0).abs().sqrt()


def arguments(images, output, *flags):
    argv = ["train", images, *tiny.FLAGS, "-j", 0, "-b", 4, "--output", output, "--experiment", "run", "--device"]
    return [str(argument) for argument in [*argv, "cpu", "--warmup-epochs", 0, "--epochs", 2, *flags]]


@pytest.fixture
def diverge(images, tmp_path, capsys):
    """The one line that a training ends with whose numbers are no longer finite."""

    def run(*flags):
        assert main(arguments(images, tmp_path, *flags)) == 1
        out, err = capsys.readouterr()
        assert err.count("\n") == 1
        return out, err

    return run


@pytest.fixture
def spoil(monkeypatch):
    """Puts a NaN into the images of some batches of a training, by their number from 1."""

    def spoil(*numbers):
        call, calls = TrainingStep.__call__, []

        def spoiled(self, images, target, **how):
            calls.append(1)
            images = images.clone()
            if len(calls) in numbers:
                images[1, 0, 2, 2] = float("nan")
            call(self, images, target, **how)

        monkeypatch.setattr(TrainingStep, "__call__", spoiled)

    return spoil


@pytest.fixture
def with_module(monkeypatch):
    """Puts a module in the place of another of the model."""
    from flashkat.training import run

    def put(name, module):
        build = run.build_model

        def built(*args, **kwargs):
            model = build(*args, **kwargs)
            model.set_submodule(name, module)
            return model

        monkeypatch.setattr(run, "build_model", built)

    return put


FIRST = "The first number that is not finite is in"


def test_an_exploding_learning_rate_is_found_in_its_layer(diverge, tmp_path):
    _, err = diverge("--lr", 1e12, "--recovery-interval", 1, "--find-nonfinite")
    assert err.startswith(
        "flashkat train: error: the loss or gradients are not finite in update 2 (epoch 1, batch 2), at the learning "
        f"rate 1e+12. {FIRST} the output of norm (LayerNorm): "
        f"go on with the same flags and --resume {tmp_path / 'run' / 'recovery-0-0.pth.tar'}, and try a lower --lr"
    )


def test_a_search_without_memory_keeps_the_first_message(diverge, monkeypatch):
    def find(step):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingStep, "find", find)
    _, err = diverge("--lr", 1e12, "--recovery-interval", 1, "--find-nonfinite")
    assert "are not finite in update 2 (epoch 1, batch 2), at the learning rate 1e+12. Memory was too short" in err
    assert "go on with the same flags and --resume" in err


def test_an_exploding_learning_rate_in_the_last_update(diverge):
    _, err = diverge("--lr", 1e30, "--epochs", 1, "-b", 16, "--find-nonfinite")
    assert re.search(rf"the loss is (nan|inf) after epoch 1, at the learning rate 1e\+30. {FIRST} the output of ", err)


def test_an_image_is_found(diverge, spoil):
    spoil(3)
    _, err = diverge("--find-nonfinite")
    assert "in update 3 (epoch 1, batch 3)" in err
    assert f"{FIRST} the images of the batch, before the model: try" in err


def test_weights_of_a_resumed_checkpoint_are_found(diverge, images, tmp_path):
    assert main(arguments(images, tmp_path / "before", "--epochs", 1)) == 0
    path = tmp_path / "before" / "run" / "last.pth.tar"
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["blocks.0.mlp.fc1.weight"][0, 0] = float("nan")
    torch.save(saved, path)
    _, err = diverge("--resume", path, "--find-nonfinite")
    assert "in update 5 (epoch 2, batch 1)" in err
    assert f"{FIRST} the weight blocks.0.mlp.fc1.weight, which is not finite before this update: " in err


@pytest.mark.parametrize(("dtype", "size"), [("float16", 1e6), ("bfloat16", 3e38)])
def test_a_layer_that_overflows_in_half_precision_is_found(diverge, tmp_path, dtype, size):
    weights = torch.load(tiny.weights(tmp_path / "start.pth", classes=2), weights_only=True)
    weights["blocks.0.attn.qkv.weight"].fill_(size)
    torch.save(weights, tmp_path / "start.pth")
    half = ["--amp", "--amp-dtype", dtype, "--initial-checkpoint", tmp_path / "start.pth"]
    out, err = diverge(*half, "--find-nonfinite", "--max-bad-steps", 2)
    place = f"{FIRST} the output of blocks.0.attn.qkv (Linear)"
    assert f"Left out 1 of the updates up to 1: the loss or gradients were not finite. {place}" in out
    assert f"in updates 1 to 2 (epoch 1, batch 2), at the learning rate 0.00156. {place}: try" in err


@pytest.mark.parametrize("more", [[], ["--grad-checkpointing"], ["--torchcompile", "aot_eager"]], ids=str)
def test_a_gradient_alone_is_found(diverge, with_module, more):
    with_module("blocks.0.ls2", SteepAtZero())
    _, err = diverge("--find-nonfinite", *more)
    assert f"{FIRST} the backward pass of blocks.0.ls2 (SteepAtZero), from SqrtBackward0: try" in err


def test_what_does_not_happen_again_is_said(diverge, with_module):
    class Once(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * torch.inf if self.calls == 2 else x

    with_module("blocks.0.ls1", Once())
    _, err = diverge("--find-nonfinite")
    assert "in update 2 (epoch 1, batch 2)" in err
    assert "Run again eagerly, with hooks, all numbers of its last update are finite: try" in err


def test_finding_nothing_changes_nothing(images, tmp_path):
    flags = ["--drop", 0.2, "--mixup", 0.4, "--model-ema"]
    assert main(arguments(images, tmp_path / "plain", *flags)) == 0
    assert main(arguments(images, tmp_path / "finds", *flags, "--find-nonfinite")) == 0
    one, other = (
        torch.load(tmp_path / name / "run" / "last.pth.tar", weights_only=True) for name in ("plain", "finds")
    )
    assert tiny.same(one["state_dict"], other["state_dict"])
    assert tiny.same(one["state_dict_ema"], other["state_dict_ema"])


def test_the_scale_of_float16_needs_a_number_of_steps(refused):
    err = refused("--amp", "--amp-dtype", "float16", "--find-nonfinite")
    assert "--find-nonfinite would stop at the first update that float16 leaves out" in err
    assert "give --max-bad-steps 20" in err


def test_bad_updates_are_left_out(images, tmp_path, spoil, summary_of, capsys):
    spoil(2, 3, 6)
    assert main(arguments(images, tmp_path, "--max-bad-steps", 3, "--log-interval", 1)) == 0
    out = capsys.readouterr().out
    assert re.findall(r"Left out (\d) of the updates up to (\d)", out) == [("1", "2"), ("2", "3"), ("3", "6")]
    assert "nan" not in out
    rows = summary_of(tmp_path / "run")
    assert all(0 < row["train_loss"] < 5 for row in rows)
    saved = torch.load(tmp_path / "run" / "last.pth.tar", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())
    assert saved["run"]["updates"] == 8


@pytest.mark.parametrize("log", [1, 50])
def test_so_many_bad_updates_in_a_row_stop_the_run(diverge, spoil, tmp_path, log):
    """They are told by their numbers, also if good ones came after, before the run looked."""
    spoil(1, 5, 6)
    out, err = diverge("--max-bad-steps", 2, "--log-interval", log, "--lr", 0.01)
    # The host looks at batches 1 and 4 of an epoch, if not at all.
    seen = "epoch 2, batch 2" if log == 1 else "epoch 2, batch 4"
    assert f"the loss or gradients are not finite in updates 5 to 6 ({seen}), at the learning rate 0.005: " in err
    assert f"go on with the same flags and --resume {tmp_path / 'run' / 'last.pth.tar'}, and try a lower --lr" in err
    assert "Left out 1 of the updates up to 1: the loss or gradients were not finite\n" in out


def test_accumulated_batches_are_one_update(diverge, spoil):
    spoil(3)
    _, err = diverge("--grad-accum-steps", 2, "--find-nonfinite")
    assert f"in update 2 (epoch 1, batch 4), at the learning rate 0.00313. {FIRST} the images" in err


def train_with_a_fault(*argv):
    """The second of two processes alone has a NaN in the first image of its third batch."""
    call, calls = TrainingStep.__call__, []

    def spoiled(self, images, target, **how):
        calls.append(1)
        images = images.clone()
        if len(calls) == 3 and os.environ["RANK"] == "1":
            images[0, 0, 0, 0] = float("nan")
        call(self, images, target, **how)

    TrainingStep.__call__ = spoiled
    run(list(argv))


def in_two_processes(folder, *argv):
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    environments = [{**meeting, "RANK": rank, "LOCAL_RANK": rank} for rank in range(2)]
    return forked(folder, train_with_a_fault, argv, environments)


@pytest.mark.parametrize("parallel", [[], ["--fsdp"]], ids=str)
def test_processes_leave_out_the_same_updates(images, tmp_path, parallel):
    flags = ["-b", 2, *parallel, "--find-nonfinite", "--recovery-interval", 2]
    done = in_two_processes(tmp_path, *arguments(images, tmp_path, *flags))
    assert done.status == [1, 1]
    assert done.stderr.count("flashkat train: error: ") == 1
    assert f"in update 3 (epoch 1, batch 3), at the learning rate 0.00156. {FIRST} the images of the" in done.stderr
    assert f"go on with the same flags and --resume {tmp_path / 'run' / 'recovery-0-1.pth.tar'}, and try" in done.stderr
    done = in_two_processes(
        tmp_path, *arguments(images, tmp_path / "goes on", "--max-bad-steps", 2, "-b", 2, *parallel)
    )
    assert done.status == [0, 0], done.stderr
    assert "Left out 1 of the updates up to 4: the loss or gradients were not finite\n" in done.stdout
    saved = torch.load(tmp_path / "goes on" / "run" / "last.pth.tar", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


def test_the_line_of_an_epoch_has_100_columns_at_most():
    row = {"epoch": 299, "train_loss": 6.9077, "eval_loss": 6.9077, "eval_top1": 100.0, "eval_top5": 100.0}
    row |= {"eval_ema_top1": 100.0, "lr": 1e-3, "images_per_second": 115362.1, "peak_memory_gib": 139.0, "data_wait": 1}
    line = loop._epoch_line(row, 300, True)
    assert line == (
        "Epoch 300/300  train loss 6.908  eval loss 6.908  top-1 100.00%  EMA 100.00%  115362 images/s  best"
    )
    assert len(line) <= 100
