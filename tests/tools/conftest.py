"""A trained model and all that is exported of it, made once for the tests of export and predict."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import KWARGS, MODEL, write_images

from flashkat import checkpoints
from flashkat.cli.main import main
from flashkat.models import create_model


def write_checkpoint(path, **entries):
    torch.manual_seed(0)
    model = create_model(MODEL, img_size=8, num_classes=2, **KWARGS)
    arguments = {"img_size": 8, "model_kwargs": dict(KWARGS), "mean": [0.5, 0.4, 0.3], "eval_metric": "top1"}
    content = {"arch": MODEL, "args": arguments, "epoch": 3, "metric": 75.5, "classes": ["dark", "light"]}
    checkpoints.write(path, {**content, "state_dict": model.state_dict(), **entries})
    return path


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """The checkpoint, its programs, its folder, and the images of its classes."""
    root: Path = tmp_path_factory.mktemp("shipped")
    paths = SimpleNamespace(
        checkpoint=write_checkpoint(root / "last.pth.tar"),
        onnx=root / "model.onnx",
        pt2=root / "model.pt2",
        folder=root / "dark_or_light",
        images=write_images(root / "data") / "val",
    )
    for output, flags in ((paths.onnx, []), (paths.pt2, []), (paths.folder, ["--to", "hf", "--license", "mit"])):
        assert main(["export", str(paths.checkpoint), "-o", str(output), *flags]) == 0
    return paths
