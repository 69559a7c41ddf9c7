"""Loss curves of trainings that are computed in two ways, at toy sizes, and how they are judged."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import curves
from benchmarks.parts import common

PLAN = curves.Plan(6, 4, 0, {"img_size": 32, "patch_size": 16, "depth": 1, "embed_dim": 16, "num_heads": 2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for level, name in enumerate(("dark", "light")):
        (root / "train" / name).mkdir(parents=True)
        for number in range(5):
            pixels = (100 * level + generator.integers(0, 100, (32, 32, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{number}.png")
    return root


def test_images_and_labels_belong_together(folder):
    images, labels = curves.read_images(folder, 8)
    assert (images.shape, images.dtype) == ((8, 3, 32, 32), torch.uint8)
    assert torch.equal(images.float().mean((1, 2, 3)) > 100, labels == 1)


def test_images_of_another_size_are_refused(tmp_path):
    (tmp_path / "train" / "small").mkdir(parents=True)
    Image.new("RGB", (8, 9)).save(tmp_path / "train" / "small" / "0.png")
    with pytest.raises(SystemExit, match="has 8 x 9 pixels: give images of 32 x 32"):
        curves.read_images(tmp_path, 1)


def test_all_ways_start_at_one_loss_and_agree(folder):
    images, labels = curves.read_images(folder, 10)
    pairs = ["timm-fp32-formula", "timm-fp32-nudged", "published-bf16-nudged"]
    rows = [row for piece in curves.collect(pairs, PLAN, images, labels, torch.device("cpu")) for row in piece]
    assert [row["pair"] for row in rows] == pairs
    for row in rows:
        one, other = row["curves"]
        assert len(one) == len(other) == row["steps"] == 6
        assert one[0] == pytest.approx(other[0], abs=1e-3)
        assert len(set(one)) == 6
    assert rows[0]["largest_difference"] < 1e-4
    assert rows[1]["largest_difference"] < 1e-3


def test_two_processes_agree_with_one(folder):
    images, labels = curves.read_images(folder, 10)
    ((row,),) = curves.collect(["timm-fp32-processes"], PLAN, images, labels, torch.device("cpu"))
    one, other = row["curves"]
    assert len(one) == len(other) == 6
    assert one == pytest.approx(other, abs=1e-4)


def test_a_nudge_moves_weights_to_their_neighbours():
    layer = torch.nn.Linear(50, 40)
    torch.nn.init.zeros_(layer.bias)
    before = layer.weight.detach().clone()
    curves._nudge(layer, 0)
    assert not layer.bias.any()
    for direction in (-1, 0, 1):
        there = before if direction == 0 else torch.nextafter(before, torch.tensor(direction * torch.inf))
        assert 0.2 < (layer.weight == there).float().mean() < 0.5
    assert (layer.weight - before).abs().max() < 1e-7
    other = torch.nn.Linear(50, 40)
    other.load_state_dict({"weight": before, "bias": torch.zeros(40)})
    curves._nudge(other, 1)
    assert not torch.equal(other.weight, layer.weight)


@pytest.mark.parametrize(("means", "furthest"), [((1.1, 1.4, 0.7, 1.0), 1), ((1.1, 1.4, float("nan"), 1.0), 2)])
def test_the_furthest_nudge_is_shown(folder, monkeypatch, means, furthest):
    images, labels = curves.read_images(folder, 10)

    def losses(run, *args):
        return [1.0] * 6 if run.how == "eager" else [means[run.nudge]] * 6

    monkeypatch.setattr(curves, "_losses", losses)
    ((row,),) = curves.collect(["timm-fp32-nudged"], PLAN, images, labels, torch.device("cpu"))
    assert row["largest_differences_of_means"] == pytest.approx([abs(m - 1) for m in means], nan_ok=True)
    assert row["curves"][0] == pytest.approx([means[furthest]] * 6, nan_ok=True)
    assert row["largest_difference_of_means"] == pytest.approx(abs(means[furthest] - 1), nan_ok=True)


def test_differences():
    row = curves._differences([2.0, 1.0, 1.0], [2.0, 1.5, 1.0])
    assert (row["largest_difference"], row["at_step"]) == (0.5, 2)
    assert row["apart_at_step"] == 2
    assert row["largest_difference_of_means"] == pytest.approx(0.5 / 3)
    assert row["last_losses"] == pytest.approx([4 / 3, 4.5 / 3])


@pytest.mark.parametrize(
    ("pair", "apart", "last", "met"),
    [
        ("timm-fp32-formula", 0.01, 1.0, [True, True]),
        ("timm-bf16-compiled", 0.06, 1.0, [False, True]),
        ("timm-fp32-formula", 0.01, 2.5, [True, False]),
        ("published-fp32-formula", 0.19, 1.0, [True, True]),
        ("published-fp32-formula", 0.21, 1.0, [False, True]),
        ("published-bf16-compiled", 0.06, 1.0, [False, True]),  # of another precision, not nudged
        ("timm-fp32-formula", float("nan"), float("nan"), [False, False]),
        ("vit-fp32-compiled", 0.06, 1.0, [True]),
    ],
)
def test_targets(pair, apart, last, met):
    row = {"pair": pair, "one": "a", "other": "b", "largest_difference_of_means": apart}
    row |= {"first_loss": 2.3, "last_losses": [1.0, last]}
    nudged = {**row, "pair": "published-fp32-nudged", "largest_difference_of_means": 0.1, "last_losses": [1.0, 1.0]}
    not_measured = [False] * (len(curves.PAIRS) - 2)
    assert [target["met"] for target in curves.targets([row, nudged])] == [*met, True, *not_measured]


def test_command(folder, tmp_path, capsys):
    output = tmp_path / "curves.json"
    flags = [str(folder), "--quick", "--device", "cpu", "--pairs", "timm-fp32-formula", "--output", str(output)]
    with pytest.raises(SystemExit, match=r"there is no folder .*nowhere/train: give the folder of CIFAR-10"):
        curves.main([str(tmp_path / "nowhere"), *flags[1:]])
    with pytest.raises(SystemExit, match="has 10 images, fewer than a batch: give a smaller --batch-size"):
        curves.main(flags)
    curves.main([*flags, "--batch-size", "4", "--steps", "3"])
    document = json.loads(output.read_text())
    assert document["settings"]["steps"] == len(document["rows"][0]["curves"][0]) == 3
    assert document["environment"].keys() >= common.environment().keys()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_processes_on_gpus(folder):
    images, labels = curves.read_images(folder, 10)
    ((row,),) = curves.collect(["timm-bf16-processes"], PLAN, images, labels, torch.device("cuda"))
    assert row["largest_difference"] < 0.05


@pytest.mark.gpu
def test_compiled_on_a_gpu(folder):
    images, labels = curves.read_images(folder, 10)
    ((row,),) = curves.collect(["timm-bf16-compiled"], PLAN, images, labels, torch.device("cuda"))
    assert row["largest_difference"] < 0.05
