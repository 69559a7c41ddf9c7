"""The bare parts of training run on a GPU."""

import pytest
import torch

from benchmarks.parts import bare


@pytest.mark.gpu
def test_a_captured_step():
    precision = torch.get_float32_matmul_precision()
    try:
        assert bare.step("kat_tiny_patch16_224", 32, 2, 3) > 0
    finally:
        torch.set_float32_matmul_precision(precision)


def test_seconds_are_of_one_call(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(bare.time, "perf_counter", lambda: now[0])

    def call():
        now[0] += 0.5

    assert bare._seconds(call, 20) == 0.5
