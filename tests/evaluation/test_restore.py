"""The model that a checkpoint holds: the run's own, timm's, and other programs'."""

import argparse
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from foreign import google_arrays
from safetensors.torch import save_file
from tiny import KWARGS, MODEL, MODEL_KWARGS

from flashkat import checkpoints
from flashkat.checkpoints.export import renamed_for
from flashkat.evaluation import Data, Model, Trained
from flashkat.evaluation.restore import restore
from flashkat.models import create_model

# Not timm's own, so that they have to come from the checkpoint.
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def test_other_class_names_are_refused(refused, images, trained, tmp_path):
    shutil.copytree(images / "val", tmp_path / "val")
    (tmp_path / "val" / "middle").rename(tmp_path / "val" / "grey")
    line = refused(tmp_path, "--checkpoint", trained / "last.pth.tar")
    assert "other classes than the checkpoint was trained on" in line
    # The names, sorted, shift the outputs too.
    assert "dark" in line


def test_fewer_and_more_classes_are_refused(refused, images, trained, config_flags, tmp_path):
    shutil.copytree(images / "val", tmp_path / "val")
    shutil.rmtree(tmp_path / "val" / "middle")
    assert "2 from dark to light, not 3 from dark to middle" in refused(
        tmp_path, "--checkpoint", trained / "last.pth.tar"
    )
    model = timm.create_model(MODEL, img_size=8, num_classes=5, **KWARGS)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    line = refused(images, "--checkpoint", tmp_path / "weights.pth", *config_flags)
    assert line.endswith("has 3 classes, the model has 5 outputs")


def test_run_with_more_outputs_than_classes(validate, images, train, summary_of):
    folder = train("--epochs", 1, "--num-classes", 5)
    result, _ = validate(images, "--checkpoint", folder / "last.pth.tar")
    assert result["top1"] == pytest.approx(summary_of(folder)[-1]["eval_top1"], abs=1e-3)


def test_safetensors_weights_of_a_named_model(validate, images, trained, config_flags, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"], path)
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    # The number of classes is that of the weights.
    assert validate(images, "--checkpoint", path, *config_flags)[0] == expected


def test_no_interpolation_is_the_checkpoints(validate, images, trained):
    """As timm writes a flag that was not given."""
    result, _ = validate(images, "--checkpoint", trained / "last.pth.tar", "--interpolation", "")
    assert result["interpolation"] == "bilinear"


def test_no_pooling_is_the_models(validate, images, trained, config_flags, tmp_path):
    """Without pooling, timm's models give logits for each token."""
    checkpoint = torch.load(trained / "last.pth.tar", weights_only=True)
    checkpoint["args"]["gp"] = ""
    torch.save(checkpoint, tmp_path / "run.pth.tar")
    torch.save(checkpoint["state_dict"], tmp_path / "weights.pth")
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    assert validate(images, "--checkpoint", tmp_path / "run.pth.tar")[0] == expected
    assert validate(images, "--checkpoint", tmp_path / "weights.pth", *config_flags, "--gp", "")[0] == expected


def test_weights_alone(validate, images, trained, config_flags, tmp_path):
    state = torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"]
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "weights.pth")
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    assert validate(images, "--checkpoint", tmp_path / "weights.pth", *config_flags)[0] == expected


