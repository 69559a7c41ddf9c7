"""The kernels one by one."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from flashkat.data.batched import kernels
from flashkat.data.batched.steps import Operation, as_table


@pytest.fixture
def images(device):
    pixels = np.random.default_rng(2).integers(0, 256, (3, 9, 11, 3)).astype(np.uint8)
    return torch.from_numpy(pixels).to(device)


def _counts(images, operations):
    counts = torch.zeros(3, 3, 256, dtype=torch.int32, device=images.device)
    (steps,) = as_table([[(operation, (1.5,))] for operation in operations]).to(images.device)
    kernels.count_kernel[(3, 2)](images, steps, counts, 99, BLOCK=64)
    return counts, steps


def test_only_what_a_step_needs_is_counted(images):
    counts, _ = _counts(images, [Operation.EQUALIZE, Operation.INVERT, Operation.CONTRAST])
    for channel in range(3):
        assert torch.equal(counts[0, channel], torch.bincount(images[0, ..., channel].flatten(), minlength=256).int())
    assert not counts[1].any()
    assert counts[2].sum(1).tolist() == [99, 0, 0]


def test_tables_are_made_for_operations_on_values_alone(images):
    counts, steps = _counts(images, [Operation.INVERT, Operation.COLOR, Operation.AUTOCONTRAST])
    tables = torch.full((3, 3, 256), 7, dtype=torch.uint8, device=images.device)
    kernels.table_kernel[(3, 3)](steps, counts, tables, 99, enable_fp_fusion=False)
    assert tables[0, 0].tolist() == list(range(255, -1, -1))
    assert (tables[1] == 7).all()
    assert (tables[2, 0].diff().int() >= 0).all()
