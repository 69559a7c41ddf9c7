"""The processes of a run: joining them and adding up."""

import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed.distributed_c10d as c10d
from processes import forked, free_port, started

from flashkat.errors import InputError
from flashkat.system import distributed

# What is left of FSDP at the end of a run: a group that something holds on to, just after much work.
ENDING = """
import torch
import torch.distributed as dist
from flashkat.system.distributed import joined
from flashkat.system.interrupts import leave
with joined("cpu"):
    group = dist.group.WORLD
    tensors = [torch.ones(4) for _ in range(200)]
    for tensor in tensors:
        work = dist.all_reduce(tensor, async_op=True)
        work.wait()
    del tensors, tensor, work
leave(0)
"""


@pytest.mark.slow
def test_processes_end_while_threads_give_back_tensors(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ENDING)
    done = started(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, script)
    assert done.returncode == 0, done.stderr


def count_together():
    with distributed.joined("cpu") as device:
        rank = distributed.rank()
        print(device, distributed.size(), distributed.total([rank, 0.5]), distributed.gather("ab"[rank]))
        with distributed.one_by_one(True):
            pass


def test_sums_and_values_of_all(tmp_path):
    """Of processes on two nodes, each of which has a first one."""
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": 2}
    done = forked(tmp_path, count_together, (), [{**meeting, "RANK": rank, "LOCAL_RANK": 0} for rank in range(2)])
    assert done.status == [0, 0], done.stderr
    assert done.stdout == "cpu 2 [1.0, 1.0] ['a', 'b']\n" * 2


def test_one_process_is_alone():
    with distributed.joined("cpu") as device, distributed.one_by_one(True):
        assert (device.type, distributed.rank(), distributed.size()) == ("cpu", 0, 1)
        assert distributed.total([2.5]) == [2.5]
        assert distributed.gather("a") == ["a"]
        assert distributed.is_primary()


def wait_for_a_download():
    c10d.default_pg_timeout = timedelta(seconds=2)
    with distributed.joined("cpu"):
        for _ in range(2):
            with distributed.one_by_one(True):
                if distributed.is_primary():
                    time.sleep(4)
        print(distributed.total([1.0]))


def test_a_download_may_outlast_the_timeout_of_the_group(tmp_path):
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": 2}
    environments = [{**meeting, "RANK": rank, "LOCAL_RANK": rank} for rank in range(2)]
    done = forked(tmp_path, wait_for_a_download, (), environments)
    assert done.status == [0, 0], done.stderr
    assert done.stdout == "[2.0]\n" * 2


def test_more_processes_than_gpus(monkeypatch):
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="process 2 of this node finds 1 GPUs: give torchrun --nproc-per-node 1"):
        distributed.joined("cuda").__enter__()
