"""The benchmark of CPUs runs on small tensors with a fake clock, and is held against GELU."""

import pytest
import torch

from benchmarks import cpu


def test_every_case_has_a_row(monkeypatch, clock):
    cases = {"fp32 (2, 3, 16)": ((2, 3, 16), -1, torch.float32), "bf16, dim 1": ((2, 16, 3), 1, torch.bfloat16)}
    monkeypatch.setattr(cpu, "_CASES", cases)
    rows = cpu.collect(clock, 1)
    assert [row["case"] for row in rows] == list(cases)
    for row in rows:
        assert {row[f"{name} {what} ms"] for name in ("gelu", "ours", "aten") for what in ("forward", "both")} == {1.0}
        assert row["forward ratio"] == row["both ratio"] == 1.0


@pytest.mark.parametrize(("ratio", "met"), [(1.4, True), (1.6, False)])
def test_target(ratio, met):
    rows = [{"case": "other", "both ratio": 9.0}, {"case": "fp32 (8, 197, 768)", "both ratio": ratio}]
    assert [(target["value"], target["met"]) for target in cpu.targets(rows)] == [(ratio, met)]
