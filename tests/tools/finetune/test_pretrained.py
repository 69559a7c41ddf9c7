"""The weights that fine-tuning starts from: a file, published ones, a ViT in timm's cache, or none."""

import pytest
import timm
import torch
from tiny import KWARGS

from flashkat import checkpoints
from flashkat.errors import InputError
from flashkat.models import create_model
from flashkat.tools.finetune import pretrained
from flashkat.tools.finetune.pretrained import find_start


@pytest.fixture
def hub(monkeypatch):
    """A Hub that can be reached or not, and a cache that holds the files of some repositories."""

    def set_up(cached=(), reachable=False):
        def ask(url, **kwargs):
            if not reachable:
                raise ConnectionError("no network")

        def find(repository, name):
            return f"/cache/{name}" if repository in cached else None

        monkeypatch.setattr(pretrained, "get_hf_file_metadata", ask)
        monkeypatch.setattr(pretrained, "try_to_load_from_cache", find)

    return set_up


def test_a_published_kat_that_can_be_downloaded(hub):
    hub(reachable=True)
    start = find_start("small", {})
    assert start.kind == "kat"
    assert start.flags == {"model": "kat_small_patch16_224.vitft", "pretrained": True}


def test_a_published_kat_in_the_cache_needs_no_network(hub):
    hub(cached=["adamdad/kat_pretained"])
    assert find_start("tiny", {}).flags == {"model": "kat_tiny_patch16_224.vitft", "pretrained": True}


def test_a_vit_in_timms_cache_comes_with_its_images(hub):
    hub(cached=["timm/vit_tiny_patch16_224.augreg_in21k"])
    start = find_start("small", {})
    assert start.kind == "vit"
    assert start.flags == {
        **{"model": "kat_tiny_gelu_patch16_224", "initial_checkpoint": "/cache/model.safetensors"},
        **{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }
    assert "vit_tiny_patch16_224.augreg_in21k, downloaded before" in start.note
    assert "the Hugging Face Hub cannot be reached" in start.note


@pytest.mark.parametrize("given", [{"in_chans": 1}, {"in_chans": 4, "input_img_mode": "RGBA"}])
def test_the_colours_of_a_vit_are_left_out_for_other_channels(hub, given):
    hub(cached=["timm/vit_tiny_patch16_224.augreg_in21k"])
    start = find_start("small", given)
    assert start.flags == {"model": "kat_tiny_gelu_patch16_224", "initial_checkpoint": "/cache/model.safetensors"}
    assert start.note.endswith(", whose --mean and --std are for other channels")


def test_a_vit_of_the_wanted_size_and_timms_default_tag_comes_first(hub):
    tags = ("tiny_patch16_224.augreg_in21k_ft_in1k", "small_patch16_224.augreg_in1k")
    hub(cached=[f"timm/vit_{tag}" for tag in (*tags, "small_patch16_224.augreg_in21k_ft_in1k")])
    assert "vit_small_patch16_224.augreg_in21k_ft_in1k" in find_start("small", {}).note


def test_without_any_weights_the_reason_is_said(hub, monkeypatch):
    hub()
    start = find_start("tiny", {})
    assert (start.kind, start.flags) == ("scratch", {"model": "kat_tiny_patch16_224"})
    assert "cannot be reached, and timm has downloaded no ViT" in start.note
    assert "--from FILE" in start.note
    monkeypatch.setattr(pretrained.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in find_start("tiny", {}).note


def test_weights_that_would_not_fit_are_not_asked_for(hub):
    hub(reachable=True)
    assert find_start("tiny", {"model_kwargs": {"patch_size": 8}}).kind == "kat"
    start = find_start("tiny", {"model_kwargs": {"patch_size": 8, "depth": 2}})
    assert (start.kind, start.flags) == ("scratch", {"model": "kat_tiny_patch16_224"})
    assert "fit --model-kwargs depth." in start.note


def test_a_given_model_stays(hub):
    hub(reachable=True, cached=["timm/vit_tiny_patch16_224.augreg_in21k"])
    assert find_start("tiny", {"model": "kat_base_patch16_224"}).flags["model"] == "kat_base_patch16_224"
    start = find_start("tiny", {"model": "vit_tiny_patch32_224"})
    assert (start.kind, "vit_tiny_patch32_224 has no published weights" in start.note) == ("scratch", True)


@pytest.mark.parametrize("flag", ["pretrained", "resume"])
def test_a_start_that_the_flags_name_is_not_looked_for(hub, flag):
    hub()
    assert find_start("tiny", {flag: "last.pth.tar"}).kind == "kat"


def write(path, arch, **args):
    model = create_model(arch, img_size=8, num_classes=3, **KWARGS)
    entries = {"arch": arch, "args": {"model_kwargs": KWARGS, "img_size": 8, **args}, "state_dict": model.state_dict()}
    checkpoints.write(path, entries)
    return str(path)


def test_a_runs_checkpoint_says_what_it_is_of(tmp_path):
    file = write(tmp_path / "kat.pth.tar", "kat_tiny_patch16_224", mean=[0.1, 0.2, 0.3], crop_pct=1.0)
    start = find_start("small", {"initial_checkpoint": file})
    assert start.kind == "kat"
    assert start.flags == {
        **{"initial_checkpoint": file, "model": "kat_tiny_patch16_224", "model_kwargs": KWARGS},
        **{"img_size": 8, "mean": [0.1, 0.2, 0.3], "crop_pct": 1.0},
    }


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"gp": "avg"}, {"gp": "avg", "img_size": 8}),
        ({"img_size": None, "input_size": [1, 8, 8]}, {"in_chans": 1, "img_size": 8}),
        ({"img_size": None, "input_size": [3, 8, 16]}, {"in_chans": 3, "input_size": [3, 8, 16]}),
    ],
)
def test_pooling_channels_and_size_of_a_runs_checkpoint(tmp_path, args, expected):
    file = write(tmp_path / "kat.pth.tar", "kat_tiny_patch16_224", **args)
    flags = find_start("small", {"initial_checkpoint": file}).flags
    named = {"initial_checkpoint": file, "model": "kat_tiny_patch16_224", "model_kwargs": KWARGS}
    assert flags == {**named, **expected}


