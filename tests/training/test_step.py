"""The training step against a loop written out, and its CUDA graph against the step without one, bit for bit."""

import copy
from contextlib import nullcontext

import pytest
import timm
import torch
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import dispatch_clip_grad
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import flashkat  # noqa: F401  registers the models
from flashkat.evaluation.metrics import Meters
from flashkat.system.graph import CapturedForward
from flashkat.training.average import MovingAverage
from flashkat.training.distillation import Distillation
from flashkat.training.step import TrainingStep

CLASSES, SIDE, BATCH = 10, 8, 4


def small():
    """A model with random numbers of its own and a head as timm's have."""
    layers = [nn.Linear(3 * SIDE**2, 32), nn.LayerNorm(32), nn.GELU(), nn.Dropout(0.2), nn.Linear(32, CLASSES)]
    return nn.Sequential(nn.Flatten(), *layers)


def batches(count, device, sizes=(BATCH,), soft=False):
    generator = torch.Generator(device).manual_seed(1)
    made = []
    for index in range(count):
        shape = sizes[index % len(sizes)], 3, SIDE, SIDE
        target = torch.randint(CLASSES, shape[:1], device=device, generator=generator)
        if soft:
            target = 0.9 * nn.functional.one_hot(target, CLASSES) + 0.1 / CLASSES
        made.append((torch.randn(shape, device=device, generator=generator), target))
    return made


class Training:
    """A small training, whose options are those that tests vary."""

    def __init__(
        self,
        device,
        capture=False,
        model=small,
        opt="adamw",
        accumulated=1,
        fp16=False,
        scale=2.0**16,
        clip=(None, "norm"),
        warmup=True,
        teacher=False,
        per_update=False,
        soft=False,
        layer_decay=None,
        fused=False,
        **more,
    ):
        torch.manual_seed(0)
        self.said = []
        self.model = model().to(device).train()
        fused = fused or (device == "cuda" and opt in ("adam", "adamw", "sgd"))
        options = {"lr": 1e-2, "weight_decay": 0.05, "layer_decay": layer_decay, **({"fused": True} if fused else {})}
        self.optimizer = create_optimizer_v2(self.model, opt=opt, **options)
        self.scheduler = CosineLRScheduler(
            self.optimizer, t_initial=30, warmup_t=5, warmup_lr_init=1e-4, t_in_epochs=not per_update
        )
        self.scaler = torch.amp.GradScaler(device, enabled=fp16, init_scale=scale, growth_interval=7)
        self.average = MovingAverage(self.model, decay=0.9, use_warmup=warmup)
        self.meters, self.accumulated, self.updates = Meters(), accumulated, 0
        distillation = None
        if teacher:
            scale_and_shift = torch.full((3,), 0.5), torch.zeros(3)
            distillation = Distillation(small(), *scale_and_shift, 0.5, 0.5, 2.0).to(device)
        self.step = TrainingStep(
            self.model,
            SoftTargetCrossEntropy() if soft else nn.CrossEntropyLoss(label_smoothing=0.1),
            self.optimizer,
            self.scaler,
            self.meters,
            precision=torch.autocast(device, torch.float16) if fp16 else nullcontext(),
            average=self.average,
            distillation=distillation,
            accumulated=accumulated,
            clip_grad=clip[0],
            clip_mode=clip[1],
            capture=capture,
            say=self.said.append,
            **more,
        )

    def epoch(self, data, number=0):
        """As the loop calls the step."""
        self.scheduler.step(number)
        for index, (images, target) in enumerate(data):
            first = index - index % self.accumulated
            group = min(self.accumulated, len(data) - first)
            update = self.updates + 1 if index + 1 == first + group else None
            self.step(images, target, group=group, update=update)
            if update is not None:
                self.updates = update
                self.scheduler.step_update(update)
        return self

    def state(self):
        """All that training changes."""
        found = {"weights": self.model.state_dict(), "average": self.average.module.state_dict()}
        found |= {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        random = torch.cuda.get_rng_state() if self.meters._sums.is_cuda else torch.get_rng_state()
        return {**found, "sums": self.meters.sums(), "random": random, "skipped": self.step.bad_updates.read()[0]}


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("clip", [(None, "norm"), (0.5, "norm"), (1e-3, "value"), (1e-2, "agc")], ids=str)
@pytest.mark.parametrize(("accumulated", "count"), [(1, 5), (3, 7)])
def test_a_loop_written_out(clip, accumulated, count):
    training = Training("cpu", accumulated=accumulated, clip=clip, per_update=True)
    torch.manual_seed(0)
    model = small().train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05)
    average = copy.deepcopy(model)
    data, loss_function, losses = batches(count, "cpu"), nn.CrossEntropyLoss(label_smoothing=0.1), []
    groups = [data[first : first + accumulated] for first in range(0, count, accumulated)]
    torch.manual_seed(2)
    for update, group in enumerate(groups, start=1):
        for images, target in group:
            losses.append(loss_function(model(images), target))
            (losses[-1] / len(group)).backward()
        if clip[0] is not None:
            clipped = list(model.parameters())[:-2] if clip[1] == "agc" else model.parameters()
            dispatch_clip_grad(clipped, *clip)
        for each in optimizer.param_groups:
            # Five updates of warm-up; the first has the rate of none.
            each["lr"] = 1e-4 + (1e-2 - 1e-4) * (update - 1) / 5
        optimizer.step()
        optimizer.zero_grad()
        decay = 0.0 if update == 1 else min(1 - update ** (-2 / 3), 0.9)
        for own, theirs in zip(average.parameters(), model.parameters(), strict=True):
            own.data.lerp_(theirs.data, 1 - decay)
    torch.manual_seed(2)
    training.epoch(data)
    torch.testing.assert_close(training.model.state_dict(), model.state_dict())
    torch.testing.assert_close(training.average.module.state_dict(), average.state_dict())
    metrics = training.meters.metrics()
    assert metrics.loss == pytest.approx(sum(loss.item() for loss in losses) / count)
    assert not training.said


