"""The benchmark of memory at toy sizes with a fake clock, and what it takes for the largest batch."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.memory import recompute
from benchmarks.parts import contenders

pytestmark = pytest.mark.usefixtures("no_code")


def test_every_contender_has_a_row(device, clock):
    plan = recompute.Plan(("base",), ("eager", "batch"), contenders.TOY, rounds=1)
    step, batch = recompute.collect(plan, device, clock)
    names = ["ours", contenders.SAVED, "vit"]
    assert [row["contender"] for row in step] == [row["contender"] for row in batch] == names
    assert {row["over_saved"] for row in step} == {1.0}
    assert {(row["batch"], row["batch_over_vit"]) for row in batch} == {(2, 1.0)}


def test_largest_batches_are_of_the_base_size_alone(device, clock):
    assert list(recompute.collect(recompute.Plan(("tiny",), ("batch",), contenders.TOY), device, clock)) == []


@pytest.mark.parametrize(("fitting", "expected"), [(0, 0), (47, 32), (48, 48), (999, 320), (5000, 320)])
def test_the_largest_batch_is_found(fitting, expected):
    tried = []

    def make(batch):
        tried.append(batch)

        def step():
            if batch > fitting:
                raise torch.cuda.OutOfMemoryError

        return step

    assert recompute.largest_batch(make, 320) == expected
    assert len(tried) <= 5


def test_targets():
    row = {"size": "base", "contender": "ours"}
    rows = [{**row, "way": "graphs", "peak_over_vit": 0.79, "over_saved": 0.98}]
    rows += [{**row, "way": "batch", "batch_over_vit": 1.21}]
    rows += [{**row, "contender": "vit", "way": "eager", "peak_over_vit": 1.0, "over_saved": 0.9}]
    found = {each["name"]: (each["value"], each["met"]) for each in recompute.targets(rows)}
    assert len(found) == 2 * 2 * 3 + 1
    measured = {name: rest for name, rest in found.items() if rest[0] is not None}
    assert measured == {
        "peak memory over ViT's, base, graphs": (0.79, True),
        "images/s over saved values', base, graphs": (0.98, False),
        "largest batch in 80 GiB over ViT's, base": (1.21, True),
    }
