"""The checkpoints and the summary of a run."""

import pytest
import tiny
import torch

from flashkat import checkpoints
from flashkat.models.create import create_model
from flashkat.nn.learned.rationals import learned
from flashkat.tools.inspect.history import curves, snapshots
from flashkat.tools.inspect.subject import Subject


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model(tiny.MODEL, img_size=8, num_classes=2, **tiny.KWARGS)


@pytest.fixture
def write(model, tmp_path):
    """Writes a checkpoint whose coefficients are multiples of the model's, and returns its path and entries."""

    def run(name, epoch, factor=1.0, **entries):
        state = {key: value * factor if "numerator" in key else value for key, value in model.state_dict().items()}
        path = tmp_path / name
        content = {"arch": tiny.MODEL, "state_dict": state, **({} if epoch is None else {"epoch": epoch}), **entries}
        checkpoints.write(path, content)
        return path, content

    return run


def subject(model, entries):
    return Subject(model, tiny.MODEL, entries, learned(model))


def factors(found, model):
    own = model.blocks[0].mlp.act1.numerator[0, 1]
    return [float(each.functions["blocks.0.mlp.act1"].numerator[0, 1] / own.detach().double()) for each in found]


def test_checkpoints_of_a_run_in_their_order(write, model):
    write("checkpoint-10.pth.tar", 10, 4, run={"updates": 110})
    write("checkpoint-2.pth.tar", 2, 2, run={"updates": 30})
    write("recovery-3-4.pth.tar", 3, 3, run={"updates": 35, "batch": 5})
    path, entries = write("last.pth.tar", 11, run={"updates": 120})
    path.with_name("model_best.pth.tar").hardlink_to(path.with_name("checkpoint-10.pth.tar"))
    found = snapshots(path, subject(model, entries), False, pytest.fail)
    assert [each.label for each in found] == ["after epoch 3", "epoch 4, update 35", "after epoch 11", "after epoch 12"]
    assert factors(found, model) == pytest.approx([2, 3, 4, 1])
    assert [each.is_given for each in found] == [False, False, False, True]


def test_a_checkpoint_in_between(write, model):
    path, entries = write("checkpoint-2.pth.tar", 2)
    write("last.pth.tar", 5, 2)
    found = snapshots(path, subject(model, entries), False, pytest.fail)
    assert [(each.label, each.is_given) for each in found] == [("after epoch 3", True), ("after epoch 6", False)]


def test_copies_count_once(write, model):
    path, entries = write("last.pth.tar", 5)
    write("model_best.pth.tar", 5)
    assert len(snapshots(path, subject(model, entries), False, pytest.fail)) == 1


def test_averaged_weights_of_each(write, model):
    path, entries = write("last.pth.tar", 5)
    average = {key: value * 3 for key, value in entries["state_dict"].items()}
    write("checkpoint-2.pth.tar", 2, state_dict_ema=average)
    write("checkpoint-3.pth.tar", 3)
    said = []
    found = snapshots(path, subject(model, entries), True, said.append)
    assert factors(found, model) == pytest.approx([3, 1])
    assert len(said) == 1
    assert said[0].startswith("checkpoint-3.pth.tar is left out: ")


def test_what_does_not_belong_is_left_out(write, model, tmp_path):
    path, entries = write("last.pth.tar", 5)
    write("checkpoint-1.pth.tar", 1, arch="kat_small_patch16_224")
    write("checkpoint-2.pth.tar", 2, state_dict={"blocks.0.mlp.act1.numerator": torch.zeros(1, 6)})
    (tmp_path / "checkpoint-3.pth.tar").write_bytes(b"PK\x03\x04 no checkpoint")
    write("checkpoint-4.pth.tar", None)
    write("other.pth.tar", 4)
    said = []
    assert len(snapshots(path, subject(model, entries), False, said.append)) == 1
    assert [line.split(":")[0] for line in said] == [f"checkpoint-{number}.pth.tar is left out" for number in (1, 2, 3)]
    assert said[0].endswith("it is of another model")
    assert said[1].endswith("the coefficients of blocks.0.mlp.act1 are missing or have another shape")


def test_weights_alone_have_no_run(write, model):
    write("checkpoint-2.pth.tar", 2)
    path, entries = write("weights.pth", None)
    (only,) = snapshots(path, subject(model, entries), False, pytest.fail)
    assert (only.label, only.is_given) == ("weights.pth", True)


def test_odd_entries_are_no_position(write, model):
    path, entries = write("last.pth.tar", 5)
    found = snapshots(path, subject(model, {**entries, "epoch": 5, "run": [1]}), False, pytest.fail)
    assert [each.label for each in found] == ["after epoch 6"]


def test_curves_are_the_columns(tmp_path):
    (tmp_path / "summary.csv").write_text("epoch,train_loss,eval_top1\n0,2.5,\n1,nan,50\n")
    assert curves(tmp_path, pytest.fail) == {
        "epoch": [0, 1],
        "train_loss": [2.5, None],
        "eval_top1": [None, 50],
    }


def test_no_summary(tmp_path):
    assert curves(tmp_path, pytest.fail) == {}
    (tmp_path / "summary.csv").write_text("")
    assert curves(tmp_path, pytest.fail) == {}


@pytest.mark.parametrize(
    "content",
    ["epoch,loss\n0,much\n", "loss\n1\n", "epoch\n\udcff\n", "epoch\n" + "1\n" * 6_000_000],
    ids=["words", "no epoch", "no text", "long"],
)
def test_a_summary_that_is_none(tmp_path, content):
    (tmp_path / "summary.csv").write_text(content, errors="surrogateescape")
    said = []
    assert curves(tmp_path, said.append) == {}
    assert len(said) == 1
    assert "summary.csv is left out" in said[0]
