"""Distillation: the loss by its formula, the teacher's own normalisation, training by the real command."""

import pytest
import timm
import tiny
import torch
from torch import nn

from flashkat.cli.main import main
from flashkat.training.distillation import Distillation, build_distillation

KWARGS = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.25, 0.125]


@pytest.fixture
def teacher(tmp_path):
    """Write a small ViT of two classes, with its own normalisation, to a folder as timm reads it."""
    torch.manual_seed(5)
    model_args, normalisation = {**KWARGS, "img_size": 8}, {"mean": MEAN, "std": STD}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, pretrained_cfg_overlay=normalisation, **model_args)
    nn.init.normal_(model.head.weight)
    timm.models.save_for_hf(model, tmp_path / "teacher", model_args=model_args)
    return f"local-dir:{tmp_path / 'teacher'}", model.eval()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_loss(temperature):
    torch.manual_seed(0)
    teacher = nn.Linear(12, 5)
    scale, shift = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([0.0, -1.0, 3.0])
    distillation = Distillation(nn.Sequential(nn.Flatten(), teacher), scale, shift, 0.25, 2.0, temperature)
    images, output = torch.randn(6, 3, 2, 2), torch.randn(6, 5, requires_grad=True)
    loss = distillation(torch.tensor(3.0), output, images)
    own = (output.detach().double() / temperature).softmax(1)
    seen = (images * scale.view(3, 1, 1) + shift.view(3, 1, 1)).flatten(1)
    theirs = (teacher(seen).detach().double() / temperature).softmax(1)
    divergence = (theirs * (theirs.log() - own.log())).sum(1).mean()
    assert loss.item() == pytest.approx(0.25 * 3 + 2 * temperature**2 * float(divergence), rel=1e-5)
    loss.backward()
    expected = 2 * temperature * (own - theirs) / 6
    torch.testing.assert_close(output.grad.double(), expected, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in distillation.parameters())


@pytest.mark.parametrize(
    ("flags", "weights"),
    [
        ([], (1, 1)),
        (["--task-loss-weight", 0.3], (0.3, 0.7)),
        (["--distill-loss-weight", 2], (1, 2)),
        (["--task-loss-weight", 3, "--distill-loss-weight", 0.5], (3, 0.5)),
    ],
)
def test_what_a_teacher_sees(teacher, training_config, flags, weights):
    name, model = teacher
    settings = training_config("--num-classes", 2, "--kd-model-name", name, *flags)
    config = {"input_size": (3, 8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 1.0)}
    said = []
    distillation = build_distillation(
        *(
            settings.distillation,
            settings.model,
            settings.data,
            config,
            settings.runtime,
            torch.device("cpu"),
            said.append,
        )
    )
    assert (distillation.task_weight, distillation.distill_weight) == pytest.approx(weights)
    pixels = torch.rand(2, 3, 8, 8)
    ours, theirs = (
        (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        for mean, std in ((config["mean"], config["std"]), (MEAN, STD))
    )
    output = model(theirs).detach()
    # The temperature's own divergence from outputs that are the same is 0.
    assert float(distillation(torch.tensor(0.0), output, ours)) == pytest.approx(0, abs=1e-5)
    assert said == [f"Distilling from {name}: {sum(p.numel() for p in model.parameters()):,} parameters"]


def test_training(train, teacher, summary_of, capsys):
    name, _ = teacher
    flags = ["--epochs", 6, "--opt", "adamw", "--lr", 3e-3, "--warmup-epochs", 0, "--kd-temperature", 1]
    with_it = train(*flags, "--kd-model-name", name, "--task-loss-weight", 0, experiment="taught")
    assert f"Distilling from {name}: " in capsys.readouterr().out
    rows = summary_of(with_it)
    assert rows[-1]["train_loss"] < 0.7 * rows[0]["train_loss"]
    taught = torch.load(with_it / "last.pth.tar", weights_only=True)
    alone = torch.load(train(*flags, experiment="alone") / "last.pth.tar", weights_only=True)
    assert taught["state_dict"].keys() == alone["state_dict"].keys()
    assert any(not torch.equal(taught["state_dict"][key], alone["state_dict"][key]) for key in alone["state_dict"])


def test_going_on_and_mixing_and_an_average(train, teacher, summary_of, capsys):
    flags = ["--opt", "adamw", "--model-ema", "--mixup", 0.8, "--cutmix", 1, "--kd-model-name", teacher[0]]
    first = train("--epochs", 1, *flags, experiment="first")
    capsys.readouterr()
    rest = train("--epochs", 2, *flags, "--resume", first / "last.pth.tar", experiment="rest")
    assert "Distilling from" in capsys.readouterr().out
    assert len(summary_of(rest)) == 2


def test_bad_input(teacher, images, tmp_path, capsys):
    name, _ = teacher

    def refused(*flags):
        argv = ["train", images, *tiny.FLAGS, "-j", 0, "-b", 4, "--output", tmp_path / "output", *flags]
        assert main([str(argument) for argument in argv]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert not (tmp_path / "output").exists()
        return err

    assert "need a teacher: give --kd-model-name" in refused("--task-loss-weight", 0.5)
    assert "give --distill-loss-weight too" in refused("--kd-model-name", name, "--task-loss-weight", 1.5)
    assert "has 2 classes, the data has 5: give a teacher" in refused("--kd-model-name", name, "--num-classes", 5)
    assert "did you mean 'vit_" in refused("--kd-model-name", "vit_tiny_patch16_22")
