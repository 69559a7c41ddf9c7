"""A thread beside training, and the copies that it works on."""

import collections
import threading

import pytest
import torch
from torch import nn

from flashkat.training.outputs.background import Background, Snapshot


def test_jobs_run_beside_and_one_after_the_other():
    go, done = threading.Event(), []

    def job(number):
        assert go.wait(60)
        done.append((number, threading.current_thread() is threading.main_thread()))

    with Background() as background:
        background.start(lambda: job(1))
        assert done == []
        go.set()
        background.start(lambda: job(2))
        assert done[0] == (1, False)
    assert done[1] == (2, False)


def test_jobs_are_done_where_they_are_started():
    found = []
    with Background(beside=False) as background:
        background.start(lambda: found.append(threading.current_thread() is threading.main_thread()))
        assert found == [True]
        with pytest.raises(OSError, match="no"):
            background.start(fails)


def fails():
    raise OSError("no")


def test_an_error_is_raised_once_by_what_waits():
    with Background() as background:
        background.start(fails)
        with pytest.raises(OSError, match="no"):
            background.start(pytest.fail)
        background.wait()
    with pytest.raises(OSError, match="no"), Background() as background:
        background.start(fails)


def fail_beside(job):
    with Background() as background:
        background.start(job)
        raise KeyError


def test_the_first_error_is_reported_after_the_last_job():
    done = []
    with pytest.raises(KeyError):
        fail_beside(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(KeyError):
        fail_beside(fails)


def state():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1))
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    made = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "history": [{"epoch": 0}], "x": None}
    return model, optimizer, made


def saved(value, path):
    torch.save(value, path)
    return path.read_bytes()


def test_a_copy_is_saved_as_the_same_bytes(tmp_path):
    made = state()[2]
    copied = Snapshot().take(made)
    assert saved(copied, tmp_path / "same.pt") == saved(made, tmp_path / "same.pt")
    assert type(copied["state_dict"]) is collections.OrderedDict
    assert copied["state_dict"]._metadata == made["state_dict"]._metadata


def test_a_copy_does_not_change_with_the_state_and_its_memory_is_used_again():
    model, optimizer, made = state()
    snapshot = Snapshot()
    copied = snapshot.take(made)
    places = [tensor.data_ptr() for tensor in copied["state_dict"].values()]
    before = model[0].weight.detach().clone()
    optimizer.step()
    made["history"].append({"epoch": 1})
    optimizer.param_groups[0]["lr"].fill_(0.2)
    assert torch.equal(copied["state_dict"]["0.weight"], before)
    assert copied["optimizer"]["state"][0]["step"] == 1
    assert copied["optimizer"]["param_groups"][0]["lr"] == torch.tensor(0.1)
    assert copied["history"] == [{"epoch": 0}]
    again = snapshot.take(made)
    assert torch.equal(again["state_dict"]["0.weight"], model[0].weight)
    assert [tensor.data_ptr() for tensor in again["state_dict"].values()] == places


@pytest.mark.parametrize("other", [torch.ones(3, 2), torch.ones(2, 3).double(), torch.ones(3, 2).t(), torch.ones(0)])
def test_a_tensor_of_another_kind_gets_other_memory(other):
    snapshot = Snapshot()
    first = snapshot.take([torch.zeros(2, 3)])[0]
    second = snapshot.take([other, other])[0]
    assert torch.equal(second, other)
    assert second.dtype == other.dtype
    assert second.stride() == other.stride()
    assert torch.equal(first, torch.zeros(2, 3))


@pytest.mark.gpu
def test_a_copy_of_what_is_on_the_gpu():
    made = {"weight": torch.arange(9.0, device="cuda")}
    copied = Snapshot().take(made)
    made["weight"] += 1
    assert copied["weight"].device.type == "cpu"
    assert copied["weight"].tolist() == list(range(9))
