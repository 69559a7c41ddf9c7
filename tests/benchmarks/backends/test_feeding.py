"""The benchmark of trainings on files, with trainings that are faked."""

import os

import pytest
from configs import config_of

from benchmarks.backends import feeding
from benchmarks.loading import Folder


@pytest.fixture
def pieces(monkeypatch):
    """The pieces of a run in which files give 90% of the speed on fake data, and timm's loader 20%."""
    monkeypatch.setattr(feeding, "FOLDERS", {name: Folder(20, 24, 20, ".png", 16, 4) for name in feeding.KINDS})
    calls = []

    def train(flags, gpus):
        config = config_of(*flags)
        backend = "fake" if config.data.fake_data else config.data.data_backend
        calls.append((backend, config, len(os.sched_getaffinity(0))))
        speed = {"fake": 1000.0, "timm": 200.0}.get(backend, 900.0)
        return {"images_per_second": speed, "data_wait": 0.1, "gpu_gib": 10.0 if backend == "fake" else 11.5}

    cases = [feeding.Case("photographs", "small", 1, 1, "ours"), feeding.Case("CIFAR-10-like", "tiny", 1, 1, "vit")]
    found = list(feeding.collect(cases, ["dali", "timm", "memory"], 2, 5, train))
    return found, calls


def test_backends_take_turns_with_fake_data(pieces):
    found, calls = pieces
    assert [backend for backend, *_ in calls[:6]] == ["fake", "dali", "timm"] * 2
    assert [[row["backend"] for row in piece] for piece in found] == [
        ["fake", "dali", "timm"],
        ["fake", "memory", "timm"],
    ]


def test_all_see_equally_many_images_with_the_recipe(pieces):
    _, calls = pieces
    for backend, config, cores in calls:
        assert (config.augmentation.aa, config.augmentation.reprob) == ("rand-m9-mstd0.5-inc1", 0.25)
        assert (config.data.batch_size, cores) == (128, 1)
        if backend == "fake":
            assert config.data.train_num_samples == 5 * 128
        else:
            assert config.data.epoch_repeats * 20 == 5 * 128
    assert {config.model.model for _, config, _ in calls} == {"kat_small_patch16_224", "vit_tiny_patch16_224"}


def test_rows_are_held_against_fake_data(pieces):
    (fake, dali, timm), _ = pieces[0]
    assert (fake["over_fake"], dali["over_fake"], timm["over_fake"]) == (None, 0.9, 0.2)
    assert dali["loader_gib"] == 1.5


def test_cores_are_given_back(pieces):
    assert os.sched_getaffinity(0) == os.sched_getaffinity(os.getppid())


def test_targets():
    row = {"gpus": 1, "contender": "ours", "loader_gib": 1.5}
    rows = [
        {**row, "images": "photographs", "size": "tiny", "cores": 16, "backend": "dali", "over_fake": 0.86},
        {**row, "images": "photographs", "size": "tiny", "cores": 16, "backend": "timm", "over_fake": 0.2},
        {**row, "images": "photographs", "size": "base", "cores": 8, "backend": "dali", "over_fake": 0.9},
        {**row, "images": "CIFAR-10-like", "size": "tiny", "cores": 24, "backend": "memory", "over_fake": 0.7},
    ]
    found = {each["name"]: (each["value"], each["met"]) for each in feeding.targets(rows)}
    assert {name: rest for name, rest in found.items() if rest[0] is not None} == {
        "photographs, tiny, 16 cores: images/s over fake data's": (0.86, True),
        "photographs, base, 8 cores: images/s over fake data's": (0.9, False),
        "CIFAR-10-like, tiny, 16 cores: images/s over fake data's": (0.7, False),
        "GPU memory of the loader, GiB": (1.5, True),
    }
    assert len(found) == 7


def test_without_a_gpu_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        feeding.main(["--output", str(tmp_path / "x.json")])
