"""Functions through CUDA graphs give the same bits, and run without one where there can be none."""

import pytest
import torch
from torch import nn

from flashkat.system.graph import Captured, CapturedForward, Controls

pytestmark = pytest.mark.gpu


def inputs(count, size=4):
    generator = torch.Generator("cuda").manual_seed(0)
    return [torch.randn(size, 6, device="cuda", generator=generator) for _ in range(count)]


def test_results_are_those_of_the_function():
    calls = []

    def double(x, *, times):
        calls.append(times)
        return x * times

    captured = Captured(double, torch.device("cuda"), pytest.fail)
    for x in inputs(9):
        assert torch.equal(captured(x, times=2), x * 2)
    # Once for each call that warms up, and once to record.
    assert calls == [2] * 4
    x = torch.ones(4, 6, device="cuda")
    assert torch.equal(captured(x, times=3), x * 3)
    assert calls[-1] == 3


def test_an_input_may_be_written_where_it_is_read():
    captured = Captured(lambda x: x + 1, torch.device("cuda"), pytest.fail)
    for x in inputs(6):
        assert torch.equal(captured(captured.buffer(0, x).copy_(x)), x + 1)


def test_what_cannot_be_captured_runs_without_a_graph():
    said, undone = [], []

    def waits(x):
        return x * float(x.sum() > 0)  # which the host waits for

    captured = Captured(waits, torch.device("cuda"), said.append, undo=lambda: undone.append(1))
    for x in inputs(6):
        assert torch.equal(captured(x), x * float(x.sum() > 0))
    (line,) = said
    assert line.startswith("No CUDA graph, each kernel is launched by the host: ")
    assert (undone, captured.is_capturing) == ([1], False)


def test_none_has_a_graph_where_one_has_none():
    said = []
    captured = Captured(lambda x: x + 1, torch.device("cuda"), said.append, agree=lambda succeeded: False)
    for x in inputs(6):
        assert torch.equal(captured(x), x + 1)
    assert said == ["No CUDA graph, each kernel is launched by the host: another process has none"]


@pytest.mark.gpu
def test_a_graph_evaluates_to_the_same():
    model = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 5)).cuda()
    captured = CapturedForward(model, pytest.fail).eval()
    with torch.inference_mode():
        for number in range(20):
            images = torch.randn(4 - number % 2, 6, device="cuda")
            assert torch.equal(captured(images), model(images))
    # Weights are those of the moment.
    with torch.no_grad():
        model[1].weight.mul_(2)
    with torch.inference_mode():
        assert torch.equal(captured(images), model(images))
    assert len(captured._captured._recordings) == 2


def test_numbers_are_read_anew_in_each_run():
    controls = Controls(2, torch.device("cuda"))
    captured = Captured(lambda x: x * controls.values[0] + controls.values[1], torch.device("cuda"), pytest.fail)
    for number, x in enumerate(inputs(8)):
        controls.set([float(number), 0.5])
        torch.testing.assert_close(captured(x), x * number + 0.5)
