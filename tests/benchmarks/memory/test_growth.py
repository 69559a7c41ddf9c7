"""The benchmark of a long training, with a training that is faked."""

import pytest

from benchmarks.memory import growth
from benchmarks.parts.trainings import Sample


def faked(leak_mib, slower):
    """A training whose process and GPU grow by so many MiB an epoch, and whose speed falls."""

    def train(epochs):
        rows = [
            {"epoch": number, "images_per_second": 1000.0 - slower * number, "peak_memory_gib": 2.0}
            for number in range(epochs)
        ]
        samples = [Sample(number, 4000.0 + leak_mib * number, 900.0 + leak_mib * number) for number in range(epochs)]
        return rows, samples

    return train


def test_a_flat_training_meets_all_targets():
    rows = growth.collect(2000, faked(0.0, 0.0))
    assert [row["steps"] for row in rows] == [2000] * 4
    assert all(row["slope per 1000 steps"] == 0 for row in rows)
    assert all(row["met"] for row in growth.targets(rows))


def test_growth_and_loss_of_speed_are_found():
    rows = growth.collect(4000, faked(5.0, 2.0))
    found = {row["name"]: (row["value"], row["met"]) for row in growth.targets(rows)}
    assert found["peak memory of tensors, MiB: growth per 1000 steps"] == (0, True)
    # 5 MiB for each of 10 epochs.
    assert found["memory of the process, MiB: growth per 1000 steps"] == (50, False)
    assert found["share of images/s lost per 1000 steps"] == (pytest.approx(0.0204, abs=1e-3), False)


def test_memory_that_compilation_takes_does_not_count():
    def train(epochs):
        rows, samples = faked(0.0, 0.0)(epochs)
        return rows, [Sample(0, 10.0 * number, 10.0 * number) for number in range(90)] + samples

    rows = growth.collect(2000, train)
    assert all(row["slope per 1000 steps"] == 0 for row in rows)


def test_memory_that_was_not_sampled_misses_its_target():
    rows = growth.collect(1000, lambda epochs: (faked(0.0, 0.0)(epochs)[0], []))
    missed = [row["name"] for row in growth.targets(rows) if row["value"] is None]
    assert missed == [f"memory of the {what}, MiB: growth per 1000 steps" for what in ("GPU", "process")]


def test_the_slope_of_a_line():
    assert growth.slope([(0, 1.0), (1, 3.0), (2, 5.0)]) == pytest.approx(2)


def test_without_a_gpu_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        growth.main(["--output", str(tmp_path / "x.json")])