def test_it_says_where_there_are_no_graphs():
    training = Training("cpu", capture=True).epoch(batches(2, "cpu"))
    assert training.said == ["No CUDA graph, each kernel is launched by the host: there are none on cpu"]
    assert_equal(training.state(), Training("cpu").epoch(batches(2, "cpu")).state())


def test_learning_from_a_teacher_changes_the_loss():
    one, other = (Training("cpu", teacher=teacher).epoch(batches(2, "cpu")) for teacher in (True, False))
    assert one.meters.metrics().loss != other.meters.metrics().loss


LEFT_OUT = {
    "adamw": {},
    "fused": {"fused": True},
    "adam": {"opt": "adam", "fused": True, "clip": (0.5, "norm")},
    "momentum": {"opt": "momentum", "clip": (1e-2, "agc")},
    "fused sgd": {"opt": "sgd", "fused": True},
    "lookahead": {"opt": "lookahead_adamw"},
    "accumulated": {"accumulated": 3},
    "fp16": {"fp16": True, "scale": 1.0},
}


def spoiled(data, bad, value):
    """The same batches with a number that is not finite in those of ``bad``."""
    made = [(images.clone(), target) for images, target in data]
    for index in bad:
        made[index][0][-1, 0, 0, 0] = value
    return made


def changed(training):
    """The weights and the state of the optimiser."""
    return copy.deepcopy([training.model.state_dict(), training.optimizer.state_dict()["state"]])


def batch_normed():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * SIDE**2), nn.Linear(3 * SIDE**2, CLASSES))


