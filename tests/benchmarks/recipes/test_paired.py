"""Differences by seed, their intervals, and what was tuned."""

import math

import pytest

from benchmarks.recipes import paired


def row(name, seed, top1, split="test", epochs=300, from_epochs=0):
    keys = {"contender": name, "seed": seed, "split": split, "epochs": epochs, "from_epochs": from_epochs}
    return {**keys, "top1": top1, "ema_top1": top1 + 1}


def test_the_interval_is_students():
    seen = paired.difference({1: 91.0, 2: 92.0, 3: 93.0, 9: 0.0}, {3: 90.0, 1: 90.0, 2: 90.0})
    assert (seen.seeds, seen.mean, seen.better, seen.equal) == (3, 2.0, 3, 0)
    assert seen.error == pytest.approx(1 / math.sqrt(3))
    assert seen.high == pytest.approx(2 + 4.3027 / math.sqrt(3), rel=1e-4)  # t with 2 degrees of freedom
    assert seen.low == pytest.approx(2 - 4.3027 / math.sqrt(3), rel=1e-4)


def test_ties_count_as_such():
    seen = paired.difference({1: 90.1, 2: 90.0, 3: 89.0}, {1: 90.1, 2: 89.0, 3: 90.0})
    assert (seen.better, seen.equal, seen.seeds) == (1, 1, 3)


def test_one_pair_tells_nothing_of_the_error():
    seen = paired.difference({1: 91.0}, {1: 90.0})
    assert (seen.mean, seen.low, seen.high) == (1.0, -math.inf, math.inf)
    assert paired.difference({1: 91.0}, {2: 90.0}) is None


def test_only_what_agrees_is_compared():
    rows = [row("kat", 1, 90), row("kat", 1, 80, "validation"), row("kat", 1, 70, epochs=5, from_epochs=7)]
    assert list(paired.groups(rows)) == [("test", 5, 7), ("test", 300, 0), ("validation", 300, 0)]
    assert paired.scores(rows[:1], "ema_top1") == {"kat": {1: 91}}


def test_the_best_rates_are_chosen_for_each_recipe():
    rows = [row("kat", 1, 90), row("kat,lr=2e-3", 1, 91), row("kat,lr=2e-3,wd=0.2", 1, 89), row("kat,opt=muon", 1, 92)]
    assert paired.tuned(rows) == {"kat": ("kat,lr=2e-3", 3), "kat,opt=muon": ("kat,opt=muon", 1)}


@pytest.mark.parametrize(
    ("points", "seeds", "met"),
    [
        ([1.1] * 8, range(8), [True, True]),
        ([0.9] * 8, range(8), [False, True]),
        ([-20.0] + [4.5] * 7, range(8), [True, False]),
        ([1.1] * 7, range(7), [False, False]),  # too few seeds
    ],
)
def test_the_goal(points, seeds, met):
    rows = [row("vit,wd=0.2", seed, 88.0) for seed in range(8)]
    rows += [row("kat,opt=muon", seed, 88 + more) for seed, more in zip(seeds, points, strict=True)]
    rows += [row("kat", 0, 99.0), row("kat", 1, 99.0, "validation")]
    assert [found["met"] for found in paired.targets(rows)] == met
