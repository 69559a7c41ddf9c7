"""Shares, orders and random numbers, for numbers of processes that the tests do not start."""

import math
import random

import numpy as np
import pytest
import torch
from timm.data.loader import PrefetchLoader
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from flashkat.data.order import SeededErasing, evaluation_batches, own_images, start_epoch, training_batches
from flashkat.errors import InputError
from flashkat.evaluation.evaluate import evaluate
from flashkat.system import distributed
from flashkat.system.random import random_state, set_random_state


class Numbers(Dataset):
    """Its items are their index, and what three generators draw for them."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index, torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])


@pytest.fixture
def as_process(monkeypatch):
    def become(rank, size):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "size", lambda: size)

    return become


def epochs_of(count, batch, workers=0, seed=5, epochs=3, start=None):
    loader = training_batches(Numbers(count), batch, seed, num_workers=workers)
    if start:
        start_epoch(loader, *start)
    return [list(loader) for _ in range(epochs)]


@pytest.mark.parametrize(("count", "size", "batch"), [(16, 2, 2), (17, 2, 4), (31, 3, 5), (12, 4, 1)])
def test_global_batches_are_those_of_one_process(as_process, count, size, batch):
    as_process(0, 1)
    alone = epochs_of(count, size * batch)
    shares = []
    for rank in range(size):
        as_process(rank, size)
        shares.append(epochs_of(count, batch))
    assert {len(epoch) for share in shares for epoch in share} == {count // (size * batch)}
    for epoch in range(3):
        for number, (indices, drawn) in enumerate(alone[epoch]):
            ours = [share[epoch][number] for share in shares]
            together = torch.stack([share[0] for share in ours], 1).flatten()
            assert torch.equal(together, indices)
            # Augmented alike, too.
            assert torch.equal(torch.stack([share[1] for share in ours], 1).flatten(0, 1), drawn)
    assert not torch.equal(alone[0][0][0], alone[1][0][0]) or count < 4


def test_repeated_augmentation_takes_the_seed(as_process):
    as_process(0, 2)
    orders = [
        [indices.tolist() for indices, _ in training_batches(Numbers(600), 4, seed, views=2)] for seed in (1, 2, 1)
    ]
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("passes", [0.25, 1.5, 2])
@pytest.mark.parametrize("continued", [False, True])
def test_a_part_of_a_pass_is_drawn_anew_in_each_epoch(passes, continued):
    """The images of a folder are in the order of their classes: the first part of them lacks some."""

    def made(seed):
        return training_batches(Numbers(80), 4, seed, passes=passes, continued=continued)

    loader = made(5)
    epochs = [torch.cat([indices for indices, _ in loader]).tolist() for _ in range(3)]
    assert {len(epoch) for epoch in epochs} == {80 * passes}
    for epoch in epochs:
        assert {epoch.count(index) for index in range(80)} == {math.floor(passes), math.ceil(passes)}
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == (1 if passes == 2 else 3)
    loader = made(5)
    start_epoch(loader, 1, 3)
    assert torch.cat([indices for indices, _ in loader]).tolist() == epochs[1][12:]
    assert torch.cat([indices for indices, _ in made(6)]).tolist() != epochs[0]


def test_views_of_a_part_of_a_pass_go_to_different_processes(as_process):
    shares = []
    for rank in range(2):
        as_process(rank, 2)
        loader = training_batches(Numbers(1200), 4, 5, passes=0.5, views=2)
        shares.append([torch.cat([indices for indices, _ in loader]).tolist() for _ in range(2)])
    for one, other in zip(*shares, strict=True):
        assert one == other
    assert max(shares[0][0]) >= 600
    assert set(shares[0][0]) != set(shares[0][1])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_begun_anywhere(as_process, workers):
    as_process(1, 2)
    straight = epochs_of(40, 3, workers)
    (left,) = epochs_of(40, 3, epochs=1, start=(2, 4))
    assert len(left) == len(straight[2]) - 4
    for (ours, ours_drawn), (theirs, theirs_drawn) in zip(left, straight[2][4:], strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours_drawn, theirs_drawn)


def continued(count, batch, workers=0):
    loading = {"num_workers": workers, "persistent_workers": workers > 0}
    return training_batches(Numbers(count), batch, seed=5, continued=True, **loading)


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for (indices, drawn), (expected, expected_drawn) in zip(ours, theirs, strict=True):
        assert torch.equal(indices, expected)
        assert torch.equal(drawn, expected_drawn)


@pytest.mark.parametrize("workers", [0, 2])
def test_continued_epochs_are_the_same_ones(as_process, workers):
    as_process(1, 2)
    straight, loader = epochs_of(40, 3, epochs=4), continued(40, 3, workers)
    assert len(loader) == 6
    for epoch in straight[:2]:
        assert_same(list(loader), epoch)
    start_epoch(loader, 2, 0)  # as training does, though it is what comes next
    assert_same(list(loader), straight[2])
    start_epoch(loader, 1, 4)
    assert_same(list(loader), straight[1][4:])
    assert_same(list(loader), straight[2])
    # One that is broken off, and those of an epoch that is not what was loaded ahead.
    assert_same([next(iter(loader))], straight[3][:1])
    start_epoch(loader, 3, 0)
    assert_same(list(loader), straight[3])
    start_epoch(loader, 0, 0)
    assert_same(list(loader), straight[0])


def test_the_next_epoch_is_loaded_ahead():
    loader = continued(8, 4, workers=1)
    list(loader)
    assert (loader.epoch, loader.order.epoch) == (0, 1)


def test_loading_does_not_move_the_random_states():
    before = random_state()
    epochs_of(8, 2, epochs=1)
    assert torch.rand(3).tolist() == (set_random_state(before) or torch.rand(3)).tolist()
    assert random.random() == (set_random_state(before) or random.random())
    assert np.random.rand() == (set_random_state(before) or np.random.rand())


def erased(start=None, continued=False):
    batches = training_batches([(torch.zeros(3, 8, 8), 0)] * 12, 4, seed=3, continued=continued)
    loader = PrefetchLoader(batches, device=torch.device("cpu"), re_prob=1.0, re_mode="pixel")
    loader.random_erasing = SeededErasing(loader.random_erasing, batches.sampler)
    if start:
        start_epoch(loader, *start)
    return [[images.clone() for images, _ in loader] for _ in range(1 if start else 2)]


@pytest.mark.parametrize("continued", [False, True])
def test_erasing_has_numbers_of_its_own(continued):
    first, second = erased(continued=continued)
    for ours, theirs in zip((first, second), erased(), strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], second[0])
    (left,) = erased(start=(1, 2), continued=continued)
    assert len(left) == 1
    assert torch.equal(left[0], second[2])


@pytest.mark.parametrize(("count", "size"), [(10, 2), (9, 2), (10, 4), (3, 3), (7, 1)])
def test_every_evaluation_image_counts_once(as_process, count, size):
    seen, batches = [], set()
    for rank in range(size):
        as_process(rank, size)
        loader = evaluation_batches(Numbers(count), 2)
        indices = torch.cat([index for index, _ in loader]).tolist()
        batches.add(len(loader))
        own = own_images(loader)
        seen += indices if own is None else indices[:own]
    assert sorted(seen) == list(range(count))
    # All in step.
    assert len(batches) == 1


@pytest.mark.parametrize(("most", "seen"), [(4, [0, 2, 5, 7]), (10, [*range(10)]), (99, [*range(10)])])
def test_some_images_are_evenly_spaced(most, seen):
    assert torch.cat([index for index, _ in evaluation_batches(Numbers(10), 3, most)]).tolist() == seen


class Stream(IterableDataset):
    """Numbers from front to end, of which each of a loader's processes has a part."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __iter__(self):
        worker = get_worker_info()
        return iter(range(self.count)[worker.id :: worker.num_workers] if worker else range(self.count))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [1, 6, 7, 12])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_streamed_images_count_once(as_process, size, count, workers):
    seen, batches = [], set()
    for rank in range(size):
        as_process(rank, size)
        loader = evaluation_batches(Stream(count), 2, num_workers=workers, collate_fn=pairs)
        assert own_images(loader) is None
        shares = list(loader)
        assert all(len(images) for images, _ in shares)
        seen += [number for _, target in shares for number in target.tolist()]
        batches.add(len(shares))
    assert sorted(seen) == list(range(count))
    # All in step.
    assert len(batches) == 1


