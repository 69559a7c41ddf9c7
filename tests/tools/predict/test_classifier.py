"""Models to predict with: of checkpoints, folders, ONNX files and trusted packages."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import KWARGS
from torch import nn

import flashkat
from flashkat.data.config import Data
from flashkat.errors import InputError
from flashkat.evaluation import Config, Model, Runtime, Trained
from flashkat.tools.predict.classifier import Classifier, open_classifier


def opened(path, trust=False, **runtime):
    config = Config(trained=Trained(checkpoint=str(path)), runtime=Runtime(device="cpu", **runtime))
    return open_classifier(config, trust)


def test_all_formats_give_the_same(shipped):
    images = torch.randn(3, 3, 8, 8)
    expected = opened(shipped.checkpoint)
    assert expected.description.classes == ("dark", "light")
    assert expected.probabilities(images).sum(1).tolist() == pytest.approx([1] * 3)
    for path in (shipped.onnx, shipped.pt2, shipped.folder):
        found = opened(path, trust=True)
        assert found.description == expected.description
        torch.testing.assert_close(found.probabilities(images), expected.probabilities(images))


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        (
            lambda configuration: None,
            {"num_classes": 5},
            r"dark_or_light has a head of 2 classes, not of --num-classes 5",
        ),
        (
            lambda configuration: configuration.update(num_classes=5),
            {},
            # timm 1.0.29 loads the head, where later versions leave it out.
            r"dark_or_light (states 5 classes, and its model has 2: correct num_classes|are of another model)",
        ),
        (
            lambda configuration: configuration.update(num_classes=5, model_args={**KWARGS, "img_size": 8}),
            {},
            r"dark_or_light are of another model than asked for: size mismatch for head\.weight",
        ),
    ],
    ids=["flag", "config.json", "weights"],
)
def test_a_folder_of_another_number_of_classes(change, flags, said, shipped, tmp_path):
    """timm leaves out the head, and would name random classes."""
    folder = shutil.copytree(shipped.folder, tmp_path / "dark_or_light")
    configuration = json.loads((folder / "config.json").read_text())
    change(configuration)
    (folder / "config.json").write_text(json.dumps(configuration))
    config = Config(trained=Trained(checkpoint=str(folder)), model=Model(model=None, **flags))
    with pytest.raises(InputError, match=said):
        open_classifier(config, trust=False)


def test_a_package_needs_trust(shipped):
    with pytest.raises(InputError, match=r"model\.pt2 may run code of its author.*: give --trust"):
        opened(shipped.pt2)


def test_half_precision(shipped):
    half = opened(shipped.checkpoint, model_dtype="bfloat16")
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(
        half.probabilities(images), opened(shipped.checkpoint).probabilities(images), rtol=0.1, atol=0.1
    )


@pytest.mark.parametrize(
    ("flag", "sections"),
    [
        ("--model", {"model": Model(model="kat_tiny_patch16_224")}),
        ("--model-kwargs", {"model": Model(model=None, model_kwargs={"m": 2})}),
        ("--num-classes", {"model": Model(model=None, num_classes=7)}),
        ("--gp", {"model": Model(model=None, gp="avg")}),
        ("--partial", {"model": Model(model=None, partial=True)}),
        ("--img-size", {"data": Data(img_size=32)}),
        ("--in-chans", {"data": Data(in_chans=1)}),
        ("--input-size", {"data": Data(input_size=(3, 8, 8))}),
        ("--amp", {"runtime": Runtime(device="cpu", amp=True)}),
        ("--model-dtype", {"runtime": Runtime(device="cpu", model_dtype="float16")}),
        ("--fast-norm", {"runtime": Runtime(device="cpu", fast_norm=True)}),
        ("--use-ema", {"trained": Trained(checkpoint="", use_ema=True)}),
    ],
)
@pytest.mark.parametrize("program", ["onnx", "pt2"])
def test_flags_that_cannot_change_a_program(shipped, program, flag, sections):
    path = str(getattr(shipped, program))
    trained = replace(sections.get("trained", Trained()), checkpoint=path)
    config = replace(Config(runtime=Runtime(device="cpu")), **{**sections, "trained": trained})
    with pytest.raises(InputError, match=f"{flag} is for checkpoints, and .* leave it out"):
        open_classifier(config, trust=True)


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        ({"mean": (0.1, 0.2, 0.3), "std": (0.5,)}, {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}),
        ({"crop_pct": 0.5}, {"crop_pct": 0.5}),
        ({"interpolation": "nearest"}, {"interpolation": "nearest"}),
        ({"input_img_mode": "HSV"}, {"image_mode": "HSV"}),
        ({"class_map": "names.txt"}, {"classes": ("night", "day")}),
        ({"interpolation": "", "input_img_mode": ""}, {}),
    ],
)
def test_flags_of_images_and_names_count_for_every_format(shipped, flags, changes, tmp_path, monkeypatch):
    (tmp_path / "names.txt").write_text("night\nday\n")
    monkeypatch.chdir(tmp_path)
    for path in (shipped.checkpoint, shipped.onnx, shipped.pt2, shipped.folder):
        config = Config(trained=Trained(checkpoint=str(path)), data=Data(**flags), runtime=Runtime(device="cpu"))
        assert open_classifier(config, trust=True).description == replace(opened(shipped.onnx).description, **changes)


@pytest.mark.parametrize("program", ["checkpoint", "onnx"])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"mean": (0.1, 0.2)}, "--mean takes 1 or 3 numbers, not 2"),
        ({"input_img_mode": "L"}, "--input-img-mode L has 1 channel, the model takes 3"),
        ({"class_map": "missing.txt"}, "no class map at missing.txt"),
        *(
            ({"data_backend": backend}, "--data-backend is for data sets, .*: leave it out")
            for backend in ("memory", "dali", "dali-cpu")
        ),
    ],
)
def test_flags_of_images_that_do_not_fit(shipped, program, flags, said):
    trained = Trained(checkpoint=str(getattr(shipped, program)))
    with pytest.raises(InputError, match=said):
        open_classifier(Config(trained=trained, data=Data(**flags), runtime=Runtime(device="cpu")), trust=False)


def test_mixed_precision_needs_weights_in_float32(shipped):
    with pytest.raises(InputError, match="--amp needs weights in float32"):
        opened(shipped.checkpoint, amp=True, model_dtype="bfloat16")


def test_a_class_map_of_another_number_of_classes(shipped):
    classifier = opened(shipped.onnx)
    classifier = replace(classifier, description=replace(classifier.description, classes=("night", "day", "dusk")))
    with pytest.raises(InputError, match="has 2 outputs, and 3 class names: give a --class-map"):
        classifier.probabilities(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("name", ["a.onnx", "a.pt2", "a.pth"])
def test_no_file(name, tmp_path):
    with pytest.raises(InputError, match=rf"no (model|checkpoint) at .*{name}"):
        opened(tmp_path / name)


def test_a_program_that_says_nothing_of_its_images(tmp_path):
    flashkat.export(nn.Flatten(), torch.randn(2, 3), tmp_path / "a.pt2")
    with pytest.raises(InputError, match="does not say how its images are prepared"):
        opened(tmp_path / "a.pt2", trust=True)


@pytest.mark.parametrize("output", [torch.ones(2), torch.ones(1, 5), torch.ones(2, 0), (), "logits"])
def test_a_program_that_is_no_classifier(output, shipped):
    classifier = Classifier(opened(shipped.checkpoint).description, lambda images: output)
    with pytest.raises(InputError, match="returns no number for each class of an image"):
        classifier.probabilities(torch.zeros(2, 3, 8, 8))


def test_a_program_that_fails_says_so(shipped):
    classifier = opened(shipped.onnx)
    with pytest.raises(InputError, match="cannot run the model: "):
        classifier.probabilities(torch.zeros(2, 3, 4, 4))
