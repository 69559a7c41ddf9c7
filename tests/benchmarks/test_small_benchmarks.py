"""The benchmarks of host time and of scaling run with a fake clock, and judge as they should."""

import pytest

pytest.importorskip("triton")

from benchmarks import host_time, scaling


def _one_microsecond(call):
    call()
    return 1.0


def test_host_time_runs(device):
    rows = host_time.collect(device, _one_microsecond, 1)
    assert len(rows) == 2 * 2 * 5
    assert [target["met"] for target in host_time.targets(rows)] == [True, True]


def test_host_time_is_held_against_gelu():
    what = {"dtype": "bf16", "what": "forward and backward"}
    rows = [{**what, "contender": "ours", "median_us": 50.0}, {**what, "contender": "gelu", "median_us": 24.0}]
    assert [(target["value"], target["met"]) for target in host_time.targets(rows)] == [(2.083, False)]


def test_scaling_runs_and_is_right(device):
    rows = scaling.collect((10, 14), device, _one_microsecond, 1)
    assert len(rows) == 2 * (3 + 2)
    assert all(target["met"] for target in scaling.targets(rows))
    assert rows[0]["gb_per_s"] == pytest.approx(2 * 2 * 1024 / 1e3, abs=0.01)


def test_scaling_notices_a_wrong_result(monkeypatch, device):
    monkeypatch.setattr(scaling, "rational_reference", lambda x, a, b: 2 * x)
    rows = scaling.collect((12,), device, _one_microsecond, 1)
    assert not any(target["met"] for target in scaling.targets(rows))
