"""Some hundreds of the cases of ``python -m dev.fuzz``, which tries ten thousand."""

import pytest
import torch

from dev.fuzz import Fuzz

CASES, GROUP = 300, 50


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Fuzz(tmp_path_factory.mktemp("fuzz"))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("first", range(0, CASES, GROUP))
def test_cases_end_well(fuzz, first):
    for number in range(first, first + GROUP):
        fuzz.case(number)
