"""The comparison of backends on images of a toy data set, by a toy model."""

import pytest
import torch
from PIL import Image
from tiny import KWARGS, MODEL, weights

from benchmarks.backends import agreement


@pytest.fixture
def images(tmp_path):
    """Five images for each of two classes."""
    for label in range(2):
        folder = tmp_path / "images" / f"class-{label}"
        folder.mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (20, 20), (100 * label, 30 * number, 50)).save(folder / f"{number}.png")
    return tmp_path / "images"


def test_copies_are_spread_over_the_classes(images):
    with agreement.chosen(images, 4, None) as folder:
        found = sorted(str(each.relative_to(folder)) for each in folder.rglob("*.png"))
        assert found == [f"val/class-{label}/{number}.png" for label in range(2) for number in range(2)]
    assert not folder.exists()
    assert len(list(images.rglob("*.png"))) == 10


def test_enlarged_copies_are_jpegs(images):
    with agreement.chosen(images, 2, 64) as folder:
        (first, second) = folder.rglob("*.jpg")
        with Image.open(first) as opened:
            assert (opened.format, opened.size) == ("JPEG", (64, 64))
        assert first.parent != second.parent


def test_the_first_backend_is_the_reference(images, tmp_path, monkeypatch):
    logits = {
        "timm": torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]]),
        "dali": torch.tensor([[2.0, 2.5], [0.0, 1.0], [3.0, 0.0]]),
    }
    monkeypatch.setattr(
        agreement, "_logits", lambda file, folder, backend, *rest: (logits[backend], torch.tensor([0, 1, 1]))
    )
    timm, dali = agreement.collect("file", images, ["timm", "dali"], torch.device("cpu"), 2)
    assert (timm["top1"], timm["largest_difference"], timm["other_answers"]) == (pytest.approx(200 / 3, abs=1e-3), 0, 0)
    assert (dali["top1"], dali["largest_difference"], dali["other_answers"]) == (
        pytest.approx(100 / 3, abs=1e-3),
        1.5,
        1,
    )
    assert [row["met"] for row in agreement.targets([timm, dali])] == [False]
    assert [row["met"] for row in agreement.targets([timm, {**timm, "backend": "dali"}])] == [True]


def test_a_checkpoint_is_evaluated(images, tmp_path):
    path = tmp_path / "model.pth.tar"
    arguments = {"model_kwargs": KWARGS, "img_size": 8}
    state = torch.load(weights(tmp_path / "weights.pth", classes=2), weights_only=True)
    torch.save({"arch": MODEL, "args": arguments, "state_dict": state}, path)
    with agreement.chosen(images, 10, None) as folder:
        (row,) = agreement.collect(str(path), folder, ["timm"], torch.device("cpu"), 4)
    assert row["images"] == 10
    assert 0 <= row["top1"] <= 100
    assert row["spread_of_logits"] > 0
