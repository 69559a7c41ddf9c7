"""The parts that the flags build: model, optimiser, schedule, mixing, loss."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from configs import loss_of, mixup_of, model_of, optimizer_of
from foreign import google_arrays
from timm.loss import SoftTargetCrossEntropy

from flashkat.errors import InputError
from flashkat.training import recipe
from flashkat.training.config import Resume
from flashkat.training.recipe import (
    build_schedule,
    check_schedule_name,
    length_notes,
    scaled_lr,
)
from flashkat.training.state import TrainingState

TINY = ["--img-size", 8, "--model-kwargs", "patch_size=4", "embed_dim=16", "depth=2", "num_heads=2"]


@pytest.fixture
def args(training_config):
    def parse(*flags):
        lr = [] if "--lr" in flags else ["--lr", 0.1]
        return training_config("--num-classes", 4, *TINY, "-b", 4, *lr, *flags)

    return parse


def test_model(args):
    model = model_of(args("--in-chans", 1, "--gp", "avg", "--drop", 0.25, "--drop-path", 0.5))
    assert model.patch_embed.proj.in_channels == 1
    assert model.global_pool == "avg"
    assert model.head_drop.p == 0.25
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    assert model_of(args("--gp", "")).global_pool == "token"


def test_no_start_but_from_weights(args, tmp_path):
    skip = ["--model-kwargs", *TINY[3:], "weight_init=skip"]
    with pytest.raises(InputError, match="weight_init=skip leaves weights that are not loaded undefined: leave it out"):
        model_of(args(*skip))
    torch.save(model_of(args()).state_dict(), tmp_path / "weights.pth")
    model = model_of(args(*skip, "--initial-checkpoint", tmp_path / "weights.pth"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_input_size(args):
    model = model_of(args("--input-size", 1, 8, 16))
    assert model(torch.zeros(2, 1, 8, 16)).shape == (2, 4)


def test_head(args):
    torch.manual_seed(0)
    plain = model_of(args())
    torch.manual_seed(0)
    changed = model_of(args("--head-init-scale", 0.5, "--head-init-bias", -3))
    torch.testing.assert_close(changed.head.weight, 0.5 * plain.head.weight)
    assert changed.head.bias.tolist() == [-3.0] * 4


FROM_FILE = pytest.mark.parametrize("flag", ["--initial-checkpoint", "--pretrained-path"])


@FROM_FILE
def test_start_from_a_kat(args, flag, tmp_path):
    source = model_of(args())
    torch.save({"state_dict": source.state_dict()}, tmp_path / "weights.pth")
    model = model_of(args(flag, tmp_path / "weights.pth"))
    torch.testing.assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)


@FROM_FILE
@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_start_from_a_vit(args, flag, suffix, tmp_path):
    path = tmp_path / f"vit{suffix}"
    source = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    np.savez(path, **google_arrays(source)) if suffix == ".npz" else torch.save(source.state_dict(), path)
    notes = []
    model = model_of(args(flag, path), notes.append)
    torch.testing.assert_close(model.blocks[1].mlp.fc2.weight, source.blocks[1].mlp.fc2.weight, rtol=0, atol=0)
    assert model.pos_embed.shape == (1, 5, 16)
    x = torch.linspace(-2, 2, 16)
    torch.testing.assert_close(model.blocks[0].mlp.act1(x), x)
    assert len(notes) == 3
    assert notes[0] == f"the position embedding is resampled: 4 x 4 in {path}, 2 x 2 here"
    assert notes[1].startswith("4 rationals keep their starting functions")
    assert "1000 classes" in notes[2]


def test_start_takes_averaged_weights_as_timm_does(args, tmp_path):
    raw, average = model_of(args()).state_dict(), model_of(args()).state_dict()
    torch.save({"state_dict": raw, "state_dict_ema": average}, tmp_path / "weights.pth")
    model = model_of(args("--initial-checkpoint", tmp_path / "weights.pth"))
    torch.testing.assert_close(model.state_dict(), average, rtol=0, atol=0)


def test_start_in_part(args, tmp_path):
    state = model_of(args()).state_dict()
    del state["norm.bias"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"1 missing \(norm.bias\)"):
        model_of(args("--initial-checkpoint", tmp_path / "weights.pth"))
    notes = []
    model_of(args("--initial-checkpoint", tmp_path / "weights.pth", "--partial"), notes.append)
    assert "fits in part: 1 missing (norm.bias)" in notes[0]


def test_start_from_an_npz_that_lacks_a_key(args, tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    arrays = google_arrays(source)
    del arrays["Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"]
    np.savez(tmp_path / "vit.npz", **arrays)
    with pytest.raises(InputError, match=r"1 missing \(Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel\)"):
        model_of(args("--initial-checkpoint", tmp_path / "vit.npz"))


def test_start_from_nowhere(args):
    with pytest.raises(InputError, match="no checkpoint at nowhere"):
        model_of(args("--pretrained-path", "nowhere.pth"))


def test_pretrained_is_asked_of_timm(args, monkeypatch):
    asked = {}
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: asked.update(kwargs) or torch.nn.Linear(1, 1))
    model_of(args("--pretrained"))
    assert asked["pretrained"] is True
    asked.clear()
    model_of(args())
    assert "pretrained" not in asked


def test_pretrained_from_a_path_downloads_nothing(args, tmp_path):
    source = model_of(args())
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = model_of(args("--pretrained-path", tmp_path / "weights.pth", "--pretrained"))
    torch.testing.assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_an_average_that_remembers_the_start_is_noted(args):
    slow = ["--model-ema", "--model-ema-decay", 0.999]
    (note,) = notes_of(args(*slow), 100)
    assert "will be 90% those at the start: try --model-ema-warmup" in note
    assert not notes_of(args(*slow), 10_000)
    assert not notes_of(args(*slow, "--model-ema-warmup"), 100)
    assert not notes_of(args(), 100)


def test_warm_up_that_does_not_end_is_noted(args):
    (note,) = notes_of(args("--epochs", 5, "--lr", 0.01), 100)
    assert note.startswith("Warm-up takes 5 of 5 epochs, so the learning rate never reaches 0.01: ")
    assert "give a smaller --warmup-epochs" in note
    for flags in (["--epochs", 6], ["--epochs", 5, "--warmup-epochs", 4], ["--epochs", 5, "--warmup-prefix"]):
        assert not notes_of(args(*flags), 100)


# --- optimiser --------------------------------------------------------------------------------------------------------


def notes_of(config, updates):
    return length_notes(config.schedule, config.average, updates)


def lr_of(config, processes):
    images = config.data.batch_size * processes * config.parallel.grad_accum_steps
    return scaled_lr(config.schedule, config.optimizer.opt, images)


def made(config):
    return optimizer_of(model_of(config), config)


def test_optimizer_settings(args):
    flags = ["--opt", "adamw", "--opt-eps", 1e-6, "--opt-betas", 0.8, 0.95, "--opt-kwargs", "amsgrad=True"]
    optimizer = made(args(*flags))
    for group in optimizer.param_groups:
        assert (group["eps"], tuple(group["betas"]), group["amsgrad"]) == (1e-6, (0.8, 0.95), True)


def test_layer_decay(args):
    scales = {group["lr_scale"] for group in made(args("--layer-decay", 0.5)).param_groups}
    assert {1.0, 0.5, 0.25} <= scales
    limited = made(args("--layer-decay", 0.5, "--layer-decay-min-scale", 0.4)).param_groups
    assert min(group["lr_scale"] for group in limited) == 0.4
    model = model_of(args())
    optimizer_of(model, args("--layer-decay", 0.5, "--layer-decay-no-opt-scale", 0.3))
    assert not model.pos_embed.requires_grad
    assert model.head.weight.requires_grad


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], 0.1 * 4 / 256),
        (["--opt", "adamw"], 0.1 * math.sqrt(4 / 256)),
        (["--opt", "adamw", "--lr-base-scale", "linear"], 0.1 * 4 / 256),
        (["--lr-base-scale", "sqrt", "--lr-base-size", 64], 0.1 * math.sqrt(4 / 64)),
        (["--lr-base", 0.5, "--grad-accum-steps", 8], 0.5 * 32 / 256),
    ],
)
def test_scaling_of_the_learning_rate(args, flags, expected):
    assert lr_of(args(*flags), processes=1) == pytest.approx(expected)
    if "--opt" not in flags and "--lr-base-scale" not in flags:
        assert lr_of(args(*flags), processes=4) == pytest.approx(4 * expected)


# --- schedule ---------------------------------------------------------------------------------------------------------


def rates(config, updates=2):
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedule = config.schedule
    optimizer = torch.optim.SGD([parameter], lr=schedule.lr)
    scheduler, epochs = build_schedule(optimizer, schedule, updates)
    model, scaler = torch.nn.Identity(), torch.amp.GradScaler("cpu", enabled=False)
    state = TrainingState(model, optimizer, scheduler, scaler, ema=None, classes=[], epochs=epochs)
    state.start(
        {}, Resume(), opt="sgd", start_epoch=schedule.start_epoch, eval_metric="top1", updates_per_epoch=updates
    )
    seen = []
    for epoch in range(state.epoch, epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        for update in range(updates):
            scheduler.step_update(epoch * updates + update + 1)
        scheduler.step(epoch + 1, 1.0)
    return seen


BASE = ["--lr", 1.0, "--warmup-epochs", 0, "--epochs", 6]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--sched", "step", "--decay-epochs", 2, "--decay-rate", 0.5], [1, 1, 0.5, 0.5, 0.25, 0.25]),
        # The epochs of milestones count from 1 in timm.
        (["--sched", "multistep", "--decay-milestones", 2, 5, "--dr", 0.5], [1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        (["--sched", "poly", "--decay-rate", 1], [1 - epoch / 6 for epoch in range(6)]),
        (["--sched", "poly", "--decay-rate", 1, "--cooldown-epochs", 2], [*(1 - e / 6 for e in range(6)), 0, 0]),
        (
            ["--sched", "cosine", "--lr-k-decay", 2],
            [0.5 * (1 + math.cos(math.pi * epoch**2 / 36)) for epoch in range(6)],
        ),
        (
            ["--epochs", 2, "--lr-cycle-limit", 3, "--lr-cycle-decay", 0.5],
            [1, 0.5, 0.5, 0.25, 0.25, 0.125],
        ),
        (["--sched", "plateau", "--patience-epochs", 1, "--decay-rate", 0.5], [1, 1, 1, 0.5, 0.5, 0.25]),
    ],
)
def test_schedules(args, flags, expected):
    assert rates(args(*BASE, *flags)) == pytest.approx(expected, abs=1e-6)


def test_warm_up_before_the_epochs(args):
    flags = ["--lr", 1.0, "--epochs", 4, "--warmup-epochs", 2, "--warmup-lr", 0.2, "--sched", "cosine"]
    within, before = rates(args(*flags)), rates(args(*flags, "--warmup-prefix"))
    assert len(within) == 4
    assert len(before) == 6
    assert before[:3] == pytest.approx([0.2, 0.6, 1.0])


def test_start_epoch(args):
    whole = rates(args(*BASE, "--sched", "cosine"))
    assert rates(args(*BASE, "--sched", "cosine", "--start-epoch", 2)) == pytest.approx(whole[2:])
    by_updates = rates(args(*BASE, "--sched-on-updates", "--start-epoch", 2))
    assert by_updates == pytest.approx(whole[2:])
    plateau = ["--sched", "plateau", "--lr", 1.0, "--epochs", 6]
    assert rates(args(*plateau, "--warmup-epochs", 2, "--start-epoch", 3)) == [1, 1, 1]
    with pytest.raises(InputError, match="after the last of 6 epochs"):
        rates(args(*BASE, "--start-epoch", 6))


def test_noise(args):
    noisy = rates(args(*BASE, "--sched", "step", "--lr-noise", 0.5, "--lr-noise-std", 1, "--lr-noise-pct", 0.5))
    assert noisy[:3] == [1, 1, 1]
    assert all(0.5 < rate < 1.5 for rate in noisy[3:])
    assert len(set(noisy[3:])) == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sched", "plateau", "--sched-on-updates"], "leave out --sched-on-updates"),
        (["--lr-noise", 0.1, 0.2, 0.3], "not 3 numbers"),
        (["--lr-noise", 0.9, 0.1], "--lr-noise 0.9 0.1: give the numbers in their order"),
        (["--sched", "multistep", "--decay-milestones", 8, 4], "--decay-milestones 8 4: give the numbers"),
        pytest.param(
            ["--sched", "wsd", "--decay-epochs", 500],
            "cannot make --sched wsd: ",
            marks=pytest.mark.skipif(not hasattr(timm.scheduler, "WSDLRScheduler"), reason="timm 1.0.29 has no wsd"),
        ),
    ],
)
def test_schedules_that_cannot_be(args, flags, words):
    with pytest.raises(InputError, match=words):
        rates(args(*BASE, *flags))


@pytest.mark.parametrize("name", ["cosine", "tanh", "step", "multistep", "plateau", "poly", "none"])
def test_names_of_schedules(name):
    check_schedule_name(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cosin", "did you mean 'cosine'"), ("Step", "did you mean 'step'"), ("warp", "try cosine, tanh")],
)
def test_a_schedule_that_is_not_there(name, hint):
    with pytest.raises(InputError, match=f"^no schedule '{name}' for --sched: {hint}"):
        check_schedule_name(name)


def test_plateau_is_made_without_a_warning(args, monkeypatch):
    """Newer timm has one that nobody saves its state; we do. Every other warning is left."""

    def warn(*args, **kwargs):
        for text in ("PlateauLRScheduler is deprecated and will go", "something else"):
            warnings.warn(text, FutureWarning, stacklevel=2)
        return create(*args, **kwargs)

    create = recipe.create_scheduler_v2
    monkeypatch.setattr(recipe, "create_scheduler_v2", warn)
    for make in (check_schedule_name, lambda name: build_schedule(made(args()), args("--sched", name).schedule, 1)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make("plateau")
        assert [str(warning.message) for warning in caught] == ["something else"]


CYCLES = ["--epochs", 4, "--warmup-epochs", 0, "--lr-cycle-mul", 0.5]


@pytest.mark.parametrize("sched", ["cosine", "tanh", "poly"])
@pytest.mark.parametrize("more", [[], ["--warmup-prefix", "--warmup-epochs", 2], ["--sched-on-updates"]], ids=str)
def test_cycles_that_end_before_the_cooldown(args, sched, more):
    """timm would take the logarithm of a negative number after epochs of training."""
    flags = [*CYCLES, "--sched", sched, *more, "--cooldown-epochs"]
    assert len(rates(args(*flags, 3))) == 7 + 2 * ("--warmup-prefix" in more)
    with pytest.raises(InputError, match=r"--lr-cycle-mul 0\.5 lets all cycles end in epoch 8, before the last of 8"):
        rates(args(*flags, 4))


def test_a_schedule_that_older_timm_does_not_know(monkeypatch):
    monkeypatch.setattr("flashkat.training.recipe.create_scheduler_v2", lambda optimizer, sched: (None, 300))
    with pytest.raises(InputError, match="no schedule 'warp'"):
        check_schedule_name("warp")


# --- mixing and losses ------------------------------------------------------------------------------------------------


def test_mixing_flags_reach_timm(args):
    flags = ["--cutmix-minmax", 0.2, 0.8, "--mixup", 0.3, "--mixup-prob", 0.7, "--mixup-switch-prob", 0.4]
    mixup = mixup_of(args(*flags, "--mixup-mode", "pair", "--smoothing", 0.2))
    assert (mixup.cutmix_minmax, mixup.mixup_alpha, mixup.mix_prob) == ((0.2, 0.8), 0.3, 0.7)
    assert (mixup.switch_prob, mixup.mode, mixup.label_smoothing) == (0.4, "pair", 0.2)
    assert mixup_of(args()) is None


@pytest.mark.parametrize("mode", ["batch", "pair", "elem", "half"])
def test_modes_of_mixing(args, mode):
    mixup = mixup_of(args("--mixup", 0.8, "--mixup-mode", mode, "--smoothing", 0))
    # Images that are their class, so that what is mixed into the one has to be in the other.
    target = torch.arange(4)
    images = F.one_hot(target, 4).float()[:, None, None, :].repeat(1, 3, 2, 1)
    mixed, labels = mixup(images.clone(), target)
    assert len(mixed) == len(labels) == (2 if mode == "half" else 4)
    torch.testing.assert_close(mixed[:, 0, 0], labels)
    assert not torch.equal(mixed, images[: len(mixed)])


def loss_inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator), torch.randint(0, 4, (6,), generator=generator)


def test_binary_cross_entropy(args):
    scores, target = loss_inputs()
    hot = F.one_hot(target, 4).float()

    def expected(smoothed, **more):
        return F.binary_cross_entropy_with_logits(scores, smoothed, **more)

    flags = ["--bce-loss", "--smoothing"]
    torch.testing.assert_close(loss_of(args(*flags, 0))(scores, target), expected(hot))
    smooth = hot * 0.8 + 0.05
    torch.testing.assert_close(loss_of(args(*flags, 0.2))(scores, target), expected(smooth))
    torch.testing.assert_close(loss_of(args(*flags, 0, "--bce-sum"))(scores, target), 4 * expected(hot))
    weight = torch.tensor(3.0)
    weighted = loss_of(args(*flags, 0, "--bce-pos-weight", 3))(scores, target)
    torch.testing.assert_close(weighted, expected(hot, pos_weight=weight))
    # Mixed targets come smoothed.
    mixed = torch.rand(6, 4)
    loss = loss_of(args(*flags, 0.2, "--mixup", 0.5, "--bce-target-thresh", 0.3))
    torch.testing.assert_close(loss(scores, mixed), expected((mixed > 0.3).float()))


def test_divergence_of_views(args):
    scores, target = loss_inputs()
    loss = loss_of(args("--jsd-loss", "--aug-splits", 3, "--smoothing", 0))
    # Three equal views do not diverge.
    views = scores.repeat(3, 1)
    torch.testing.assert_close(loss(views, target.repeat(3)), F.cross_entropy(scores, target), atol=1e-5, rtol=1e-4)
    views = torch.cat([scores, -scores, 2 * scores])
    assert loss(views, target.repeat(3)) > F.cross_entropy(scores, target) + 0.1


def test_loss_of_mixed_targets(args):
    assert isinstance(loss_of(args("--cutmix-minmax", 0.2, 0.8)), SoftTargetCrossEntropy)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--jsd-loss"], "give --aug-splits 3"),
        (["--jsd-loss", "--aug-splits", 2, "--bce-loss"], "leave one out"),
        (["--bce-sum"], "need --bce-loss"),
    ],
)
def test_losses_that_cannot_be(args, flags, words):
    with pytest.raises(InputError, match=words):
        loss_of(args(*flags))


def test_smoothing_that_timm_refuses(args):
    config = args("--bce-loss")
    with pytest.raises(InputError, match="cannot make the loss"):
        loss_of(replace(config, loss=replace(config.loss, smoothing=1.0)))


def test_mixing_that_cannot_be(args):
    with pytest.raises(InputError, match="must be even, not 3"):
        mixup_of(args("--mixup", 1, "-b", 3))
    with pytest.raises(InputError, match="--aug-splits compares views"):
        mixup_of(args("--mixup", 1, "--aug-splits", 2))


@pytest.mark.parametrize(
    ("minmax", "words"),
    [
        ((0.9, 0.1), "takes the smaller number first, not 0.9 0.1"),
        ((0, 0), "0 0 leaves no side to draw in images of 8 x 8 pixels: give numbers further apart"),
        ((0.5, 0.55), "0.5 0.55 leaves no side to draw"),
    ],
)
def test_sides_of_cutmix_that_cannot_be_drawn(args, minmax, words):
    """timm would fail in the first batch."""
    with pytest.raises(InputError, match=words):
        mixup_of(args("--cutmix-minmax", *minmax))


@pytest.mark.parametrize("minmax", [(0, 0.125), (0.5, 0.625), (0.9, 1)])
def test_the_narrowest_sides_of_cutmix(args, minmax):
    mixup_of(args("--cutmix-minmax", *minmax))(torch.zeros(4, 3, 8, 8), torch.arange(4))
