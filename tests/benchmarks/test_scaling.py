"""The benchmark of sizes runs with a fake clock, and notices what is wrong."""

import pytest

pytest.importorskip("triton")

from benchmarks import scaling


def _one_microsecond(call):
    call()
    return 1.0


def test_scaling_runs_and_is_right(device):
    rows = scaling.collect((10, 14), device, _one_microsecond, 1)
    assert len(rows) == 2 * (3 + 2)
    assert all(target["met"] for target in scaling.targets(rows))
    assert rows[0]["gb_per_s"] == pytest.approx(2 * 2 * 1024 / 1e3, abs=0.01)


def test_scaling_notices_a_wrong_result(monkeypatch, device):
    monkeypatch.setattr(scaling, "rational_reference", lambda x, a, b: 2 * x)
    rows = scaling.collect((12,), device, _one_microsecond, 1)
    assert not any(target["met"] for target in scaling.targets(rows))
