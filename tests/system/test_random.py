"""Random states are seen, set, and kept apart."""

import random

import numpy as np
import pytest
import torch

from flashkat.system.random import draw_from, isolated, random_state, seed_of, set_random_state


def test_random_states_come_back(tmp_path):
    np.random.randn()  # which draws two numbers and keeps one
    random.gauss(0, 1)
    torch.save(random_state(), tmp_path / "state")
    drawn = [(torch.rand(()), np.random.randn(), random.gauss(0, 1), random.random()) for _ in range(3)]
    with isolated(7):
        torch.rand(5)
    set_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert drawn == [(torch.rand(()), np.random.randn(), random.gauss(0, 1), random.random()) for _ in range(3)]


def test_isolated_numbers_follow_from_the_seed_and_move_nothing():
    before = random_state()
    drawn = []
    for _ in range(2):
        with isolated(3):
            drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
    after = (random.random(), np.random.rand(), float(torch.rand(())))
    set_random_state(before)
    assert after == (random.random(), np.random.rand(), float(torch.rand(())))


def test_seeds_follow_from_their_numbers():
    seeds = [seed_of(*numbers) for numbers in ((1,), (0, 1), (2, 1), (1, 2))]
    assert seeds == [seed_of(*numbers) for numbers in ((1,), (0, 1), (2, 1), (1, 2))]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_gpus_draw_on_while_the_cpu_has_a_seed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("set the GPUs too"))
    draw_from(5)
    first = torch.rand(2)
    draw_from(5)
    assert torch.equal(torch.rand(2), first)
