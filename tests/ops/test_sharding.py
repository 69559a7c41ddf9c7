"""DTensors in two real processes, against one tensor: placements, values and gradients."""

import importlib
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from processes import forked, free_port

import flashkat
from flashkat.ops import add_norm_rational, linear_rational
from flashkat.ops.sharding import _divides

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch is built without torch.distributed")


def normal(*sizes):
    generator = torch.Generator().manual_seed(13)
    return [torch.randn(size, generator=generator) for size in sizes]


def assert_sharded(mesh, function, inputs, placements, wanted):
    """Compare results and gradients of DTensors with those of tensors, and all placements with the wanted ones."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    leaves = [each.clone().requires_grad_() for each in inputs]
    results = function(*leaves)
    truths = *results, *torch.autograd.grad(sum(each.square().sum() for each in results), leaves)
    shards = [
        distribute_tensor(each, mesh, [placement]).requires_grad_()
        for each, placement in zip(inputs, placements, strict=True)
    ]
    results = function(*shards)
    found = *results, *torch.autograd.grad(sum(each.square().sum() for each in results), shards)
    assert all(isinstance(each, DTensor) for each in found)
    assert [each.placements[0] for each in found] == wanted
    for each, truth in zip(found, truths, strict=True):
        torch.testing.assert_close(each.full_tensor(), truth, rtol=1e-4, atol=1e-4)


def _rationals():
    """Only F(x): each dimension, and each way to share the tables."""
    from torch.distributed.tensor import Partial, Replicate, Shard, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    copy, part = Replicate(), Partial()

    def function(x, a, b):
        return (flashkat.rational(x, a, b, channels=12),)

    for rows in ((1, 4), (4, 1), (4, 4), (1, 1), (1, 3)):
        inputs = normal((4, 2, 12), (rows[0], 6), (rows[1], 4))
        assert_sharded(mesh, function, inputs, [copy] * 3, [copy] * 4)
        for dim in (0, 1):
            assert_sharded(mesh, function, inputs, [Shard(dim), copy, copy], [Shard(dim), Shard(dim), part, part])
        # Three groups do not divide into two shards: the channels come together.
        channels, tables = Shard(2), [Shard(0) if count > 1 else part for count in rows]
        wanted = [copy] * 4 if 3 in rows else [channels, channels, *tables]
        assert_sharded(mesh, function, inputs, [channels, copy, copy], wanted)
    dist.destroy_process_group()


def _larger_operators():
    """As on a GPU, with interpreted kernels."""
    from torch.distributed.tensor import Partial, Replicate, Shard, init_device_mesh

    for name in ("linear_rational", "add_norm_rational"):
        importlib.import_module(f"flashkat.ops.{name}").fuses = lambda x: True
    mesh = init_device_mesh("cpu", (2,))
    copy, part, rows, channels = Replicate(), Partial(), Shard(0), Shard(1)

    def of_linear(*inputs):
        return (linear_rational(*inputs),)

    inputs = normal((4, 8), (16, 8), (16,), (1, 6), (2, 4))
    assert_sharded(mesh, of_linear, inputs, [rows, *[copy] * 4], [rows, rows, *[part] * 4])
    # The columns of tensor parallelism.
    parallel = [copy, rows, rows, copy, copy]
    assert_sharded(mesh, of_linear, inputs, parallel, [channels, part, rows, rows, part, rows])
    inputs = normal((4, 16), (4, 16), (16,), (16,), (1, 6), (2, 4))
    assert_sharded(mesh, add_norm_rational, inputs, [rows, rows, *[copy] * 4], [*[rows] * 4, *[part] * 4])
    assert_sharded(mesh, lambda *args: add_norm_rational(*args)[1:], inputs, [copy] * 6, [copy] * 7)
    dist.destroy_process_group()


def _in_group(function):
    dist.init_process_group("gloo")
    function()


def in_two_processes(folder, function):
    environments = [
        {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": rank}
        for port in [free_port()]
        for rank in range(2)
    ]
    done = forked(folder, _in_group, (function,), environments)
    assert done.status == [0, 0], done.stderr


def test_a_rational_of_shards(tmp_path):
    in_two_processes(tmp_path, _rationals)


def test_larger_operators_of_shards(tmp_path):
    pytest.importorskip("triton")
    in_two_processes(tmp_path, _larger_operators)


@pytest.mark.parametrize(
    ("sizes", "groups", "divides"),
    [
        ((2,), 8, True),
        ((3,), 8, False),
        ((16,), 8, True),  # DTensor itself gives 8 rows to no 16 processes
        ((8, 4), 8, True),
        ((2, 4), 12, False),  # 8 shards of 12 rows
        ((2, 3), 12, True),
        ((5, 7), 1, True),
    ],
)
def test_shards_hold_whole_groups(sizes, groups, divides):
    assert _divides(SimpleNamespace(ndim=len(sizes), size=lambda index: sizes[index]), groups) is divides
