"""NumPy's numbers in a checkpoint load as Python's, and nothing else of NumPy's loads."""

import numpy as np
import pytest
import torch

from flashkat import checkpoints
from flashkat.errors import InputError


def read(path, value):
    torch.save({"state_dict": {"weight": torch.ones(1)}, "value": value}, path)
    return checkpoints.read(path)["value"]


@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(-2), np.int64(7), np.uint8(255), np.bool_(True)])
def test_numbers(tmp_path, value):
    found = read(tmp_path / "a.pth", value)
    assert found == value.item()
    assert type(found) is type(value.item())


def test_other_byte_orders(tmp_path):
    assert read(tmp_path / "a.pth", np.frombuffer(b"\0\0\1\0", ">i4")[0]) == 256


@pytest.mark.parametrize("value", [np.ones((2, 3)), np.asfortranarray(np.ones((2, 3))), np.array(3), np.ones(2, bool)])
def test_arrays_are_left_out_and_weights_are_read(tmp_path, value):
    torch.save({"state_dict": {"weight": torch.ones(1)}, "confusion": [value, value], "epoch": 2}, tmp_path / "a.pth")
    found = checkpoints.read(tmp_path / "a.pth")
    assert (found["state_dict"], found["epoch"]) == ({"weight": torch.ones(1)}, 2)
    assert not any(isinstance(each, (np.ndarray, list)) for each in found["confusion"])


@pytest.mark.parametrize("value", [np.array(["text"]), np.array([None]), np.datetime64("2026-01-01"), np.str_("text")])
def test_what_is_no_number(tmp_path, value):
    with pytest.raises(InputError, match=r"a\.pth would need to run code to load"):
        read(tmp_path / "a.pth", value)
