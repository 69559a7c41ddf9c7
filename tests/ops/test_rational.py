"""F(x): derivatives, autocast, inference mode, and errors that say what is wrong."""

import pytest
import torch
from oracle import assert_close, exact
from rational_oracle import CASES, leaves

import flashkat
from flashkat.ops import rational_reference


@pytest.mark.parametrize("case", CASES)
def test_first_and_second_derivatives(device, case):
    inputs = leaves(device, **case)
    dim = case.get("dim", -1)

    def function(x, a, b):
        return flashkat.rational(x, a, b, dim=dim)

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_forward_grad=True)
    # A constant's gradient of x is zero by the kernels and missing by the definition: gradgradcheck compares numbers.
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=case.get("n") != 0)


def test_third_derivative_equals_the_definitions(device):
    x, a, b = leaves(device)

    def third(function):
        value = function(x, a, b)
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return value

    torch.testing.assert_close(third(flashkat.rational), third(rational_reference))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_second_derivatives_keep_dtypes(device, dtype):
    x, a, b = leaves(device, torch.float32)
    x = x.detach().to(dtype).requires_grad_()
    (slope,) = torch.autograd.grad(flashkat.rational(x, a, b).sum(), x, create_graph=True)
    second = torch.autograd.grad(slope.float().sum(), (x, a, b))
    assert [tensor.dtype for tensor in second] == [dtype, torch.float32, torch.float32]


def test_only_what_needs_a_gradient_gets_one(device):
    x, a, b = leaves(device, torch.float32)
    flashkat.rational(x.detach(), a, b.detach()).sum().backward()
    assert x.grad is None
    assert b.grad is None
    expected = exact(torch.ones_like(x).cpu(), x.detach().cpu(), a.detach().cpu(), b.detach().cpu(), -1)
    assert_close(a.grad.cpu(), expected["grad_numerator"], 24, "grad_numerator")


def test_second_backward_through_a_retained_graph_is_the_same(device):
    inputs = leaves(device, torch.float32)
    value = flashkat.rational(*inputs).sum()
    first = torch.autograd.grad(value, inputs, retain_graph=True)
    second = torch.autograd.grad(value, inputs)
    assert all(torch.equal(f, s) for f, s in zip(first, second, strict=True))


def test_inference_mode_and_no_grad(device):
    inputs = leaves(device, torch.float32)
    expected = flashkat.rational(*inputs)
    with torch.inference_mode():
        assert torch.equal(flashkat.rational(*inputs), expected)
    with torch.no_grad():
        assert not flashkat.rational(*inputs).requires_grad


def test_saved_tensors_may_change_their_strides(device):
    x, a, b = leaves(device, torch.float32)
    expected = torch.autograd.grad(flashkat.rational(x, a, b).sum(), (x, a, b))

    def spread(tensor):
        return torch.stack([tensor, tensor], dim=-1)[..., 0]

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, spread):
        y = flashkat.rational(x, a, b)
    for found, other in zip(torch.autograd.grad(y.sum(), (x, a, b)), expected, strict=True):
        torch.testing.assert_close(found, other)


def test_sparse_tensors_are_refused_in_words(device):
    _, a, b = leaves(device, torch.float32)
    with pytest.raises(TypeError, match="x must be a dense tensor"):
        flashkat.rational(torch.eye(8, device=device).to_sparse(), a, b)


