"""One of the chains of ``python -m dev.kills``, which tries a hundred, and what it would notice."""

import shutil

import torch

from dev.kills import Kills, differences


def test_a_chain_of_kills_ends_with_the_same_bits(tmp_path):
    killed, found = Kills(tmp_path, epochs=3).chain(16)
    assert killed
    assert found == []


def test_a_run_that_was_timed_on_a_busier_machine_is_killed_all_the_same(tmp_path, monkeypatch):
    kills = Kills(tmp_path, epochs=1)
    straight, seconds = kills._undisturbed(1)
    monkeypatch.setattr(kills, "_undisturbed", lambda variant: (straight, 20 * seconds))
    killed, found = kills.chain(16)
    assert killed
    assert found == []


def test_other_bits_and_other_files_are_noticed(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    run = {"args": {"resume": ""}, "run": {"history": [{"epoch": 0, "seconds": 1.0}]}, "weight": torch.ones(2)}
    torch.save(run, one / "last.pth.tar")
    shutil.copytree(one, other)
    run["run"]["history"][0]["seconds"] = 2.0
    torch.save(run, other / "last.pth.tar")
    assert differences(one, other) == []
    torch.save({**run, "weight": torch.tensor([1.0, 1.0000001])}, other / "last.pth.tar")
    (other / "summary.csv.1.partial").touch()
    assert differences(one, other) == ["summary.csv.1.partial is in one only", "last.pth.tar differs"]