@pytest.mark.parametrize("options", LEFT_OUT.values(), ids=LEFT_OUT)
@pytest.mark.parametrize("bad", [[0, 4], [7], [5, 6, 7, 8]], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_updates_change_nothing(options, bad, value):
    training = Training("cpu", leaves_out=True, warmup=False, model=batch_normed, **options)
    data, good = spoiled(batches(9, "cpu"), bad, value), 0
    accumulated = options.get("accumulated", 1)
    left_out = {index // accumulated for index in bad}
    for update in range(9 // accumulated):
        before = changed(training)
        training.epoch(data[update * accumulated : (update + 1) * accumulated])
        after = changed(training)
        if update in left_out:
            # The optimiser's state may be made, but only with its first values.
            assert_equal(after[0], before[0])
            assert_equal(after[1], before[1] or {key: {n: 0 * v for n, v in s.items()} for key, s in after[1].items()})
        else:
            good += 1
            assert any(not torch.equal(after[0][name], before[0][name]) for name in before[0])
    assert training.step.bad_updates.read()[0] == len(left_out)
    assert good == 9 // accumulated - len(left_out)
    assert all(tensor.isfinite().all() for tensor in training.model.state_dict().values())
    assert all(tensor.isfinite().all() for tensor in training.average.module.state_dict().values())
    # Metrics are of the other batches, and of the good ones in a bad update.
    assert training.meters.sums()[3] == BATCH * (9 - len(bad))
    assert training.meters.metrics().loss < 5


def test_bad_updates_are_left_out_where_the_loss_alone_is_bad():
    """Cross-entropy of a logit that is -inf has finite gradients."""

    class Certain(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * SIDE**2, CLASSES)

        def forward(self, images):
            return self.head(images.flatten(1)).index_fill(1, torch.tensor([3]), -torch.inf)

    images = batches(1, "cpu")[0][0]
    for leaves_out in (True, False):
        training = Training("cpu", model=Certain, leaves_out=leaves_out)
        training.step.loss_function = nn.CrossEntropyLoss()
        before = changed(training)[0]
        training.epoch([(images, torch.full((BATCH,), 3))])
        assert all(tensor.isfinite().all() for tensor in training.model.state_dict().values())
        same = all(torch.equal(before[name], tensor) for name, tensor in training.model.state_dict().items())
        assert same == leaves_out


class Waits(TorchDispatchMode):
    """Counts how often the host reads a number of a tensor, for which it would wait on a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("options", "count"),
    [({"fused": True}, 0), ({"opt": "adam", "fused": True, "clip": (0.5, "norm")}, 0), ({"opt": "lion"}, 2)],
    ids=str,
)
def test_fused_kernels_leave_out_updates_without_a_wait(options, count):
    training = Training("cpu", leaves_out=True, **options)
    data = spoiled(batches(2, "cpu"), [1], float("nan"))
    with Waits() as waits:
        for update, (images, target) in enumerate(data, start=1):
            training.step(images, target, update=update)
    assert waits.count == count
    assert training.step.bad_updates.read()[0] == 1


@pytest.mark.parametrize("options", [*LEFT_OUT.values(), {"teacher": True}, {"soft": True}], ids=str)
def test_good_updates_have_the_same_bits(options):
    states = []
    for leaves_out in (True, False):
        training = Training("cpu", leaves_out=leaves_out, keeps=leaves_out, **options)
        torch.manual_seed(3)
        states.append(training.epoch(batches(9, "cpu", soft=options.get("soft", False))).state())
    assert_equal(*states)


@pytest.mark.parametrize("options", [{}, {"accumulated": 2}, {"fp16": True, "scale": 1.0}], ids=str)
def test_finding_leaves_no_trace(options):
    """It finds the image of the last update, with the same random numbers, and training goes on with the same bits."""
    data, states = batches(8, "cpu"), []
    bad = spoiled(data, [3], float("nan"))
    for finds in (True, False):
        training = Training("cpu", leaves_out=True, keeps=True, model=with_norm, **options)
        torch.manual_seed(3)
        # A run that is resumed after its last batch has no update yet.
        assert training.step.find() is None
        training.epoch(data[:2])
        assert not finds or training.step.find() is None
        training.epoch(bad[2:4])
        torch.rand(1)
        if finds:
            _, found = training.step.find()
            assert found == "the images of the batch, before the model"
        states.append(training.epoch(data[4:]).state())
    assert_equal(*states)


def with_norm():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * SIDE**2), *list(small())[1:])


def test_a_rerun_has_the_random_numbers_of_the_run():
    """A unit that overflows, which dropout leaves out of every other run."""

    class Rarely(nn.Module):
        def forward(self, x):
            return x * torch.where(torch.rand(()) < 0.5, torch.inf, 1.0)

    def model():
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, CLASSES), Rarely())

    training, answers = Training("cpu", model=model, leaves_out=True, keeps=True), set()
    for batch in batches(12, "cpu"):
        before = training.step.bad_updates.read()[0]
        training.epoch([batch])
        is_bad = training.step.bad_updates.read()[0] > before
        answers.add(is_bad)
        found = training.step.find()
        assert (found is not None) == is_bad
        assert not is_bad or found[1] == "the output of 2 (Rarely)"
    assert answers == {True, False}


OPTIONS = {
    "plain": {},
    "a schedule of updates": {"per_update": True},
    "accumulated": {"accumulated": 3, "per_update": True, "clip": (0.1, "norm")},
    "accumulated, fp16": {"accumulated": 2, "fp16": True, "scale": 2.0**24},
    "fp16": {"fp16": True, "scale": 2.0**24},
    "fp16, clipped": {"fp16": True, "scale": 2.0**24, "clip": (0.5, "norm")},
    "norm": {"clip": (0.5, "norm")},
    "value": {"clip": (1e-3, "value")},
    "agc": {"clip": (1e-2, "agc")},
    "no warm-up": {"warmup": False},
    "teacher": {"teacher": True},
    "soft targets": {"soft": True},
    "adam": {"opt": "adam"},
    "sgd": {"opt": "sgd", "per_update": True},
    "lamb": {"opt": "lamb", "clip": (1.0, "norm"), "accumulated": 2},
    "lion": {"opt": "lion", "per_update": True},
    "lookahead": {"opt": "lookahead_adamw"},
    "fp16, momentum": {"opt": "momentum", "fp16": True, "scale": 2.0**24},
}


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_graph_trains_to_the_same_bits(options):
    states = []
    for capture in (True, False, True):
        training = Training("cuda", capture=capture, **options)
        torch.cuda.manual_seed(3)
        for number in range(3):
            # The last one of an epoch is shorter.
            data = batches(14, "cuda", soft=options.get("soft", False))
            data.append(tuple(each[:-1] for each in data[0]))
            training.epoch(data, number)
        states.append(copy.deepcopy(training.state()))
        if capture:
            assert training.step.captured.is_capturing
            assert len(training.step.captured._recordings) == (2 if "accumulated" in options else 1)
            assert len(training.said) == (options.get("opt") in ("lamb", "lion", "lookahead_adamw", "momentum"))
        assert all(isinstance(group["lr"], float) for group in training.optimizer.param_groups)
        assert not any(group.get("capturable") for group in training.optimizer.param_groups)
        assert (training.step.bad_updates.read()[0] > 0) == ("fp16" in options)
    assert_equal(states[0], states[1])
    assert_equal(states[0], states[2])


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulated": 2}, {"clip": (0.5, "norm")}, {"fp16": True}, {"opt": "sgd"}, {"opt": "lamb"}],
    ids=str,
)
def test_a_graph_leaves_out_the_same_updates(options):
    data, states = spoiled(batches(20, "cuda"), [0, 9, 16, 17], float("nan")), []
    for capture in (True, False):
        training = Training("cuda", capture=capture, model=batch_normed, leaves_out=True, keeps=True, **options)
        torch.cuda.manual_seed(3)
        training.epoch(data)
        states.append(copy.deepcopy(training.state()))
        assert training.step.bad_updates.read()[0] >= 3
        assert all(tensor.isfinite().all() for tensor in training.model.state_dict().values())
        if capture:
            assert training.step.captured.is_capturing
            assert training.step.captured._recordings
            # Of the optimiser, or else of the average, in which batch norms count in whole numbers.
            assert len(training.said) == 1
            training.epoch(data[16:18])
            assert training.step.find()[1] == "the images of the batch, before the model"
    assert_equal(*states)


@pytest.mark.gpu
def test_a_run_goes_on_from_what_was_saved():
    straight = Training("cuda", capture=True, per_update=True)
    data = batches(20, "cuda")
    straight.epoch(data[:10])
    saved = copy.deepcopy(straight.state())
    straight.epoch(data[10:])
    resumed = Training("cuda", capture=True, per_update=True)
    resumed.model.load_state_dict(saved["weights"])
    resumed.average.module.load_state_dict(saved["average"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.meters.add(saved["sums"])
    resumed.updates = 10
    torch.cuda.set_rng_state(saved["random"])
    resumed.scheduler.step_update(10)
    assert_equal(resumed.epoch(data[10:]).state(), straight.state())


class Peeking(nn.Module):
    """A model that waits for the GPU, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.model, self.seen = small(), 0.0

    def forward(self, images):
        output = self.model(images)
        self.seen = output.sum().item()
        return output


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"fp16": True, "clip": (1.0, "norm")}, {"accumulated": 2}], ids=str)
def test_a_failed_capture_leaves_training_unharmed(options):
    trainings = [Training("cuda", capture=capture, model=Peeking, **options) for capture in (True, False)]
    for training in trainings:
        torch.cuda.manual_seed(3)
        training.epoch(batches(12, "cuda"))
        training.final = copy.deepcopy(training.state())
    (line,) = trainings[0].said
    assert line.startswith("No CUDA graph, each kernel is launched by the host: ")
    assert "captur" in line
    assert_equal(trainings[0].final, trainings[1].final)
    # The allocator is as before: memory that another stream used comes free again.
    before = torch.cuda.memory_allocated()
    stream = torch.cuda.Stream()
    for _ in range(5):
        block = torch.empty(2**20, device="cuda")
        block.record_stream(stream)
        del block
        torch.cuda.synchronize()
    torch.empty(1, device="cuda")
    assert torch.cuda.memory_allocated() == before
    # And another graph can be made.
    training = Training("cuda", capture=True).epoch(batches(12, "cuda"))
    assert training.step.captured._recordings


