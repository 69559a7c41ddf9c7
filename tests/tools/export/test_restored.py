"""A command's model comes from a file or from a folder in the Hugging Face layout."""

import pytest
import torch
from tiny import KWARGS, MODEL

from flashkat import checkpoints
from flashkat.cli.main import main
from flashkat.errors import InputError
from flashkat.evaluation import Config, Data, Trained
from flashkat.models import create_model
from flashkat.tools.export.description import describe
from flashkat.tools.export.restored import restored


def test_a_file_and_a_folder_give_one_model(shipped):
    of_file, of_folder = (
        restored(Config(trained=Trained(checkpoint=str(path)))) for path in (shipped.checkpoint, shipped.folder)
    )
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(of_file.module.eval()(images), of_folder.module.eval()(images))
    assert of_file.arguments["patch_size"] == 4


def test_a_folder_says_its_channels(tmp_path):
    arguments = {"img_size": 8, "model_kwargs": dict(KWARGS), "in_chans": 1, "mean": [0.4], "std": [0.3]}
    model = create_model(MODEL, img_size=8, num_classes=2, in_chans=1, **KWARGS)
    entries = {"arch": MODEL, "args": arguments, "epoch": 3, "classes": ["dark", "light"]}
    path = tmp_path / "grey.pth.tar"
    checkpoints.write(path, {**entries, "state_dict": model.state_dict()})
    assert main(["export", str(path), "-o", str(tmp_path / "hf"), "--to", "hf"]) == 0
    found = restored(Config(trained=Trained(checkpoint=str(tmp_path / "hf"))))
    assert found.data.channels == 1
    assert main(["export", str(tmp_path / "hf"), "-o", str(tmp_path / "a.pt2")]) == 0


@pytest.mark.parametrize(("channels", "mode"), [(3, "YCbCr"), (4, "RGBA"), (1, "L")])
def test_a_folder_says_the_mode_of_its_images(tmp_path, channels, mode):
    arguments = {"img_size": 8, "model_kwargs": dict(KWARGS), "in_chans": channels, "mean": [0.4], "std": [0.3]}
    model = create_model(MODEL, img_size=8, num_classes=2, in_chans=channels, **KWARGS)
    entries = {"arch": MODEL, "args": {**arguments, "input_img_mode": mode}, "epoch": 3, "classes": ["dark", "light"]}
    path = tmp_path / "run.pth.tar"
    checkpoints.write(path, {**entries, "state_dict": model.state_dict()})
    assert main(["export", str(path), "-o", str(tmp_path / "hf"), "--to", "hf"]) == 0
    found = restored(Config(trained=Trained(checkpoint=str(tmp_path / "hf"))))
    assert describe(found).image_mode == mode
    given = restored(Config(trained=Trained(checkpoint=str(tmp_path / "hf")), data=Data(input_img_mode="HSV")))
    assert given.data.input_img_mode == "HSV"
    assert tuple(create_model(f"local-dir:{tmp_path / 'hf'}").pretrained_cfg["input_size"]) == (channels, 8, 8)


def test_a_folder_without_a_configuration_is_no_model(tmp_path):
    with pytest.raises(InputError, match="is a folder: name a checkpoint"):
        restored(Config(trained=Trained(checkpoint=str(tmp_path))))
