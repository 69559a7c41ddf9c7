"""``flashkat flops``: operations and parameters, part by part, against the layers' own arithmetic."""

import json
import re

import pytest
import timm
import torch
from torch import nn

from flashkat.cli.main import main
from flashkat.tools.flops import count, rational_flops

WIDTH, DEPTH, TOKENS, CLASSES = 192, 12, 197, 1000


@pytest.fixture
def flops(capsys):
    def call(*argv):
        assert main(["flops", *argv]) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def parts(flops):
    return lambda *argv: json.loads(flops(*argv, "--json"))


def test_each_part_is_what_its_layers_multiply(parts):
    result = parts("kat_tiny_patch16_224")
    found = {name: (part["flops"], part["parameters"]) for name, part in result["parts"].items()}
    square = WIDTH * WIDTH
    norms = 2 * DEPTH + 1
    assert found == {
        "patch embedding": (196 * 3 * 256 * WIDTH, 3 * 256 * WIDTH + WIDTH),
        "tokens, positions": (0, (1 + TOKENS) * WIDTH),
        "attention, linear": (DEPTH * TOKENS * 4 * square, DEPTH * (4 * square + 4 * WIDTH)),
        "attention, products": (DEPTH * 2 * TOKENS * TOKENS * WIDTH, 0),
        "GR-KANs, linear": (DEPTH * TOKENS * 8 * square, DEPTH * (8 * square + 5 * WIDTH)),
        "rationals": (DEPTH * TOKENS * 5 * WIDTH * 21, DEPTH * 2 * (6 + 8 * 4)),
        "norms": (norms * TOKENS * WIDTH * 5, norms * 2 * WIDTH),
        "head": (WIDTH * CLASSES, WIDTH * CLASSES + CLASSES),
    }
    assert result["total"]["flops"] == sum(flops for flops, _ in found.values())
    assert result["total"]["parameters"] == 5_718_328


@pytest.mark.parametrize(
    ("name", "billions", "parameters"),
    [
        ("kat_tiny_patch16_224", 1.13, 5_718_328),
        ("kat_small_patch16_224", 4.35, 22_051_576),
        ("kat_base_patch16_224", 17.06, 86_568_568),
        # What a ViT has without the rationals.
        ("vit_base_patch16_224", 16.87, 86_567_656),
    ],
)
def test_totals_as_in_the_papers(parts, name, billions, parameters):
    result = parts(name)
    assert round(result["flops_without_attention_products"] / 1e9, 2) == billions
    assert result["total"]["parameters"] == parameters


def test_degrees_of_the_rationals(parts):
    by_kwargs = parts("kat_tiny_patch16_224", "--model-kwargs", "m=4", "n=3", "depth=1")["parts"]["rationals"]
    assert by_kwargs == {"flops": TOKENS * 5 * WIDTH * (2 * 3 + 2 * 3 + 3), "parameters": 2 * (4 + 8 * 3)}
    assert rational_flops(10) == 210
    assert rational_flops(10, m=1, n=0) == 30


def test_image_size_and_classes(parts):
    result = parts("kat_tiny_patch16_224", "--img-size", "64", "--num-classes", "7")
    assert result["img_size"] == [64, 64]
    assert result["parts"]["patch embedding"]["flops"] == 16 * 3 * 256 * WIDTH
    assert result["parts"]["head"] == {"flops": 7 * WIDTH, "parameters": 7 * WIDTH + 7}


def test_a_hybrid_takes_the_channels_of_the_image(parts):
    result = parts("vit_tiny_r_s16_p8_224")
    model = timm.create_model("vit_tiny_r_s16_p8_224")
    assert result["img_size"] == [224, 224]
    assert result["total"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "kwargs",
    [
        ["global_pool=map"],
        ["qk_norm=True", "init_values=0.1"],
        ["reg_tokens=4", "class_token=True"],
        ["in_chans=1"],
        ["dynamic_img_size=True"],
    ],
)
def test_every_parameter_belongs_to_a_part(parts, kwargs):
    result = parts("kat_tiny_patch16_224", "--img-size", "32", "--model-kwargs", "depth=2", *kwargs)
    arguments = {
        key: json.loads(value.lower()) if value != "map" else value for key, value in (k.split("=") for k in kwargs)
    }
    model = timm.create_model("kat_tiny_patch16_224", img_size=32, depth=2, **arguments)
    assert result["total"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert result["total"]["parameters"] == sum(part["parameters"] for part in result["parts"].values())


def test_table_says_the_same(flops, parts):
    table = flops("kat_tiny_patch16_224")
    rows = dict(re.findall(r"^(\S.*?)  +([\d.]+)(?:  |$)", table, re.MULTILINE))
    result = parts("kat_tiny_patch16_224")
    for name, part in result["parts"].items():
        assert float(rows[name]) == pytest.approx(part["flops"] / 1e9, abs=6e-5)
    assert float(rows["total"]) == pytest.approx(result["total"]["flops"] / 1e9, abs=6e-5)
    assert "5,718,328" in table
    assert max(len(line) for line in table.splitlines()) <= 100


def test_each_device_has_the_same_counts():
    counts = [
        count(timm.create_model("kat_tiny_patch16_224", img_size=32, depth=1, device=device), (3, 32, 32))
        for device in ("cpu", "meta")
    ]
    assert counts[0] == counts[1]
    assert counts[0]["attention, products"].flops == 2 * 5 * 5 * WIDTH


def test_counting_leaves_the_model_as_it_was():
    model = timm.create_model("kat_tiny_patch16_224", img_size=32, depth=1).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first = count(model, (3, 32, 32))
    assert first == count(model, (3, 32, 32))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert isinstance(model, nn.Module)
