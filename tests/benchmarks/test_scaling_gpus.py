"""The benchmark of several GPUs, with trainings that are faked."""

import pytest

from benchmarks import scaling_gpus


def test_rows_are_held_against_one_gpu_and_a_vit():
    calls = []

    def train(model, flags, gpus, batches):
        calls.append((model, gpus))
        rate = 1000.0 * gpus * (0.95 if gpus > 1 else 1) * (1.1 if model.startswith("kat") else 1)
        return {"images_per_second": rate, "peak_memory_gib": 2.5}

    found = scaling_gpus.collect(["tiny"], ["default", "fsdp"], ["ours", "vit"], [1, 2], 2, train)
    rows = scaling_gpus.compare(list(found), batch=110)
    assert calls[:4] == [(f"{family}_tiny_patch16_224", 1) for family in ("kat", "vit", "kat", "vit")]
    # One process has nothing to shard.
    assert [(row["way"], row["gpus"]) for row in rows[::2]] == [("default", 1), ("default", 2), ("fsdp", 2)]
    two = rows[2]
    assert (two["over_vit"], two["efficiency"]) == (pytest.approx(1.1), pytest.approx(0.95))
    assert two["added_ms"] == pytest.approx(1e3 * 110 * (2 / 2090 - 1 / 1100), abs=1e-3)
    assert rows[4]["efficiency"] is None
    targets = {row["name"]: row for row in scaling_gpus.targets(rows, {"tiny": 1200.0})}
    assert targets["tiny: one GPU over a bare captured step"]["value"] == pytest.approx(1100 / 1200, abs=1e-3)
    assert not targets["tiny: two GPUs over twice one"]["met"]
    assert targets["tiny: images/s over ViT's, two GPUs"]["met"]
    assert targets["base: accumulated over not"]["value"] is None


def test_without_a_gpu_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        scaling_gpus.main(["--output", str(tmp_path / "x.json")])
