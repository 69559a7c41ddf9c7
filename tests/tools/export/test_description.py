"""What travels with a program: written as JSON, read with suspicion."""

import json

import pytest
from PIL import Image
from timm.data import ImageNetInfo

from flashkat.data.config import Data
from flashkat.errors import InputError
from flashkat.evaluation.restore import Restored
from flashkat.models import create_model
from flashkat.tools.export.description import Description, describe

TWO = Description(
    model="kat_tiny_patch16_224",
    classes=("cat", "Hündin"),
    input_size=(3, 8, 16),
    mean=(0.5, 0.4, 0.3),
    std=(0.1, 0.2, 0.3),
    crop_pct=0.9,
    crop_mode="squash",
    interpolation="bilinear",
    image_mode="RGB",
    dtype="float16",
)


def test_entries_are_json_and_read_back():
    entries = TWO.entries()
    assert json.loads(entries["mean"]) == [0.5, 0.4, 0.3]
    assert Description.from_entries({**entries, "other": "not JSON"}, "a.onnx") == TWO


def test_images_are_prepared_as_it_says():
    prepared = TWO.transform()(Image.new("RGB", (30, 40), (255, 0, 0)))
    assert prepared.shape == (3, 8, 16)
    assert prepared[:, 0, 0].tolist() == pytest.approx([0.5 / 0.1, -0.4 / 0.2, -0.3 / 0.3])


def test_outputs_without_a_name_have_their_number():
    assert [TWO.name(index) for index in (0, 1, 2)] == ["cat", "Hündin", "2"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("mean", None, "it has no mean: write it with flashkat export"),
        ("std", "[0.1", "cannot read the metadata of a.onnx"),
        ("input_size", "[3, 8, 999999]", "input_size"),
        ("crop_pct", "0", "crop_pct"),
        ("mean", "[0.5]", "has a mean that flashkat export does not write"),
        ("interpolation", '"zz"', "interpolation has to be one of bilinear"),
        ("interpolation", '""', "has a interpolation that"),
        ("dtype", '"complex64"', "has a dtype that"),
        ("classes", '["cat", 1]', "has a classes that"),
        ("image_mode", "3", "has a image_mode that"),
    ],
)
def test_a_strangers_entries_are_checked(name, value, words):
    entries = {key: text for key, text in {**TWO.entries(), name: value}.items() if text is not None}
    with pytest.raises(InputError, match=words):
        Description.from_entries(entries, "a.onnx")


def test_class_names_come_from_the_checkpoint_or_are_imagenets():
    sizes = {"img_size": 16, "depth": 1, "embed_dim": 8, "num_heads": 1}
    of_imagenet, of_others = (create_model("kat_tiny_patch16_224", num_classes=n, **sizes) for n in (1000, 3))
    found = Restored(of_imagenet, "kat_tiny_patch16_224", {}, Data(img_size=16))
    assert describe(found).classes == tuple(ImageNetInfo().label_descriptions())
    assert describe(found).input_size == (3, 16, 16)
    assert describe(Restored(of_others, "kat_tiny_patch16_224", {"classes": ["a", "b", "c"]}, Data())).classes == (
        "a",
        "b",
        "c",
    )
    assert describe(Restored(of_others, "kat_tiny_patch16_224", {"classes": ["a"]}, Data())).classes == (
        "a",
        "1",
        "2",
    )
    assert describe(Restored(of_others, "kat_tiny_patch16_224", {"classes": ["a"] * 4}, Data())).classes == ()


def test_a_class_map_names_the_classes(tmp_path):
    model = create_model("kat_tiny_patch16_224", num_classes=2, img_size=16, depth=1, embed_dim=8, num_heads=1)
    (tmp_path / "names.txt").write_text("night\nday\n")
    data = Data(class_map=str(tmp_path / "names.txt"))
    assert describe(Restored(model, "kat_tiny_patch16_224", {"classes": ["a", "b"]}, data)).classes == ("night", "day")
    (tmp_path / "names.txt").write_text("night\n")
    with pytest.raises(InputError, match="has 2 outputs, and 1 class names: give a --class-map with a name for each"):
        describe(Restored(model, "kat_tiny_patch16_224", {}, data))


@pytest.mark.parametrize("names", [5, "ab", [1, 2]])
def test_class_names_of_a_folder_are_checked(names):
    model = create_model("kat_tiny_patch16_224", num_classes=2, img_size=16, depth=1, embed_dim=8, num_heads=1)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": names}
    with pytest.raises(InputError, match=r"label_names of local-dir:a has to be a list of names, not .*: correct it"):
        describe(Restored(model, "local-dir:a", {}, Data()))


def test_the_name_of_a_folder_does_not_travel():
    model = create_model("kat_tiny_patch16_224", num_classes=3, img_size=16, depth=1, embed_dim=8, num_heads=1)
    assert describe(Restored(model, "local-dir:/home/me/model", {}, Data())).model == "kat_tiny_patch16_224"
