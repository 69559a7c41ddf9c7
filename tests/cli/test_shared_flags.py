"""Flags that commands share."""

import os

import pytest
from parsing import parse


def test_no_more_loader_processes_than_cores():
    assert parse("train", "data").workers == min(4, os.cpu_count() or 1)


@pytest.mark.parametrize("command", ["train", "validate", "plot"])
def test_groups_do_not_collide(command):
    """A flag added twice to one command makes argparse raise."""
    assert parse(command, "data", "--device", "cpu", "-b", 3, "--amp", "-m", "name").batch_size == 3


def test_data_that_needs_no_folder():
    assert parse("train", "--fake-data").data_dir is None
    assert parse("train", "--dataset", "hfds/food101").data_dir is None
    with pytest.raises(SystemExit):
        parse("train", "--dataset", "torch/cifar10")