def test_weights_alone_need_a_model(refused, images, trained, tmp_path):
    torch.save(torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"], tmp_path / "weights.pth")
    assert "give --model" in refused(images, "--checkpoint", tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["flash_kat_tiny_patch16_224", "kat_tiny_swish_patch16_224"])
def test_other_names_of_a_model_take_what_its_checkpoint_says(validate, images, trained, name):
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    found, _ = validate(images, "--checkpoint", trained / "last.pth.tar", "--model", name)
    assert found == {**expected, "model": name}


def test_flags_go_before_the_checkpoint(validate, images, trained):
    result, lines = validate(
        images, "--checkpoint", trained / "last.pth.tar", "--crop-pct", 0.5, "--interpolation", "bicubic", "--mean", 0.1
    )
    assert result["crop_pct"] == 0.5
    assert result["interpolation"] == "bicubic"
    assert "\tmean: (0.1, 0.1, 0.1)" in lines
    assert f"\tstd: {STD}" in lines


def test_without_a_checkpoint_the_published_weights_are_taken(validate, images, monkeypatch, config_flags, tmp_path):
    create, asked = timm.create_model, {}

    def offline(name, **kwargs):
        asked.update(kwargs)
        return create(name, **{**kwargs, "pretrained": False})

    monkeypatch.setattr(timm, "create_model", offline)
    (tmp_path / "labels.txt").write_text("0 1 2")
    _, lines = validate(images, *config_flags, "--valid-labels", tmp_path / "labels.txt")
    assert asked["pretrained"] is True
    assert not any(line.startswith("Loaded") for line in lines)


def test_published_weights_of_another_number_of_classes(refused, images, monkeypatch, config_flags):
    """timm leaves out their head, and would evaluate a random one."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: create(name, **{**kwargs, "pretrained": False}))
    line = refused(images, *config_flags, "--num-classes", 3)
    assert line.endswith(f"{MODEL} has a head of 1000 classes, not of --num-classes 3: leave that out")


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"args": "text"},
        {"args": ["text"]},
        {"arch": 3},
        {"args": {"model_kwargs": None}},
    ],
)
def test_checkpoint_with_odd_entries(refused, images, checkpoint, tmp_path):
    torch.save({"arch": MODEL, "state_dict": {"a": torch.ones(1)}, **checkpoint}, tmp_path / "odd.pth")
    refused(images, "--checkpoint", tmp_path / "odd.pth")


@pytest.mark.parametrize("odd", [{"classes": 3}, {"epoch": "last"}, {"args": None}, {"args": {"model_kwargs": [1]}}])
def test_odd_entries_beside_good_weights(validate, images, trained, odd, tmp_path):
    checkpoint = torch.load(trained / "last.pth.tar", weights_only=True)
    # What else these entries could have said.
    flags = [*MODEL_KWARGS, "--img-size", 8, "--crop-pct", 1, "--interpolation", "bilinear", "--mean", *MEAN]
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar", *flags, "--std", *STD)
    torch.save({**checkpoint, **odd}, tmp_path / "odd.pth")
    result, _ = validate(images, "--checkpoint", tmp_path / "odd.pth", *flags, "--std", *STD)
    assert result == expected


def test_ema_of_no_checkpoint(refused, images):
    assert "--use-ema needs a --checkpoint" in refused(images, "--use-ema")


def test_another_image_size_resamples_the_position_embedding(validate, images, trained):
    result, lines = validate(images, "--checkpoint", trained / "last.pth.tar", "--img-size", 16)
    assert result["img_size"] == 16
    assert [line.startswith("the position embedding is resampled: ") for line in lines].count(True) == 1
    assert not any("is resampled" in line for line in validate(images, "--checkpoint", trained / "last.pth.tar")[1])


def test_another_image_size_keeps_the_channels_of_an_input_size(tmp_path):
    model = create_model(MODEL, img_size=8, in_chans=1, num_classes=3, **KWARGS)
    entries = {"arch": MODEL, "args": {"model_kwargs": dict(KWARGS), "input_size": [1, 8, 8]}}
    checkpoints.write(tmp_path / "last.pth.tar", {**entries, "state_dict": model.state_dict()})
    trained = Trained(checkpoint=str(tmp_path / "last.pth.tar"))
    found = restore(Model(model=None), trained, Data(img_size=16))
    assert found.module.patch_embed.proj.weight.shape[1] == found.data.channels == 1


def test_checkpoint_of_timms_own_script(validate, images, trained, tmp_path):
    ours = torch.load(trained / "last.pth.tar", weights_only=True)
    args = argparse.Namespace(
        model=MODEL,
        model_kwargs=KWARGS,
        img_size=8,
        num_classes=None,
        crop_pct=1.0,
        interpolation="bilinear",
        mean=list(MEAN),
        std=list(STD),
        aa=None,
        experiment="",
    )
    timms = {"epoch": 5, "arch": MODEL, "state_dict": ours["state_dict"], "args": args, "version": 2, "metric": 50.0}
    torch.save(timms, tmp_path / "timm.pth.tar")
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    assert validate(images, "--checkpoint", tmp_path / "timm.pth.tar")[0] == expected


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("style", ["kat", "flashkat"])
def test_foreign_names(validate, images, trained, style, suffix, config_flags, tmp_path):
    state = torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"]
    theirs = renamed_for(state, style, "ours")
    assert theirs.keys() != state.keys()
    path = tmp_path / f"weights{suffix}"
    save_file(theirs, path) if suffix == ".safetensors" else torch.save(theirs, path)
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    assert validate(images, "--checkpoint", path, *config_flags)[0] == expected


def test_googles_vit(validate, refused, images, config_flags, tmp_path):
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=8, num_classes=3, **KWARGS)
    np.savez(tmp_path / "vit.npz", **google_arrays(vit))
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    flags = ["--model", "vit_tiny_patch16_224", "--img-size", 8, *MODEL_KWARGS]
    expected, _ = validate(images, "--checkpoint", tmp_path / "vit.pth", *flags)
    assert validate(images, "--checkpoint", tmp_path / "vit.npz", *flags)[0] == expected
    line = refused(images, "--checkpoint", tmp_path / "vit.npz", *config_flags)
    assert "4 missing (blocks.0.mlp.act1.denominator, blocks.0.mlp.act1.numerator, ...)" in line


def test_partial_checkpoint(validate, images, trained, config_flags, tmp_path):
    state = torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"]
    torch.save({**state, "extra": torch.ones(1)}, tmp_path / "more.pth")
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    result, lines = validate(images, "--checkpoint", tmp_path / "more.pth", "--partial", *config_flags)
    assert result == expected
    assert f"{tmp_path / 'more.pth'} fits in part: 1 unexpected (extra)" in lines


def test_model_in_a_folder(validate, images, trained, tmp_path):
    state = torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"]
    torch.save(renamed_for(state, "kat", "ours"), tmp_path / "pytorch_model.bin")
    pretrained = {"num_classes": 3, "input_size": [3, 8, 8], "fixed_input_size": True, "crop_pct": 1.0}
    pretrained |= {"interpolation": "bilinear", "mean": MEAN, "std": STD, "classifier": "head"}
    config = {"architecture": MODEL, "num_classes": 3, "model_args": KWARGS, "pretrained_cfg": pretrained}
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    result, _ = validate(images, "--model", f"local-dir:{tmp_path}")
    assert {**result, "model": MODEL} == expected


def test_an_image_size_for_a_model_that_takes_any(validate, images, tmp_path):
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "resnet.pth")
    flags = ["--model", "test_resnet", "--num-classes", 3, "--img-size", 32]
    result, _ = validate(images, *flags, "--checkpoint", tmp_path / "resnet.pth")
    assert result["img_size"] == 32


def test_an_image_size_among_the_models_arguments_of_a_checkpoint(tmp_path):
    """The only place that KAT's code has for it."""
    model = timm.create_model(MODEL, img_size=16, num_classes=3, **KWARGS)
    args = {"model": MODEL, "img_size": None, "model_kwargs": {**KWARGS, "img_size": 16}}
    torch.save({"arch": MODEL, "args": args, "state_dict": model.state_dict()}, tmp_path / "a.pth")
    restored = restore(Model(model=None), Trained(checkpoint=str(tmp_path / "a.pth")), Data())
    assert restored.data.img_size == 16
    assert restored.module.patch_embed.img_size == (16, 16)
