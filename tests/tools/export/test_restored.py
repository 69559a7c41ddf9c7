"""A command's model comes from a file or from a folder in the Hugging Face layout."""

import pytest
import torch

from flashkat.errors import InputError
from flashkat.evaluation import Config, Trained
from flashkat.tools.export.restored import restored


def test_a_file_and_a_folder_give_one_model(shipped):
    of_file, of_folder = (
        restored(Config(trained=Trained(checkpoint=str(path)))) for path in (shipped.checkpoint, shipped.folder)
    )
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(of_file.module.eval()(images), of_folder.module.eval()(images))
    assert of_file.arguments["patch_size"] == 4


def test_a_folder_without_a_configuration_is_no_model(tmp_path):
    with pytest.raises(InputError, match="is a folder: name a checkpoint"):
        restored(Config(trained=Trained(checkpoint=str(tmp_path))))
