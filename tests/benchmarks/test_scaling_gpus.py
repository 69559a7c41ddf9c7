"""The benchmark of several GPUs, with trainings that are faked."""

import pytest

from benchmarks import scaling_gpus
from benchmarks.parts.trainings import BATCHES

TARGETS = {"one GPU over a bare captured step": 1.0, "two GPUs over twice one": 0.95, "accumulated over not": 1.0}


@pytest.fixture
def calls():
    return []


@pytest.fixture
def pieces(calls):
    """The pieces of a run with two GPUs, on which each GPU reaches 95% of one alone, and KAT 110% of ViT."""

    def train(model, flags, gpus, batches):
        calls.append((model, gpus))
        rate = 1000.0 * gpus * (0.95 if gpus > 1 else 1) * (1.1 if model.startswith("kat") else 1)
        return {"images_per_second": rate, "peak_memory_gib": 2.5}

    def bare(gpus, what, model, steps=0):
        assert steps == (BATCHES["tiny"] if what == "step" else 0)  # as long as an epoch
        return 1100.0 if what == "step" else 0.25

    ways = ["default", "accumulated", "fsdp", "bare"]
    return list(scaling_gpus.collect(["tiny"], ways, ["ours", "vit"], [1, 2], 2, train, bare))


def test_contenders_take_turns(pieces, calls):
    assert calls[:4] == [(f"{family}_tiny_patch16_224", 1) for family in ("kat", "vit", "kat", "vit")]


def test_a_piece_for_each_way_and_number_of_gpus(pieces):
    found = [{(row["way"], row["gpus"]) for row in piece} for piece in pieces]
    # One process has nothing to shard.
    expected = [("default", 1), ("default", 2), ("accumulated", 1), ("accumulated", 2), ("fsdp", 2), ("bare", 1)]
    assert found == [{each} for each in expected]


def test_rows_are_held_against_one_gpu_and_a_vit(pieces):
    rows = [row for piece in pieces for row in piece]
    two = next(row for row in rows if row["gpus"] == 2)
    assert (two["over_vit"], two["all_reduce_ms"]) == (pytest.approx(1.1), 0.25)
    assert scaling_gpus.efficiency(rows, two) == pytest.approx(0.95)
    sharded = next(row for row in rows if row["way"] == "fsdp")
    assert scaling_gpus.efficiency(rows, sharded) is None


def test_targets(pieces):
    targets = {row["name"]: row for row in scaling_gpus.targets([row for piece in pieces for row in piece])}
    assert {name: targets[f"tiny: {name}"]["value"] for name in TARGETS} == pytest.approx(TARGETS)
    assert not targets["tiny: two GPUs over twice one"]["met"]
    assert targets["tiny: images/s over ViT's, two GPUs"]["met"]
    assert targets["base: accumulated over not"]["value"] is None


def test_without_a_gpu_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        scaling_gpus.main(["--output", str(tmp_path / "x.json")])