def test_a_given_mode_of_images_decides_their_channels(tmp_path):
    file = write(tmp_path / "kat.pth.tar", "kat_tiny_patch16_224", in_chans=1, mean=[0.5])
    given = {"initial_checkpoint": file, "input_img_mode": "RGB"}
    start = find_start("small", given)
    assert not {"in_chans", "mean"} & start.flags.keys()
    assert "--mean is for other channels" in start.note
    for other in ("L", "no mode"):
        assert find_start("small", {**given, "input_img_mode": other}).flags["in_chans"] == 1


@pytest.mark.parametrize("given", [{"in_chans": 4}, {"input_size": [4, 8, 8]}])
def test_settings_for_other_channels_than_the_given_are_left_out(tmp_path, given):
    args = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "crop_pct": 1.0}
    file = write(tmp_path / "kat.pth.tar", "kat_tiny_patch16_224", **args)
    start = find_start("small", {"initial_checkpoint": file, **given})
    named = {"initial_checkpoint": file, "model": "kat_tiny_patch16_224", "model_kwargs": KWARGS}
    assert start.flags == {**named, "img_size": 8, "crop_pct": 1.0}
    assert start.note.endswith(", whose --mean and --std are for other channels")
    same = find_start("small", {"initial_checkpoint": file, "in_chans": 3})
    assert same.flags["mean"] == args["mean"]
    assert "channels" not in same.note


def test_an_oblong_size_takes_the_given_channels(tmp_path):
    file = write(tmp_path / "kat.pth.tar", "kat_tiny_patch16_224", img_size=None, input_size=[3, 8, 16])
    start = find_start("small", {"initial_checkpoint": file, "in_chans": 1})
    assert start.flags["input_size"] == [1, 8, 16]
    assert "in_chans" not in start.flags


def test_a_checkpoint_of_a_vit_starts_the_kat_with_gelu(tmp_path):
    file = write(tmp_path / "vit.pth.tar", "vit_tiny_patch16_224")
    start = find_start("small", {"initial_checkpoint": file})
    assert (start.kind, start.flags["model"]) == ("vit", "kat_tiny_gelu_patch16_224")
    assert start.flags["model_kwargs"] == KWARGS


def test_a_vit_of_other_patches_brings_their_size(tmp_path):
    path = tmp_path / "vit.pth.tar"
    model = timm.create_model("vit_small_patch32_224", depth=1, weight_init="skip")
    checkpoints.write(path, {"arch": "vit_small_patch32_224", "args": {}, "state_dict": model.state_dict()})
    flags = find_start("tiny", {"initial_checkpoint": str(path)}).flags
    assert (flags["model"], flags["model_kwargs"]) == ("kat_small_gelu_patch16_224", {"patch_size": 32})


@pytest.mark.parametrize(
    ("arch", "model", "kwargs"),
    [
        ("vit_tiny_patch16_224", "kat_tiny_gelu_patch16_224", None),
        ("flash_kat_tiny_patch16_224", "kat_tiny_patch16_224", {"patch_size": 8}),
    ],
)
def test_bare_weights_are_known_by_their_shapes(tmp_path, arch, model, kwargs):
    path = tmp_path / "bare.pth"
    torch.save(timm.create_model(arch, num_classes=3, weight_init="skip", **(kwargs or {})).state_dict(), path)
    flags = find_start("small", {"initial_checkpoint": str(path)}).flags
    assert (flags["model"], flags.get("model_kwargs")) == (model, kwargs)


def test_bare_weights_of_another_model_need_its_name(tmp_path):
    path = tmp_path / "bare.pth"
    torch.save(create_model("kat_tiny_patch16_224", img_size=8, **KWARGS).state_dict(), path)
    with pytest.raises(InputError, match="does not say what model it is of: give --model"):
        find_start("small", {"initial_checkpoint": str(path)})
    start = find_start("small", {"pretrained_path": str(path), "model": "kat_tiny_patch16_224"})
    assert (start.kind, start.flags) == ("kat", {})


def test_an_unknown_model_or_argument_of_a_file_is_refused(tmp_path):
    path = tmp_path / "kat.pth.tar"
    state = {"weight": torch.ones(1)}
    checkpoints.write(path, {"arch": "hf-hub:someone/else", "args": {}, "state_dict": state})
    with pytest.raises(InputError, match="timm's registry does not have"):
        find_start("tiny", {"initial_checkpoint": str(path)})
    args = {"model_kwargs": {"pretrained_cfg": "https://example.org"}}
    checkpoints.write(path, {"arch": "kat_tiny_patch16_224", "args": args, "state_dict": state})
    with pytest.raises(InputError, match="a file may not"):
        find_start("tiny", {"initial_checkpoint": str(path)})
