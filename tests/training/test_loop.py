"""The loop itself, on models and batches small enough to follow by hand."""

import copy
from contextlib import nullcontext

import pytest
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

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


def test_best_is_the_first_of_the_highest_top1(start, monkeypatch):
    evaluations(monkeypatch, [30.0, 50.0, 50.0, 20.0])
    state, folder, recorder = start(flags=["--epochs", 4])
    best = torch.load(folder.best_checkpoint, weights_only=True)
    last = torch.load(folder.path / "last.pth.tar", weights_only=True)
    assert (best["epoch"], best["metric"]) == (1, 50.0)
    assert (last["epoch"], last["metric"]) == (3, 50.0)
    assert not torch.equal(best["state_dict"]["weight"], last["state_dict"]["weight"])
    assert [line.endswith("best") for line in recorder.lines] == [True, True, False, False]
    assert state.best == {"metric": 50.0, "weights": "state_dict", "epoch": 1}


def test_best_may_be_of_the_average(start, monkeypatch):
    # The model's own, then the average's, of every epoch.
    evaluations(monkeypatch, [30.0, 10.0, 20.0, 40.0, 35.0, 35.0])
    _, folder, recorder = start(flags=["--epochs", 3], ema=0.9)
    best = torch.load(folder.best_checkpoint, weights_only=True)
    assert (best["epoch"], best["metric"], best["metric_weights"]) == (1, 40.0, "state_dict_ema")
    assert "EMA top-1 40.00%" in recorder.lines[1]


def test_a_run_without_any_success_has_a_best_checkpoint(start, monkeypatch):
    evaluations(monkeypatch, [0.0, 0.0])
    _, folder, _ = start(flags=["--epochs", 2])
    assert torch.load(folder.best_checkpoint, weights_only=True)["epoch"] == 0


def test_checkpoint_has_timms_layout(start):
    _, folder, _ = start(flags=["--epochs", 1], scaler=True)
    checkpoint = torch.load(folder.path / "last.pth.tar", weights_only=True)
    assert checkpoint.keys() == {
        *("arch", "args", "classes", "epoch", "metric", "metric_weights", "state_dict", "optimizer", "version"),
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
    with pytest.raises(DivergedError, match=rf"the loss is (nan|inf) in epoch 1, batch {found}: try a lower --lr"):
        start(flags=["--epochs", 3], train=train)


def test_a_loss_that_is_no_number_is_found_every_epoch(start):
    train = batches(2)
    recorder = Recorder()
    recorder.after_batch = lambda: train[0][0].fill_(float("nan")) if len(recorder.batches) == 2 else None
    with pytest.raises(DivergedError, match="in epoch 2, batch 1"):
        start(flags=["--epochs", 3], train=train, recorder=recorder)
    assert len(recorder.lines) == 1
