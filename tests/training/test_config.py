"""The configuration of a run: derived settings, and the flags that it is written down as."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from flashkat.training.config import Config, Data, Mixing, Nonfinite, Output, Runtime, Schedule


@pytest.mark.parametrize(
    ("given", "is_on", "images"),
    [
        ({}, False, 8),
        ({"mixup_mode": "half"}, False, 8),
        ({"mixup": 0.5}, True, 8),
        ({"cutmix_minmax": (0.2, 0.8), "mixup_mode": "half"}, True, 4),
        ({"cutmix": 1.0, "mixup_mode": "half"}, True, 4),
    ],
)
def test_mixing(given, is_on, images):
    mixing = Mixing(**given)
    assert (mixing.is_on, mixing.images(8)) == (is_on, images)


@pytest.mark.parametrize(("steps", "finds", "limit"), [(0, False, 0), (0, True, 1), (5, False, 5), (5, True, 5)])
def test_finding_stops_at_the_first_bad_step_unless_told_otherwise(steps, finds, limit):
    assert Nonfinite(max_bad_steps=steps, find_nonfinite=finds).limit == limit


def test_flags_are_of_every_section_and_of_plain_types():
    config = Config(schedule=Schedule(epochs=3), output=Output(experiment="mine"), unused={"local_rank": 1})
    flags = config.flags()
    assert (flags["epochs"], flags["experiment"], flags["local_rank"], flags["opt"]) == (3, "mine", 1, "sgd")
    assert flags["decay_milestones"] == [90, 180, 270]
    assert {type(value) for value in flags.values()} <= {str, int, float, bool, list, dict, type(None)}


def test_names_of_flags_are_used_once():
    assert len(Config().flags()) == len(
        [name for section in vars(Config()).values() if not isinstance(section, dict) for name in vars(section)]
    )


def test_paths_and_numbers_of_numpy_are_written_as_plain_types():
    config = Config(
        data=Data(data_dir=Path("photos")),
        schedule=Schedule(lr=np.float64(1e-3), epochs=np.int64(3), decay_milestones=(np.int32(4),)),
        runtime=Runtime(device=torch.device("cpu")),
    )
    flags = yaml.safe_load(yaml.safe_dump(config.flags()))
    found = [flags[name] for name in ("data_dir", "lr", "epochs", "decay_milestones", "device")]
    assert found == ["photos", 1e-3, 3, [4], "cpu"]
