"""The benchmark of host time runs with a fake clock, and judges as it should."""

import pytest

pytest.importorskip("triton")

from benchmarks import host_time


def _one_microsecond(call):
    call()
    return 1.0


def test_host_time_runs(device, monkeypatch):
    monkeypatch.setattr(host_time, "_CHAIN", 2)
    rows = host_time.collect(device, _one_microsecond, 1)
    assert len(rows) == 2 * 2 * 5
    assert [target["met"] for target in host_time.targets(rows)] == [True, True]


def test_host_time_is_held_against_gelu():
    what = {"dtype": "bf16", "what": "forward and backward"}
    rows = [{**what, "contender": "ours", "median_us": 50.0}, {**what, "contender": "gelu", "median_us": 24.0}]
    assert [(target["value"], target["met"]) for target in host_time.targets(rows)] == [(2.083, False)]