@pytest.mark.gpu
def test_a_compiled_kat_trains_to_the_same_bits_for_100_steps():
    def kat():
        model = timm.create_model(
            "kat_tiny_patch16_224",
            **{"img_size": SIDE, "patch_size": 2, "embed_dim": 64, "depth": 2, "num_heads": 2, "drop_path_rate": 0.2},
            num_classes=CLASSES,
        )
        model.compile(dynamic=False)
        return model

    states = []
    for capture in (True, False, True):
        training = Training("cuda", capture=capture, model=kat, clip=(1.0, "norm"), per_update=True, layer_decay=0.7)
        torch.cuda.manual_seed(3)
        training.epoch(batches(100, "cuda"))
        states.append(copy.deepcopy(training.state()))
    assert_equal(states[0], states[1])
    assert_equal(states[0], states[2])


@pytest.mark.gpu
def test_evaluation_shares_the_memory_of_training():
    trainings = [Training("cuda", capture=capture) for capture in (True, False)]
    outputs = []
    for training in trainings:
        torch.cuda.manual_seed(3)
        model = training.average.module
        called = CapturedForward(model, pytest.fail, share=training.step.captured) if training.step.captured else model
        for number in range(4):
            training.epoch(batches(3, "cuda"), number)
            with torch.inference_mode():
                outputs.append([called.eval()(images).clone() for images, _ in batches(4, "cuda")])
    assert_equal(outputs[:4], outputs[4:])
    assert_equal(trainings[0].state(), trainings[1].state())
    # Graphs of the other are its own.
    trainings[0].step.close()
    other = CapturedForward(model, pytest.fail, share=trainings[0].step.captured).eval()
    with torch.inference_mode():
        for images, _ in batches(5, "cuda"):
            assert torch.equal(other(images), model(images))


@pytest.mark.gpu
def test_images_are_read_where_they_were_mixed():
    plain, mixed = (Training("cuda", capture=True) for _ in range(2))
    for training in (plain, mixed):
        torch.cuda.manual_seed(3)
        for update, (images, target) in enumerate(batches(10, "cuda"), start=1):
            given = training.step.buffer(images).copy_(images) if training is mixed else images
            training.step(given, target, update=update)
    assert_equal(plain.state(), mixed.state())
