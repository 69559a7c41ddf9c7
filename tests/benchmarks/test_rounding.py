"""The exact sums are the gradients, and the benchmark of rounding runs and judges."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import rounding
from flashkat.ops import rational_reference


def test_coefficient_sums_are_the_gradients(monkeypatch):
    monkeypatch.setattr(rounding, "_CHUNK_ROWS", 2)
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 5, 16), (3, 5, 16), (4, 6), (4, 3))
    grad, x, a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    leaves = a.requires_grad_(), b.requires_grad_()
    expected = torch.autograd.grad(rational_reference(x, *leaves), leaves, grad)
    torch.testing.assert_close(rounding.coefficient_sums(grad, x, a, b, torch.float64), expected)
    single = rounding.coefficient_sums(grad, x, a, b, torch.float32)
    assert 1e-9 < (single[0] - expected[0]).norm() / expected[0].norm() < 1e-6


def test_rows_and_targets(device):
    plan = rounding.Plan(batches=(2, 4), tokens=3, width=16, seeds=2)
    rows = rounding.collect(plan, device)
    assert [row["contender"] for row in rows if row["batch"] == 2] == list(rounding.CONTENDERS)
    assert [row["contender"] for row in rows if row["batch"] == 4] == ["ours", "flashkat paper", "floor"]
    assert all(row["da_error"] < 1e-4 and row["db_error"] < 1e-4 for row in rows)
    assert all(row["same_bits"] for row in rows if row["contender"] in ("ours", "floor"))
    met = {target["name"]: target["met"] for target in rounding.targets(rows)}
    assert met["mean absolute error of da"]
    assert met["the same bits in 5 runs"]


def test_targets_judge():
    def row(name, da, db, same):
        return {"batch": 128, "contender": name, "da_error": da, "db_error": db, "same_bits": same}

    rows = [row("ours", 6e-5, 8e-5, False), row("floor", 4e-5, 7.9e-5, True)]
    assert [target["met"] for target in rounding.targets(rows)] == [True, False, False, True, False]
