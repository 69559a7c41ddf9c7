"""The launches with LayerNorm, against float64, for tensors of any strides and sizes."""

import pytest
import torch
from norm_oracle import exact, make
from oracle import distance

pytest.importorskip("triton")
from flashkat.ops.triton import norm as norm_launch

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
NAMES = ("grad_x", "grad_branch", "grad_weight", "grad_bias", "grad_numerator", "grad_denominator")


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 7, 192), {}),
        ((9, 192), {"rows": 8}),
        ((5, 96), {"groups": 4, "rows": 4, "dtypes": (F32, F32, F32)}),
        ((3, 3, 64), {"groups": 4, "dtypes": (BF16, BF16, BF16)}),
        ((9, 320), {"dtypes": (F32, F32, F32)}),  # lanes lie idle
        ((6, 100), {"groups": 5, "rows": 5, "dtypes": (F32, F16, F16)}),
        ((6, 100), {"groups": 1, "dtypes": (F32, F16, F32)}),  # both shared
        ((3, 768), {}),  # a row takes two warps
        ((6, 64), {"groups": 4, "m": 4, "n": 2}),
        ((6, 64), {"groups": 2, "m": 3, "n": 0, "dtypes": (F32, F32, F32)}),
        ((1, 16), {"groups": 2}),
        # Powers that overflow: done again with care, in two runs of a program, and in three chunks of a row.
        ((9, 64), {"groups": 4, "dtypes": (F32, F32, F32), "scale": 1e5}),
        ((1, 48), {"groups": 2, "scale": 1e5}),
        # Runs and chunks together, minutes in the interpreter.
        pytest.param((40, 192), {"scale": 1e5, "rows": 8}, marks=pytest.mark.slow),
        pytest.param((9, 192), {"scale": 1e5}, marks=pytest.mark.slow),
    ],
)
def test_kernels_match_float64(shape, options):
    inputs, grad_total, grad_out = make(shape, **options)
    total, mean, rstd, out = norm_launch.forward(*inputs, 1e-6, grad_out.dtype)
    dtypes = inputs[0].dtype, inputs[1].dtype
    grads = norm_launch.backward(grad_total, grad_out, total, mean, rstd, *inputs[2:], *dtypes)
    again = norm_launch.backward(grad_total, grad_out, total, mean, rstd, *inputs[2:], *dtypes)
    truth_total, truth, truths = exact(inputs, grad_total, grad_out, 1e-6, total)
    # Triton's interpreter truncates to bfloat16.
    unit = {F32: 2e-6, F16: 1e-3, BF16: 1e-2}
    if "scale" in options:  # most of the slope is constant or linear over the row, and cancels
        unit[F32] = 1e-4
    assert distance(total, truth_total) <= unit[total.dtype]
    assert distance(out, truth) <= unit[out.dtype]
    for name, found, truth, same in zip(NAMES, grads, truths, again, strict=True):
        if truth.numel():
            assert distance(found, truth) <= unit[found.dtype], name
        assert torch.equal(found, same), name


def test_without_a_gradient_of_the_sum():
    inputs, _, grad_out = make((5, 64), groups=4, dtypes=(F32, F32, F32))
    total, mean, rstd, _ = norm_launch.forward(*inputs, 1e-6, F32)
    grads = norm_launch.backward(None, grad_out, total, mean, rstd, *inputs[2:], F32, F32)
    _, _, truths = exact(inputs, torch.zeros_like(total), grad_out, 1e-6)
    assert grads[0] is grads[1]
    assert distance(grads[0], truths[0]) < 2e-6


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 16), {"groups": 2}),
        ((3, 96), {"groups": 4, "rows": 4, "dtypes": (F32, F32, F32)}),
        ((3, 16), {"groups": 2, "dtypes": (F16, F16, F16)}),
        # Powers that overflow in some rows.
        pytest.param((9, 64), {"groups": 2, "dtypes": (F32, F32, F32), "scale": 3e3}, marks=pytest.mark.slow),
        pytest.param((25216, 768), {}, marks=pytest.mark.gpu),
        pytest.param((999, 192), {"dtypes": (BF16, BF16, BF16), "scale": 3e3}, marks=pytest.mark.gpu),
    ],
)
def test_the_backward_pass_can_store_the_bits_of_the_forward_pass(shape, options):
    inputs, grad_total, grad_out = make(shape, **options)
    total, mean, rstd, expected = norm_launch.forward(*inputs, 1e-6, grad_out.dtype)
    rest = total, mean, rstd, *inputs[2:], inputs[0].dtype, inputs[1].dtype
    out = torch.full_like(expected, torch.nan)
    found = norm_launch.backward(grad_total, grad_out, *rest, out)
    # These say how many numbers differ, and by how much.
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    again = norm_launch.backward(grad_total, grad_out, *rest)
    torch.testing.assert_close(found[:2], again[:2], rtol=0, atol=0)
    # Sums over rows are of another compilation, which may round a product and its addition once or twice.
    for name, one, other in zip(NAMES[2:], found[2:], again[2:], strict=True):
        assert distance(one, other) < 1e-6, name


def test_what_is_added_to_itself():
    (x, _, *parameters), grad_total, grad_out = make((5, 64), groups=4, dtypes=(F32, F32, F32))
    total, _, _, out = norm_launch.forward(x, x, *parameters, 1e-6, F32)
    truth_total, truth, _ = exact([x, x, *parameters], grad_total, grad_out, 1e-6)
    assert distance(total, truth_total) < 1e-6
    assert distance(out, truth) < 1e-6


def strided(tensor):
    """The same numbers, each apart from the next."""
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1)[..., 0]


def test_tensors_of_any_strides():
    inputs, grad_total, grad_out = make((5, 64), groups=4, rows=4)
    apart, options = [strided(each) for each in inputs], (inputs[0].dtype, inputs[1].dtype)
    forward = norm_launch.forward(*inputs, 1e-6, grad_out.dtype)
    found = norm_launch.forward(*apart, 1e-6, grad_out.dtype)
    assert all(map(torch.equal, found, forward))
    total, mean, rstd, _ = forward
    backward = norm_launch.backward(grad_total, grad_out, total, mean, rstd, *inputs[2:], *options)
    saved = (strided(each) for each in (total, mean, rstd))
    found = norm_launch.backward(strided(grad_total), strided(grad_out), *saved, *apart[2:], *options)
    assert all(map(torch.equal, found, backward))


def test_no_rows_give_empty_results_and_zero_gradients():
    inputs, grad_total, grad_out = make((0, 64), groups=4)
    total, mean, rstd, out = norm_launch.forward(*inputs, 1e-6, BF16)
    assert total.shape == out.shape == (0, 64)
    grads = norm_launch.backward(grad_total, grad_out, total, mean, rstd, *inputs[2:], F32, BF16)
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("channels", [16, 64, 96, 100, 192, 384, 768, 1000, 1152, 1536, 3072, 4096])
@pytest.mark.parametrize("vector", [4, 8])
def test_rows_are_covered_and_few_lanes_idle(channels, vector):
    if channels % vector:
        pytest.skip("vectors would lie across groups")
    view = norm_launch.Rows.choose(channels, vector)
    covered = view.chunks * view.vectors * view.vector
    assert channels <= covered <= 1.4 * channels
    assert view.chunks <= 4
    assert view.vectors * view.rows >= 32 * view.warps  # no two threads have the same work
