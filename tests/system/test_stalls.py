"""Reads are noted by the workers that do them, and limited in time where there is no worker."""

import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from flashkat.errors import InputError
from flashkat.system.stalls import Reads, explain_workers


class Noted(Dataset):
    """What is noted while a worker reads, and after it."""

    def __init__(self, workers):
        self.reads = Reads(workers, 60)

    def __len__(self):
        return 4

    def __getitem__(self, number):
        during = self.reads.read(lambda number: self.reads.at(), number)
        self.reads.done()
        own = torch.utils.data.get_worker_info()
        return during[0 if own is None else own.id]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_process_notes_its_own_sample(workers):
    dataset = Noted(workers)
    assert list(DataLoader(dataset, batch_size=None, num_workers=workers)) == [0, 1, 2, 3]
    assert dataset.reads.at() == {}


def test_a_read_that_stalls_is_an_error_and_the_next_one_is_none():
    reads, never = Reads(0, 0.05), threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer for 0\.05 s"):
        reads.read(lambda number: never.wait(), 3)
    assert reads.at() == {0: 3}
    reads._limit = 60
    assert [reads.read(str, number) for number in (4, 5)] == ["4", "5"]
    never.set()


def test_one_thread_reads_all():
    reads, threads = Reads(0, 60), []
    for number in range(3):
        reads.read(lambda number: threads.append(threading.current_thread()), number)
    assert len({thread.ident for thread in threads}) == 1
    assert threads[0] is not threading.main_thread()


def test_no_limit_needs_no_thread():
    assert Reads(0, 0).read(lambda number: threading.current_thread(), 1) is threading.current_thread()


def test_errors_come_back():
    reads = Reads(0, 60)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            reads.read(lambda number: 1 // 0, 0)


def test_an_error_about_a_loaders_process_is_one_line():
    def fail(message):
        with explain_workers(lambda: "worker 0 at a.png", "try again"):
            raise RuntimeError(message)

    with pytest.raises(InputError) as error:
        fail("DataLoader worker (pid 3) is killed by signal: Killed. \nmore")
    assert str(error.value) == (
        "loading images stopped: DataLoader worker (pid 3) is killed by signal: Killed, worker 0 at a.png; try again"
    )
    with pytest.raises(RuntimeError, match=r"^another$"):
        fail("another")
