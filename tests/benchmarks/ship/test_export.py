"""The benchmark of exported models runs on small ones with a fake clock."""

import pytest

from benchmarks.ship import export


def test_every_model_has_a_row_for_each_way(clock):
    sizes = {"img_size": 16, "depth": 1, "embed_dim": 8, "num_heads": 1, "num_classes": 3}
    rows = export.collect(clock, 1, sizes, ways=("eager", "onnx"))
    assert [(row["model"], row["way"]) for row in rows] == [
        (model, way) for model in ("KAT-T", "ViT-T") for way in ("eager", "onnx")
    ]
    assert {row["ms"] for row in rows} == {1.0}
    assert all((row["difference"] == 0) == (row["way"] == "eager") for row in rows)
    assert max(row["difference"] for row in rows) < 1e-4


@pytest.mark.parametrize(("ms", "met"), [(0.9, True), (1.1, False)])
def test_targets(ms, met):
    rows = [{"model": "KAT-T", "way": way, "ms": time} for way, time in (("eager", 1.0), ("aoti", ms), ("onnx", ms))]
    rows.append({"model": "ViT-T", "way": "eager", "ms": 9.0})
    assert [each["met"] for each in export.targets(rows)] == [met, met]
