"""What a run says of waiting and memory."""

from types import SimpleNamespace

import pytest
import torch

from flashkat.training.outputs.costs import peak_memory, share_waited


@pytest.mark.parametrize(("share", "hints"), [(1.0, 1), (0.11, 1), (0.1, 0), (0.0, 0)])
def test_waiting_for_data_is_noted(train, summary_of, capsys, monkeypatch, share, hints):
    monkeypatch.setattr("flashkat.training.loop.share_waited", lambda loader, seconds: share)
    rows = summary_of(train("--epochs", 2))
    out = capsys.readouterr().out
    assert [row["data_wait"] for row in rows] == [share] * 2
    assert out.count(f"Training waited for data {share:.0%} of that epoch: try more --workers") == hints


def test_peak_memory_is_noted(train, summary_of, monkeypatch):
    """Of a GPU, which alone knows it."""
    monkeypatch.setattr("flashkat.training.loop.peak_memory", lambda model: {"peak_memory_gib": 2.5})
    (row,) = summary_of(train("--epochs", 1))
    assert row["peak_memory_gib"] == 2.5


def test_fake_data_waits_for_nothing(train, summary_of):
    flags = ["--fake-data", "--num-classes", 2, "--train-num-samples", 40, "--val-num-samples", 4]
    (row,) = summary_of(train("--epochs", 1, *flags))
    assert 0 <= row["data_wait"] < 1


def test_share_of_an_epoch_that_went_by_waiting():
    assert share_waited([], 2.0) is None
    assert share_waited(SimpleNamespace(waited=0.5), 2.0) == 0.25
    assert share_waited(SimpleNamespace(waited=3.0), 2.0) == 1
    assert share_waited(SimpleNamespace(waited=0.0), 0.0) == 0


def test_memory_of_a_cpu_is_not_shown():
    assert peak_memory(torch.nn.Linear(1, 1)) == {}