def pairs(numbers):
    return torch.tensor(numbers), torch.tensor(numbers)


def test_an_empty_stream(as_process):
    for rank in range(2):
        as_process(rank, 2)
        assert list(evaluation_batches(Stream(0), 2, collate_fn=pairs)) == []


def test_more_processes_than_evaluation_images(as_process):
    as_process(0, 3)
    with pytest.raises(InputError, match="2 images to evaluate on are fewer than the 3 processes: give fewer"):
        evaluation_batches(Numbers(2), 2)


class Right(Dataset):
    """Images that show their class, but for some."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return torch.eye(6)[(index + (index % 4 == 0)) % 6], index % 6


def test_metrics_are_those_of_one_process(as_process, monkeypatch):
    from contextlib import nullcontext

    def measured(rank, size):
        as_process(rank, size)
        sums = []
        monkeypatch.setattr(distributed, "total", lambda values: sums.append(values) or values)
        metrics = evaluate({"": torch.nn.Identity()}, evaluation_batches(Right(), 2), nullcontext())[""]
        return metrics, sums[0]

    alone, _ = measured(0, 1)
    total = [sum(parts) for parts in zip(*(measured(rank, 4)[1] for rank in range(4)), strict=True)]
    assert total[3] == 11
    assert total[0] / 11 == pytest.approx(alone.loss)
    assert total[1] / 11 == pytest.approx(alone.top1)
    assert alone.top1 == pytest.approx(100 * 8 / 11)
