"""The model under inspection, and what its rationals see."""

from dataclasses import replace

import pytest
import tiny
import torch

from flashkat import checkpoints
from flashkat.data.config import Data
from flashkat.data.loaders import evaluation_loader
from flashkat.errors import InputError
from flashkat.evaluation import Config, Trained
from flashkat.models.create import create_model
from flashkat.system.device import Runtime
from flashkat.tools.inspect import subject as subject_module
from flashkat.tools.inspect.subject import open_subject


@pytest.fixture
def config(tmp_path):
    torch.manual_seed(0)
    model = create_model(tiny.MODEL, img_size=8, num_classes=2, **tiny.KWARGS)
    args = {"model_kwargs": tiny.KWARGS, "img_size": 8, "num_classes": 2}
    path = tmp_path / "last.pth.tar"
    checkpoints.write(path, {"arch": tiny.MODEL, "args": args, "epoch": 6, "state_dict": model.state_dict()})
    return Config(trained=Trained(checkpoint=str(path)), runtime=Runtime(device="cpu"))


def test_without_images_nothing_runs(config):
    subject = open_subject(config, pytest.fail)
    assert subject.inputs == {}
    assert subject.title == f"{tiny.MODEL}: learned rationals after epoch 7"
    assert list(subject.functions) == ["blocks.0.mlp.act1", "blocks.0.mlp.act2"]
    saved = checkpoints.read(config.trained.checkpoint)["state_dict"]
    assert torch.equal(
        subject.functions["blocks.0.mlp.act1"].denominator, saved["blocks.0.mlp.act1.denominator"].double()
    )


def test_images_give_samples_of_a_few_batches(config, images, monkeypatch):
    read = []

    def loader(*args, **settings):
        for number in range(100):
            read.append(number)
            yield torch.randn(2, 3, 8, 8), torch.zeros(2)

    monkeypatch.setattr(subject_module, "evaluation_loader", loader)
    subject = open_subject(replace(config, data=Data(data_dir=str(images), val_split="val", workers=0)), print)
    assert len(read) == 4
    # 4 batches of 2 images, of 4 patches and a class token, with 2 of 16 channels in each of 8 groups.
    assert subject.inputs["blocks.0.mlp.act1"].shape == (8, 4 * 2 * 5 * 2)


def test_images_are_of_all_classes(config, images, monkeypatch):
    seen = []

    def loader(*args, **settings):
        for batch, target in evaluation_loader(*args, **settings):
            seen.extend(target.tolist())
            yield batch, target

    monkeypatch.setattr(subject_module, "evaluation_loader", loader)
    data = Data(data_dir=str(images), val_split="val", workers=0, batch_size=1)
    open_subject(replace(config, data=data), print)
    assert seen == [0, 0, 1, 1]


def test_a_model_without_rationals_is_refused(tmp_path):
    path = tmp_path / "vit.pth.tar"
    model = create_model("vit_tiny_patch16_224", img_size=8, num_classes=2, **tiny.KWARGS)
    args = {"model_kwargs": tiny.KWARGS, "img_size": 8, "num_classes": 2}
    checkpoints.write(path, {"arch": "vit_tiny_patch16_224", "args": args, "state_dict": model.state_dict()})
    with pytest.raises(InputError, match="vit_tiny_patch16_224 has no rationals to draw or inspect"):
        open_subject(Config(trained=Trained(checkpoint=str(path))), print)
