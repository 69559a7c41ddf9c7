"""The benchmark of training runs at toy sizes with a fake clock, and judges as it should."""

import pytest

pytest.importorskip("triton")

from benchmarks import training
from benchmarks.parts import contenders

pytestmark = pytest.mark.usefixtures("no_code")


CONTENDERS = list(contenders.CONTENDERS)


def _training(**picked):
    return training.Plan(("tiny",), scale=contenders.TOY, rounds=1, **picked)


def _row(speed, peak=1.0, way="compiled", contender="ours", **case):
    ratios = {"over_vit": speed, "peak_over_vit": peak}
    return {"size": "tiny", "way": way, "contender": contender, **ratios, **case}


def _verdicts(found):
    return [(target["value"], target["limit"], target["met"]) for target in found]


def _of(found, where):
    return _verdicts(target for target in found if target["name"].endswith(where))


@pytest.mark.parametrize("ways", [("eager",), pytest.param(("eager", "compiled"), marks=pytest.mark.slow)], ids=str)
def test_every_contender_of_a_training_case_has_a_row(device, clock, ways):
    plan = _training(ways=ways, cases=("bf16",))
    rows = [row for piece in training.collect(plan, device, clock) for row in piece]
    assert [(row["way"], row["contender"]) for row in rows] == [(way, name) for way in plan.ways for name in CONTENDERS]
    assert {(row["images_per_s"], row["over_vit"]) for row in rows} == {(2000.0, 1.0)}
    speed = [target for target in training.targets(rows) if "images/s" in target["name"] and target["value"]]
    limits = {"eager": 0.9, "compiled": 1.0}
    assert sorted((target["value"], target["limit"]) for target in speed) == sorted((1.0, limits[way]) for way in ways)


def test_every_case_of_training_runs(device, clock):
    plan = _training(ways=("eager",), contenders=("ours",))
    pieces = list(training.collect(plan, device, clock))
    assert [row["case"] for (row,) in pieces] == list(training.CASES)
    assert [row["over_vit"] for (row,) in pieces] == [None] * len(pieces)


def test_sizes_that_a_case_does_not_have_are_left_out(device, clock):
    plan = training.Plan(("base",), cases=("bf16-1024",))
    assert list(training.collect(plan, device, clock)) == []


def test_targets_of_training():
    found = training.targets([_row(0.99, 1.05, case="bf16"), _row(0.91, 1.01, way="eager", case="bf16")])
    assert len(found) == 2 * 3 * 3
    assert _of(found, "tiny, compiled") == [(0.99, 1.0, False), (1.05, 1.02, False)]
    assert _of(found, "tiny, eager") == [(0.91, 0.9, True), (1.01, 1.02, True)]
    assert _of(found, "base, graphs") == [(None, 1.0, False), (None, 1.02, False)]
    found = training.targets([_row(1.5, None, case="bf16")])
    assert _of(found, "tiny, compiled") == [(1.5, 1.0, True), (None, 1.02, False)]


def test_only_ours_next_to_a_vit_in_the_usual_case_is_judged():
    rows = [_row(None, None, case="bf16"), _row(1.0, case="fp16"), _row(1.0, contender="kat", case="bf16")]
    assert {target["value"] for target in training.targets(rows)} == {None}
