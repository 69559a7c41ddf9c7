"""Any tensor as three dimensions: views where they can be, results with the order of the input's strides."""

import inspect

import pytest
import torch

from flashkat.ops import add_norm_rational
from flashkat.ops.layout import (
    Layers,
    Output,
    as_three_dimensional,
    channels_last_as_rows,
    outer_channels_inner,
    vector_of,
)


@pytest.mark.parametrize(
    ("shape", "dim", "sizes"),
    [((2, 3, 4), -1, (6, 4, 1)), ((2, 3, 4), 1, (2, 3, 4)), ((5,), 0, (1, 5, 1)), ((2, 0, 3, 7), 2, (0, 3, 7))],
)
def test_sizes(shape, dim, sizes):
    assert outer_channels_inner(torch.Size(shape), dim) == sizes
    assert as_three_dimensional(torch.empty(shape), dim).shape == sizes


def test_a_view_where_strides_allow_one():
    x = torch.arange(120.0).reshape(2, 3, 4, 5)
    assert as_three_dimensional(x, 1).data_ptr() == x.data_ptr()
    apart = x.permute(2, 0, 3, 1)
    found = as_three_dimensional(apart, 2)
    assert found.data_ptr() != x.data_ptr()
    assert torch.equal(found, apart.reshape(8, 5, 3))


def test_channels_last_in_memory_are_rows():
    last = torch.randn(2, 6, 5).transpose(1, 2)  # (outer, C, inner) with channels next to each other
    rows, other = channels_last_as_rows(last, last + 1)
    assert rows.shape == other.shape == (12, 5, 1)
    assert rows.data_ptr() == last.data_ptr()
    first = torch.randn(2, 5, 6)
    assert channels_last_as_rows(first, last)[0] is first


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (2, 0, 3, 1)])
def test_a_result_keeps_the_order_of_strides(order):
    x = torch.empty(2, 3, 4, 5).permute(order)
    output = Output(x, 1, torch.float16)
    values = torch.arange(120.0).half().reshape(output.view.shape)
    output.view.copy_(values)
    found = output.finish()
    assert (found.stride(), found.dtype) == (torch.empty_like(x).stride(), torch.float16)
    assert torch.equal(found, values.view(x.shape))


def test_a_vector_is_of_the_widest_dtype():
    assert [vector_of(*dtypes) for dtypes in ((torch.float64,), (torch.float32, torch.bfloat16), (torch.float16,))] == [
        *(2, 4, 8)
    ]


def test_layers_begin_as_the_first_operator_takes_them():
    names = list(inspect.signature(add_norm_rational).parameters)
    assert names[2:6] == ["weight", "bias", "numerator", "denominator"]
    assert Layers._fields[:4] == ("scale", "shift", "numerator1", "denominator1")
    assert len(Layers._fields) == 10
