"""The launches of the rational: right with a bias and of any size, few kernels, and what fits into registers."""

import json
import os
import subprocess
import sys

import pytest
import torch
from oracle import assert_close, distance, exact

import flashkat
from flashkat.ops import rational_reference
from flashkat.ops.call import metadata

pytest.importorskip("triton")
from flashkat.ops.triton import norm as norm_launch
from flashkat.ops.triton import rational as launch

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"  # where there is no GPU, Triton interprets
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
UNIT = {torch.float64: 1e-13, F32: 2e-6, F16: 1e-3, BF16: 1e-2}

# In a process of its own, where Triton compiles: in this one it may interpret.
SCRIPT = """
import json, subprocess, sys
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from flashkat.ops.triton import norm as norm_launch, rational as launch

folder, capability, *cases = sys.argv[1:]
folder, capability = Path(folder), int(capability)
for module in (launch, norm_launch):
    module.processors = lambda device: 132
    module.starts_early = lambda device: capability >= 90
launches = []
launch.Launch.__call__ = lambda self, *tensors: launches.append((self, tensors))


def start(dtype, layout):
    if layout == "with bias":
        x, bias = torch.empty(2, 197, 3072, dtype=dtype), torch.empty(3072)
        numerator, denominator = torch.empty(1, 6), torch.empty(8, 4)
        launch.forward(x, numerator, denominator, -1, dtype, bias)
        launch.backward(x, x, numerator, denominator, -1, bias, torch.empty_like(x))
    elif layout == "with LayerNorm":
        x, branch = torch.empty(2, 197, 768), torch.empty(2, 197, 768, dtype=dtype)
        parameters = torch.empty(768), torch.empty(768), torch.empty(1, 6), torch.empty(8, 4)
        total, mean, rstd, out = norm_launch.forward(x, branch, *parameters, 1e-6, dtype)
        norm_launch.backward(total, out, total, mean, rstd, *parameters, x.dtype, dtype, torch.empty_like(out))
    else:
        x = {
            "channels last": torch.empty(2, 197, 768, dtype=dtype),
            "channels first": torch.empty(2, 256, 14, 14, dtype=dtype),
            "odd widths": torch.empty(2, 197, 780, dtype=dtype),
        }[layout]
        dim = 1 if layout == "channels first" else -1
        numerator, denominator = torch.empty(1, 6), torch.empty(1 if layout == "odd widths" else 8, 4)
        launch.forward(x, numerator, denominator, dim, dtype)
        launch.backward(x, x, numerator, denominator, dim)


TYPES = {"float64": "*fp64", "float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}


def compiled(made, tensors):
    names, pointers, numbers = made._kernel.arg_names, iter(tensors), iter(made._numbers)
    kinds, constants = {}, dict(made._constants)
    for argument in names:
        if argument.endswith("_ptr"):
            kinds[argument] = TYPES[str(next(pointers).dtype).removeprefix("torch.")]
        elif argument not in constants:
            number = next(numbers)
            kinds[argument] = "fp32" if isinstance(number, float) else "i32"
            # As a call specialises strides.
            if number == 1 and argument.endswith("_channel"):
                constants[argument] = 1
        if argument in constants:
            kinds[argument] = "constexpr"
    constants = {(names.index(constant),): value for constant, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(kinds.values()) if kind.startswith("*")}
    source = ASTSource(made._kernel, kinds, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=made._options)
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    usage = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", path]
    text = subprocess.run(usage, capture_output=True, text=True, check=True).stdout
    words = dict(word.split(":") for word in text.split() if word.count(":") == 1 and word[-1].isdigit())
    return {key: int(words[key]) for key in ("REG", "STACK", "LOCAL")}


results = {}
for case in cases:
    name, layout = case.split(" ", 1)
    launches.clear()
    start(getattr(torch, name), layout)
    results[case] = {made._kernel.__name__: compiled(made, tensors) for made, tensors in launches}
print(json.dumps(results))
"""