@pytest.mark.parametrize("x_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
def test_autocast_sets_the_output_dtype_and_nothing_else(device, x_dtype, autocast_dtype):
    x, a, b = leaves(device, torch.float32)
    x = x.detach().to(x_dtype).requires_grad_()
    with torch.autocast(device, autocast_dtype):
        value = flashkat.rational(x, a, b)
    assert value.dtype == autocast_dtype
    plain = flashkat.rational(x, a, b)
    assert plain.dtype == x_dtype
    torch.testing.assert_close(
        value.double(), plain.double(), rtol=2 * max(torch.finfo(d).eps for d in (autocast_dtype, x_dtype)), atol=1e-6
    )
    grads = torch.autograd.grad(value.float().sum(), (x, a, b))
    assert [grad.dtype for grad in grads] == [x_dtype, torch.float32, torch.float32]


def test_autocast_switched_off_inside_is_respected(device):
    inputs = leaves(device, torch.float32)
    with torch.autocast(device, torch.bfloat16), torch.autocast(device, enabled=False):
        assert flashkat.rational(*inputs).dtype == torch.float32


def jagged(device, *lengths, dtype=torch.float32):
    """A jagged nested tensor of sequences with 8 channels, and a list of the same."""
    generator = torch.Generator().manual_seed(12)
    parts = [torch.randn(length, 8, generator=generator).to(device, dtype).requires_grad_() for length in lengths]
    return torch.nested.as_nested_tensor(parts, layout=torch.jagged), parts


def test_jagged_tensors_are_computed_sequence_by_sequence(device):
    x, parts = jagged(device, 3, 5, 0, 1)
    _, a, b = leaves(device, torch.float32)
    y, expected = flashkat.rational(x, a, b, channels=8), [flashkat.rational(part, a, b) for part in parts]
    assert y.shape == x.shape  # the same jagged dimension, so that they can be added
    for one, other in zip(y.unbind(), expected, strict=True):
        assert torch.equal(one, other)
    found = torch.autograd.grad((x + y).values().square().sum(), (*parts, a, b))
    truth = torch.autograd.grad(
        sum((part + each).square().sum() for part, each in zip(parts, expected, strict=True)), (*parts, a, b)
    )
    torch.testing.assert_close(found, truth)


def test_other_nested_tensors_are_refused(device):
    nested = torch.nested.nested_tensor([torch.ones(length, 8, device=device) for length in (3, 5)])
    _, a, b = leaves(device, torch.float32)
    with pytest.raises(TypeError, match=r"x must be a jagged nested tensor: make it with layout=torch\.jagged"):
        flashkat.rational(nested, a, b)


def test_jagged_tensors_of_any_layout(device):
    x, _ = jagged(device, 3, 5)
    _, a, b = leaves(device, torch.float32)
    assert torch.equal(flashkat.rational(x.mT, a, b, dim=1).values(), flashkat.rational(x.values(), a, b).T)
    starts, lengths = torch.tensor([0, 2], device=device), torch.tensor([4, 1], device=device)
    holes = torch.nested.narrow(torch.ones(2, 6, 8, device=device), 1, starts, lengths, layout=torch.jagged)
    assert flashkat.rational(holes, a, b).shape == holes.shape
    with torch.autocast(device, torch.bfloat16):
        assert flashkat.rational(x, a, b).dtype == torch.bfloat16


def test_jagged_tensors_compile_whole(device):
    torch._dynamo.reset()
    _, a, b = leaves(device, torch.float32)
    compiled = torch.compile(lambda x: flashkat.rational(x, a, b), fullgraph=True, backend="aot_eager")
    for lengths in ((3, 5), (1, 4), (2, 2, 6)):
        x, _ = jagged(device, *lengths)
        torch.testing.assert_close(compiled(x).values(), flashkat.rational(x, a, b).values())


@pytest.mark.parametrize(
    ("dim", "words"), [(0, "holds the batch"), (1, "is jagged"), (-2, "is jagged"), (3, "out of range")]
)
def test_jagged_tensors_have_channels_in_no_jagged_dimension(dim, words):
    _, a, b = leaves("cpu", torch.float32)
    with pytest.raises(ValueError, match=rf"^dim {dim} .*{words}"):
        flashkat.rational(jagged("cpu", 8, 8)[0], a, b, dim=dim)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(2, 8, dtype=torch.int64)}, TypeError, ["x", "int64"]),
        ({"x": torch.ones(2, 8, dtype=torch.complex64)}, TypeError, ["x", "complex64", ".real and .imag"]),
        ({"x": torch.ones(2, 8, dtype=torch.bool)}, TypeError, ["x", "bool"]),
        ({"numerator": torch.ones(1, 6, dtype=torch.int32)}, TypeError, ["numerator", "int32"]),
        ({"x": torch.tensor(1.0)}, ValueError, ["dimension"]),
        ({"dim": 2}, ValueError, ["dim 2", "(2, 8)"]),
        ({"dim": -3}, ValueError, ["dim -3", "(2, 8)"]),
        ({"numerator": torch.ones(6)}, ValueError, ["(6,)", "(4, 4)"]),
        ({"numerator": torch.ones(1, 0)}, ValueError, ["(1, 0)", "(4, 4)"]),
        ({"numerator": torch.ones(2, 6)}, ValueError, ["(2, 6)", "(4, 4)"]),
        ({"denominator": torch.ones(0, 4)}, ValueError, ["(1, 6)", "(0, 4)"]),
        ({"denominator": torch.ones(3, 4)}, ValueError, ["8 channels", "3 groups"]),
        ({"numerator": torch.ones(0, 6), "denominator": torch.ones(0, 4)}, ValueError, ["(0, 6)", "(0, 4)"]),
        ({"x": torch.ones(2, 8).to(torch.float8_e4m3fn)}, TypeError, ["x", "float8"]),
        ({"denominator": torch.ones(4, 4).to(torch.float8_e5m2)}, TypeError, ["denominator", "float8"]),
        ({"x": torch.eye(8).to_sparse()}, TypeError, ["x", "sparse", "to_dense"]),
        ({"numerator": torch.ones(1, 6, device="meta")}, ValueError, ["cpu", "meta"]),
        # Four groups divide both numbers.
        ({"channels": 16}, ValueError, ["16 channels", "dim -1", "(2, 8)"]),
    ],
)
def test_bad_arguments_get_one_clear_sentence(change, error, words):
    arguments = {"x": torch.ones(2, 8), "numerator": torch.ones(1, 6), "denominator": torch.ones(4, 4)} | change
    with pytest.raises(error) as caught:
        flashkat.rational(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_other_channels_than_asked_for_are_refused_wherever_the_call_goes():
    x, a, b = (torch.ones(size, device="meta") for size in ((2, 8), (1, 6), (4, 4)))
    assert flashkat.rational(x, a, b, channels=8).shape == x.shape
    with pytest.raises(ValueError, match="expected 16 channels in dim 0"):
        flashkat.rational(x.T.reshape(8, 2), a, b, dim=0, channels=16)
    x, a, b = (torch.ones_like(each, device="cpu") for each in (x, a, b))
    with pytest.raises(ValueError, match="expected 16 channels in dim -1"):
        torch.func.vmap(lambda x: flashkat.rational(x, a, b, channels=16))(x)


@pytest.mark.gpu
def test_x_and_coefficients_on_different_devices():
    with pytest.raises(ValueError, match=r"cuda:0.*cpu"):
        flashkat.rational(torch.ones(2, 8, device="cuda"), torch.ones(1, 6), torch.ones(4, 4))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_a_gpu_that_is_not_the_current_one():
    inputs = leaves("cuda:1", torch.float32)
    assert torch.cuda.current_device() == 0
    value = flashkat.rational(*inputs)
    value.sum().backward()
    assert value.device == torch.device("cuda:1")
    assert_close(value.cpu(), exact(inputs[0].cpu(), *(t.detach().cpu() for t in inputs), -1)["value"], 24, "value")
