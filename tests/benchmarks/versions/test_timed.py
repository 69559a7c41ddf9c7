"""The times of a version at toy sizes with a fake clock."""

import pytest

from benchmarks.versions import timed


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_call_on_the_host_is_one_of_a_chain(clock, device, dtype):
    assert timed.host(device, clock)[f"a call on the host, {dtype}"] == pytest.approx(1000 / 24)


def test_kernels_forward_and_backward(clock, device):
    found = timed.kernels(device, rows=4, widths=(64,), measure=clock)
    assert found == {"forward, 64 channels": 1000.0, "backward, 64 channels": 1000.0}


def test_a_training_step(clock, device):
    toy = {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 64, "num_heads": 2}
    assert timed.steps(device, ("tiny",), 2, "", clock, **toy) == {"training step, tiny": 1000.0}