@pytest.fixture
def compiled_for(monkeypatch):
    """What would be compiled for x of a shape on a GPU of 132 multiprocessors: all that kernels know beforehand."""
    for module in (launch, norm_launch):
        monkeypatch.setattr(module, "processors", lambda device: 132)
    caches = (
        launch.forward_launch, launch.backward_launches, norm_launch.forward_launch, norm_launch.backward_launches
    )  # fmt: skip

    def clear():
        for cache in caches:
            cache.cache_clear()

    made = []
    monkeypatch.setattr(launch.Launch, "__call__", lambda self, *tensors: made.append(self))
    clear()

    def run(shape, width=None, dim=-1, **options):
        made.clear()
        x = torch.empty(shape, device="meta").to(**options)[..., :width]
        a, b, channel = (torch.empty(size, device="meta") for size in ((1, 6), (4, 4), x.shape[-1:]))
        launch.forward(x, a, b, dim, x.dtype)
        launch.backward(x, x, a, b, dim)
        if width is None and dim == -1 and x.shape[-1] % 16 == 0:
            launch.backward(x, x, a, b, -1, channel)
            total, mean, rstd, _ = norm_launch.forward(x, x, channel, channel, a, b, 1e-6, x.dtype)
            norm_launch.backward(x, x, total, mean, rstd, channel, channel, a, b, x.dtype, x.dtype)
        return [(each._kernel.__name__, each._constants, each._options) for each in made]

    yield run
    clear()


@pytest.mark.parametrize(("channels", "width"), [(192, None), (768, None), (20, None), (72, 68)])
def test_batches_and_sequences_of_any_size_take_the_same_kernels(compiled_for, channels, width):
    first, *others = (
        compiled_for((batch, length, channels), width)
        for batch, length in (
            (128, 197),
            (1, 197),
            (2, 197),
            (16, 197),
            (1, 7),
            (1, 50),
            (8, 65),
            (1, 1025),
            (1024, 577),
        )
    )
    assert len(first) >= 3
    assert all(other == first for other in others)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batches_of_images_take_the_same_kernels(compiled_for, memory_format):
    first, *others = (
        compiled_for((batch, 64, 7, 8), dim=1, memory_format=memory_format) for batch in (128, 1, 2, 16, 1024)
    )
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("capability", "cases"),
    [
        (90, ["bfloat16 channels last"]),
        *(
            pytest.param(90, [case], marks=pytest.mark.slow)
            for case in (
                "float32 channels first", "float16 with bias", "bfloat16 with LayerNorm", "float16 odd widths"
            )
        ),
        *(
            pytest.param(
                capability,
                [f"{dtype} channels last", f"{fused} with LayerNorm", "bfloat16 with bias"],
                marks=pytest.mark.slow,
            )
            for capability, dtype, fused in (
                (80, "bfloat16", "float16"), (100, "float32", "bfloat16"), (120, "bfloat16", "bfloat16")
            )
        ),
    ],
)  # fmt: skip
def test_compiles(tmp_path, capability, cases):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(capability), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert list(results) == cases
    plain, fused = "forward backward sum_partials", "add_norm_forward add_norm_backward sum_norm_partials"
    for case, used in results.items():
        names = fused if case.endswith("LayerNorm") else plain
        assert used.keys() == {f"{name}_kernel" for name in names.split()}
        for usage in used.values():
            assert 0 < usage["REG"] <= 255
            assert usage["LOCAL"] == 0
            assert usage["STACK"] <= 32  # a few numbers, once, around a loop


def normal(generator, *size, dtype=F32, device=DEVICE):
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).to(device)


