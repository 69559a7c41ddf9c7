"""Functions in several processes that have joined each other."""

import pytest
import torch.distributed as dist
from torch.multiprocessing import ProcessRaisedException

from benchmarks.parts.processes import in_processes


def _ranks(offset):
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, offset + dist.get_rank())
    return found


def _fail(message):
    raise ValueError(message)


def test_processes_have_joined():
    assert in_processes(2, _ranks, 5) == [5, 6]


def test_a_failure_is_raised():
    with pytest.raises(ProcessRaisedException, match="a mistake"):
        in_processes(2, _fail, "a mistake")
