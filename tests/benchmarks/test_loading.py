"""The benchmark of loading runs at toy sizes, and counts as it should."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import loading


def test_loading_counts_images_within_its_windows(monkeypatch):
    now = [0.0]

    def batches():
        while True:
            now[0] += 0.25
            yield None

    monkeypatch.setattr(loading.time, "perf_counter", lambda: now[0])
    plan = loading.Plan((2,), batch=8, windows=3, window_s=1.0)
    assert loading._rates(batches(), plan, workers=2) == [32.0] * 3


def test_loading_runs(tmp_path, clock):
    folder = loading.Folder(20, 40, 30, ".jpg", 16, 4)
    loading.write_images(tmp_path, folder)
    assert len(list(tmp_path.glob("train/*/*.jpg"))) == 20
    plan = loading.Plan((1,), batch=4, windows=1, window_s=0.0)
    ((row,),) = loading.collect(plan, {"toys": folder}, ["timm"], torch.device("cpu"), clock)
    assert (row["images"], row["pixels"], row["workers"]) == ("toys", 16, 1)
    assert row["images_per_s"] > 0
    assert row["over_step"] is None


@pytest.mark.gpu
def test_loading_is_held_against_a_training_step(tmp_path, clock):
    folder = loading.Folder(20, 40, 30, ".jpg", 32, 16)
    plan = loading.Plan((1,), batch=2, windows=1, window_s=0.0)
    ((row,),) = loading.collect(plan, {"toys": folder}, ["timm"], torch.device("cuda"), clock)
    assert row["step_images_per_s"] == 2000.0