@pytest.mark.parametrize(
    ("shape", "groups", "rows", "dtype", "out_dtype", "scale"),
    [
        ((2, 9, 192), 8, 1, BF16, BF16, 1.0),
        ((70, 64), 4, 4, F32, F32, 1.0),
        ((3, 768), 8, 1, F16, F16, 1.0),
        ((7, 64), 1, 1, F32, BF16, 1.0),  # both shared
        ((9, 16), 4, 1, F32, F32, 1e12),  # powers that overflow: done again with care
    ],
)
def test_kernels_match_float64(shape, groups, rows, dtype, out_dtype, scale):
    generator = torch.Generator().manual_seed(3)
    x, grad = normal(generator, *shape, dtype=dtype), normal(generator, *shape, dtype=out_dtype)
    bias = scale * normal(generator, shape[-1])
    a, b = normal(generator, rows, 6), normal(generator, groups, 4)
    out = launch.forward(x, a, b, -1, out_dtype, bias)
    grads = launch.backward(grad, x, a, b, -1, bias)
    again = launch.backward(grad, x, a, b, -1, bias)
    leaves = [tensor.double().requires_grad_() for tensor in (x, a, b, bias)]
    truth = rational_reference(leaves[0] + leaves[3], *leaves[1:3])
    truths = torch.autograd.grad(truth, leaves, grad.double())
    assert distance(out, truth.detach()) <= UNIT[out_dtype]
    for found, truth, same in zip(grads, truths, again, strict=True):
        assert distance(found, truth) <= UNIT[found.dtype]
        assert torch.equal(found, same)


_LARGE = ((25216, 3072), 1, 8), ((999, 768), 8, 8), ((7, 11, 192), 1, 1)


@pytest.mark.parametrize(
    ("shape", "rows", "groups", "dtype", "large"),
    [
        *(((3, 16), 2, 2, dtype, False) for dtype in (F32, BF16, F16)),
        pytest.param((3, 16), 2, 2, F32, True, marks=pytest.mark.slow),
        *(
            pytest.param(*case, dtype, large, marks=pytest.mark.gpu)
            for case in _LARGE
            for dtype in (F32, BF16, F16)
            for large in (False, True)
        ),
    ],
)
def test_the_backward_pass_can_store_the_bits_of_the_forward_pass(shape, rows, groups, dtype, large):
    generator = torch.Generator().manual_seed(4)
    x, grad = (normal(generator, *shape, dtype=dtype) for _ in range(2))
    bias = normal(generator, shape[-1])
    if large:  # takes the overflow-safe path
        x.view(-1)[3] = 3e4 if dtype == F16 else 1e30
    a, b = normal(generator, rows, 6), normal(generator, groups, 4)
    out = torch.full_like(x, torch.nan)
    found = launch.backward(grad, x, a, b, -1, bias, out)
    # These say how many numbers differ, and by how much.
    torch.testing.assert_close(out, launch.forward(x, a, b, -1, dtype, bias), rtol=0, atol=0)
    torch.testing.assert_close(found, launch.backward(grad, x, a, b, -1, bias), rtol=0, atol=0)


def test_a_large_gradient_changes_no_bit_of_the_stored_value():
    """It makes the backward pass repeat what the forward pass did not."""
    generator = torch.Generator().manual_seed(4)
    x, bias, a, b = (normal(generator, *each) for each in ((3, 16), (16,), (1, 6), (2, 4)))
    out = torch.empty_like(x)
    launch.backward(torch.full_like(x, 3e38), x, a, b, -1, bias, out)
    assert torch.equal(out, launch.forward(x, a, b, -1, F32, bias))


_PLANNED = ((3, 16), -1, F32, F32), ((3, 5, 16), -1, BF16, BF16), ((2, 16, 3, 5), 1, F32, BF16)


@pytest.mark.parametrize(
    ("shape", "dim", "dtype", "out_dtype", "order"),
    [
        (*_PLANNED[0], "strided"),
        (*_PLANNED[1], "dense"),
        (*_PLANNED[2], "channels last"),
        *(
            pytest.param(*case, order, marks=pytest.mark.gpu)
            for case in _PLANNED
            for order in ("dense", "channels last", "strided")
        ),
    ],
)
def test_a_plan_computes_the_same(shape, dim, dtype, out_dtype, order):
    """For any strides of x and of the gradient."""
    generator = torch.Generator().manual_seed(3)
    x, grad = normal(generator, *shape, dtype=dtype), normal(generator, *shape, dtype=out_dtype)
    if order == "channels last":
        x = x.movedim(dim, -1).contiguous().movedim(-1, dim)
    elif order == "strided":
        x = torch.stack([x, x], dim=-1)[..., 0]
    a, b = normal(generator, 1, 6), normal(generator, 4, 4)
    plan = launch.plan(metadata(x), x.stride(), metadata(a), metadata(b), dim, out_dtype)
    out = launch.forward(x, a, b, dim, out_dtype)
    found = plan.forward(x, a, b)
    assert (found.dtype, found.stride()) == (out.dtype, out.stride())
    assert torch.equal(found, out)
    like_result = torch.empty_like(found).copy_(grad)
    for x_again, each in ((x, grad), (x, like_result), (x.contiguous(), like_result), (x, like_result.double())):
        expected = launch.backward(each, x_again, a, b, dim)
        assert all(map(torch.equal, plan.backward(each, x_again, a, b), expected))


