"""The kernels with LayerNorm keep what cancels in a row, and stay finite where a slope is large."""

import pytest
import torch
from norm_oracle import exact, make
from oracle import distance

pytest.importorskip("triton")
from flashkat.ops.triton import norm as norm_launch

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("wild", [0.0, 1e4])
def test_what_cancels_in_a_row_is_kept_in_float32(dtype, wild):
    """Gradients with a large part in common, which LayerNorm takes away; with ``wild`` inputs done again with care."""
    inputs, _, _ = make((9, 16), groups=2, dtypes=(dtype, dtype, F32))
    inputs[2].fill_(1.0)
    inputs[3].fill_(wild)
    inputs[4].copy_(torch.tensor([[0.0, 1, 0, 0, 0, 0]]))
    inputs[5].zero_()
    grad_out = 1000 + make((9, 16), groups=2, dtypes=(F32, F32, F32))[2]
    total, mean, rstd, _ = norm_launch.forward(*inputs, 1e-6, F32)
    found = norm_launch.backward(None, grad_out, total, mean, rstd, *inputs[2:], dtype, dtype)[0]
    truth = exact(inputs, torch.zeros_like(total), grad_out, 1e-6, total)[2][0]
    assert distance(found, truth) < {F32: 1e-4, F16: 1e-3, BF16: 1e-2}[dtype]


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_large_slopes_of_small_gradients_are_finite(dtype):
    """Of a square around 1e6, with rows that spread so far that little is left of it; one channel has no weight."""
    inputs, _, grad_out = make((9, 16), groups=2, dtypes=(dtype, dtype, F32))
    inputs[0] *= 1000
    inputs[2].fill_(1.0)
    inputs[2][5] = 0.0
    inputs[3].fill_(1e6)
    inputs[4].copy_(torch.tensor([[0.0, 0, 1, 0, 0, 0]]))
    inputs[5].zero_()
    total, mean, rstd, _ = norm_launch.forward(*inputs, 1e-6, F32)
    found = norm_launch.backward(None, grad_out, total, mean, rstd, *inputs[2:], dtype, dtype)[0]
    truth = exact(inputs, torch.zeros_like(total), grad_out, 1e-6, total)[2][0]
    assert distance(found, truth) < {F16: 1e-3, BF16: 1e-2}[dtype]
