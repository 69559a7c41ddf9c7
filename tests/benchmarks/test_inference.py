"""The benchmark of inference runs at toy sizes with a fake clock, and judges as it should."""

import pytest

pytest.importorskip("triton")

from benchmarks import inference
from benchmarks.parts import contenders

pytestmark = pytest.mark.usefixtures("no_code")


CONTENDERS = list(contenders.CONTENDERS)


def _row(speed, peak=1.0, way="compiled", contender="ours", **case):
    ratios = {"over_vit": speed, "peak_over_vit": peak}
    return {"size": "tiny", "way": way, "contender": contender, **ratios, **case}


def _verdicts(found):
    return [(target["value"], target["limit"], target["met"]) for target in found]


def _of(found, where):
    return _verdicts(target for target in found if target["name"].endswith(where))


def test_every_contender_of_inference_has_a_row(device, clock):
    plan = inference.Plan(("tiny",), ("graphs",), scale=contenders.TOY, rounds=1)
    rows = [row for piece in inference.collect(plan, device, clock) for row in piece]
    assert [row["contender"] for row in rows] == CONTENDERS * 2
    assert [row["images_per_s"] for row in rows if row["contender"] == "ours"] == [2000.0, 1000.0]


def test_targets_of_inference():
    rows = [_row(0.97, batch=batch) for batch in (256, 1)]
    assert _of(inference.targets(rows), "tiny, batch 256") == [(0.97, 0.98, False)]
    assert _of(inference.targets(rows), "small, batch 1") == [(None, 0.98, False)]
    found = inference.targets([_row(1.0, way="eager", batch=1), _row(None, batch=1)])
    assert {target["value"] for target in found} == {None}