def test_no_plan_for_nothing():
    x, a, b = (torch.ones(size, device=DEVICE) for size in ((0, 64), (1, 6), (4, 4)))
    assert launch.plan(metadata(x), x.stride(), metadata(a), metadata(b), -1, F32) is None


def test_a_bias_of_any_strides():
    generator = torch.Generator().manual_seed(3)
    x, grad, a, b = (normal(generator, *size) for size in ((5, 64), (5, 64), (1, 6), (4, 4)))
    bias = normal(generator, 64)
    for same in (torch.stack([bias, bias + 1], dim=-1)[:, 0], bias[:1].expand(64)):
        dense = same.clone(memory_format=torch.contiguous_format)
        assert torch.equal(launch.forward(x, a, b, -1, F32, same), launch.forward(x, a, b, -1, F32, dense))
        found, expected = (launch.backward(grad, x, a, b, -1, each) for each in (same, dense))
        assert all(map(torch.equal, found, expected))


def test_no_rows_give_zero_gradients():
    x = torch.empty(0, 64, device=DEVICE)
    a, b, bias = (torch.ones(*size, device=DEVICE) for size in ((1, 6), (4, 4), (64,)))
    assert launch.forward(x, a, b, -1, F32, bias).shape == (0, 64)
    assert [grad.shape for grad in launch.backward(x, x, a, b, -1, bias)] == [x.shape, a.shape, b.shape, bias.shape]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2**31 // 64 + 1000, 64), (40000, 64, 1000)])
def test_more_than_two_to_the_31_elements(shape):
    """Offsets beyond int32 and many rows: the end of the tensor is computed, and the sums count every element."""
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    x = torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_()
    a = torch.tensor([[0.0, 1.0, 0.5]], device="cuda", requires_grad=True)
    b = torch.rand(8, 2, device="cuda", requires_grad=True)
    x.requires_grad_()
    value = flashkat.rational(x, a, b, dim=1)
    value.backward(torch.ones((), device="cuda", dtype=torch.bfloat16).expand_as(value))
    tail = x.detach()[-3:]
    expected = exact(torch.ones_like(tail).cpu(), tail.cpu(), a.detach().cpu(), b.detach().cpu(), 1)
    assert_close(value.detach()[-3:].cpu(), expected["value"], 24, "value")
    assert_close(x.grad[-3:].cpu(), expected["grad_x"], 24, "grad_x")
    # da_1 = sum x / Q and so on have no closed form; da_0 + sums of a linear check do: with b = 0 da_0 counts.
    count = torch.autograd.grad(
        flashkat.rational(x, a, torch.zeros_like(b), dim=1), a, torch.ones_like(value).detach(), retain_graph=False
    )[0][0, 0]
    assert count == x.numel()


@pytest.mark.gpu
def test_pytorchs_launcher_gives_the_same_bits(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    x, a, b = normal(generator, 5, 192, dtype=BF16), normal(generator, 1, 6), normal(generator, 8, 4)
    plan = launch.plan(metadata(x), x.stride(), metadata(a), metadata(b), -1, BF16)
    kept = [plan.forward_launch, plan.backward_launches.main, plan.backward_launches.add_up]

    def both():
        return plan.forward(x, a, b), *plan.backward(x, x, a, b)

    first, second = both(), both()
    assert all(each._start is not None for each in kept)
    for each in kept:
        monkeypatch.setattr(each, "_start", None)  # Triton's launcher
    for one, two, three in zip(first, second, both(), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
