"""How DTensor shards the operators: which placements of results follow from which placements of arguments."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed

__all__ = ["register_shardings"]


class _Way(NamedTuple):
    """Placements on one dimension of the mesh: of x, of vectors over the channels, of the tables, and of gradients."""

    x: Any
    vector: Any
    tables: tuple[Any, ...]
    grad_vector: Any
    grad_tables: tuple[Any, ...]


def register_shardings() -> None:
    """Tell DTensor how to shard the registered operators, where PyTorch has it."""
    if not torch.distributed.is_available():
        return
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    def ways(x: Any, dim: int, *tables: Any) -> Iterator[_Way]:
        """Yield how an operator along ``dim`` may be sharded. Only the channels' shards hold rows of the tables."""
        copy, part = Replicate(), Partial()
        yield _Way(copy, copy, (copy, copy), copy, (copy, copy))
        for index in range(x.ndim):
            if index != dim % x.ndim:
                yield _Way(Shard(index), copy, (copy, copy), part, (part, part))
        rows = [table.shape[0] for table in tables]
        if _divides(x.mesh, max(rows)):
            split = [Shard(0) if count > 1 else None for count in rows]
            yield _Way(
                Shard(dim % x.ndim),
                Shard(0),
                tuple(each or copy for each in split),
                Shard(0),
                tuple(each or part for each in split),
            )

    operators = torch.ops.flashkat

    @register_sharding(operators.rational.default)
    def rational(x, numerator, denominator, dim, *rest):
        return [
            ([way.x], [way.x, *way.tables, None, *(None for _ in rest)]) for way in ways(x, dim, numerator, denominator)
        ]

    @register_sharding(operators.rational_backward.default)
    def rational_backward(grad, x, numerator, denominator, dim):
        return [
            ([way.x, *way.grad_tables], [way.x, way.x, *way.tables, None])
            for way in ways(x, dim, numerator, denominator)
        ]

    @register_sharding(operators.bias_rational.default)
    def bias_rational(x, bias, numerator, denominator, *rest):
        return [
            ([way.x], [way.x, way.vector, *way.tables, *(None for _ in rest)])
            for way in ways(x, -1, numerator, denominator)
        ]

    @register_sharding(operators.bias_rational_backward.default)
    def bias_rational_backward(grad, x, bias, numerator, denominator, *recompute):
        # Without recomputation, the last result is an empty tensor.
        return [
            (
                [way.x, way.grad_vector, *way.grad_tables, way.x if any(recompute) else Replicate()],
                [way.x, way.x, way.vector, *way.tables, *(None for _ in recompute)],
            )
            for way in ways(x, -1, numerator, denominator)
        ]

    def of_whole_rows(x: Any, *tables: Any) -> list[_Way]:
        """Return the ways that leave the channels together, over which LayerNorm takes its mean."""
        return [way for way in ways(x, -1, *tables) if way.x != Shard(x.ndim - 1)]

    @register_sharding(operators.add_norm_rational.default)
    def add_norm_rational(x, branch, weight, bias, numerator, denominator, *rest):
        return [
            ([way.x] * 4, [way.x, way.x, way.vector, way.vector, *way.tables, *(None for _ in rest)])
            for way in of_whole_rows(x, numerator, denominator)
        ]

    @register_sharding(operators.add_norm_rational_backward.default)
    def add_norm_rational_backward(
        grad_total, grad_out, total, mean, rstd, weight, bias, numerator, denominator, x_dtype, branch_dtype, *recompute
    ):
        def results(way: _Way) -> list[Any]:
            # If both dtypes are equal, the branch's gradient is an empty tensor; without recomputation, the last one.
            branch, out = (
                Replicate() if is_empty else way.x for is_empty in (x_dtype == branch_dtype, not any(recompute))
            )
            return [way.x, branch, *[way.grad_vector] * 2, *way.grad_tables, out]

        rest = [None for _ in (x_dtype, branch_dtype, *recompute)]
        return [
            (
                results(way),
                [None if grad_total is None else way.x, *[way.x] * 4, *[way.vector] * 2, *way.tables, *rest],
            )
            for way in of_whole_rows(total, numerator, denominator)
        ]


def _divides(mesh: Any, groups: int) -> bool:
    """Return whether every number of shards holds whole groups. DTensor itself refuses more shards than rows."""
    sizes = [mesh.size(index) for index in range(mesh.ndim)]
    subsets = itertools.chain.from_iterable(itertools.combinations(sizes, count) for count in range(len(sizes) + 1))
    return all(groups % shards == 0 for shards in map(math.prod, subsets) if shards <= groups)
