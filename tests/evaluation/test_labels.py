"""Labels that count in place of the data set's own."""

import json
import os

import pytest
import torch
from PIL import Image
from tiny import weights


def test_real_labels(validated, tmp_path):
    checkpoint = weights(tmp_path / "weights.pth", answer=2)
    # Two of the class, one more by its second label, and two that have no label and do not count.
    (tmp_path / "real.json").write_text(json.dumps([[0, 2], [0], [], [], [2], [2], [3], [3], [4], [4]]))
    result, _ = validated("--checkpoint", checkpoint)
    assert result["top1"] == 20
    result, err = validated("--checkpoint", checkpoint, "--real-labels", tmp_path / "real.json")
    assert result["top1"] == 37.5
    assert " * Acc@1 37.500 (62.500)" in err


def test_real_labels_that_are_not(validated, tmp_path):
    checkpoint = weights(tmp_path / "weights.pth")
    assert "no file" in validated("--checkpoint", checkpoint, "--real-labels", tmp_path / "none", status=2)
    for text, words in (("[[0]]", "has labels for 1 images, not 10"), ("no labels", "Expecting value")):
        (tmp_path / "real.json").write_text(text)
        err = validated("--checkpoint", checkpoint, "--real-labels", tmp_path / "real.json", status=2)
        assert err.count("\n") == 1
        assert "50,000" in err
        assert words in err


def test_real_labels_of_fewer_than_five_outputs(validated, tmp_path):
    # Outputs 0 to 2, of which the first is the answer.
    checkpoint = weights(tmp_path / "weights.pth", answer=0, classes=5)
    (tmp_path / "real.json").write_text(json.dumps([[0]] * 5 + [[2]] * 3 + [[4]] * 2))
    (tmp_path / "labels.txt").write_text("0\n1\n2\n")
    data = tmp_path / "three"
    for number in range(10):
        folder = data / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / f"ILSVRC2012_val_{number + 1:08d}.JPEG", "png")
    flags = ["--valid-labels", tmp_path / "labels.txt", "--real-labels", tmp_path / "real.json"]
    result, _ = validated("--checkpoint", checkpoint, *flags, data=data)
    assert (result["top1"], result["top5"]) == (50, 80)


def test_valid_labels(validated, tmp_path):
    # Of seven outputs, the data's classes are 4, 1, 3, 0 and 6.
    checkpoint = weights(tmp_path / "weights.pth", answer=3, classes=7)
    (tmp_path / "labels.txt").write_text("4\n1\n3\n0\n6\n")
    result, _ = validated("--checkpoint", checkpoint, "--valid-labels", tmp_path / "labels.txt")
    assert result["top1"] == 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("7\n1\n2\n", "outputs from 0 to 4, not [7]"),
        ("a\n", "one a line"),
        ("0\n3\n1\n3\n2\n", "lists output 3 again: list each once"),
        ("0\n1\n", "has 5 classes"),
        ("", "outputs from 0 to 4, not []"),
    ],
)
def test_valid_labels_that_are_not(validated, tmp_path, text, words):
    (tmp_path / "labels.txt").write_text(text)
    checkpoint = weights(tmp_path / "weights.pth")
    assert words in validated("--checkpoint", checkpoint, "--valid-labels", tmp_path / "labels.txt", status=2)


def test_valid_labels_without_an_end(validated, tmp_path):
    os.mkfifo(tmp_path / "labels.txt")
    err = validated(
        "--checkpoint", weights(tmp_path / "weights.pth"), "--valid-labels", tmp_path / "labels.txt", status=2
    )
    assert f"no file of --valid-labels at {tmp_path}" in err


def test_valid_labels_beside_a_checkpoints_own_classes(validated, tmp_path):
    """That these are the data's does not make two of its five outputs enough."""
    state = torch.load(weights(tmp_path / "weights.pth"), weights_only=True)
    run = {"state_dict": state, "classes": [f"class{number}" for number in range(5)]}
    torch.save(run, tmp_path / "run.pth.tar")
    (tmp_path / "labels.txt").write_text("0\n1\n")
    err = validated("--checkpoint", tmp_path / "run.pth.tar", "--valid-labels", tmp_path / "labels.txt", status=2)
    assert err.count("\n") == 1
    assert "has 5 classes, --valid-labels names 2" in err


@pytest.mark.parametrize(("text", "is_right"), [("4 1 3 0 6", True), ("4 3 1 0 6", False)])
def test_valid_labels_in_another_order_than_the_classes(validated, tmp_path, text, is_right):
    """Each class would be measured at the output of another one."""
    state = torch.load(weights(tmp_path / "weights.pth", answer=3, classes=7), weights_only=True)
    names = ["class3", "class1", "", "class2", "class0", "", "other"]
    torch.save({"state_dict": state, "classes": names}, tmp_path / "run.pth.tar")
    (tmp_path / "labels.txt").write_text(text)
    flags = ["--checkpoint", tmp_path / "run.pth.tar", "--valid-labels", tmp_path / "labels.txt"]
    found = validated(*flags, status=0 if is_right else 2)
    if is_right:
        assert found[0]["top1"] == 20
    else:
        assert "has output 3 for the class class1, which is output 1 of the checkpoint" in found
