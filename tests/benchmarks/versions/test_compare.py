"""The comparison of two versions, with a clock that is faked, and one real process."""

from pathlib import Path

import pytest

from benchmarks.parts.common import ROOT
from benchmarks.versions import compare

OLD, NEW = Path("old"), Path("new")


def test_versions_take_turns_and_the_first_alternates():
    asked = []

    def time(folder):
        asked.append(folder)
        return {"kernel": 100.0 if folder == OLD else 101.0 + len(asked)}

    (row,) = compare.collect(OLD, NEW, 2, time)
    assert asked == [OLD, NEW, NEW, OLD]
    assert (row["case"], row["old_us"], row["new_us"], row["over_old"]) == ("kernel", 100.0, 103.5, 1.035)
    assert row["old_spread"] == 1.0
    assert [(each["value"], each["met"]) for each in compare.targets([row])] == [(1.035, False)]


def test_the_version_in_the_folder_is_timed():
    assert compare.timed(ROOT, []) == {}


def test_another_version_is_not_timed_instead(tmp_path):
    with pytest.raises(SystemExit, match=r"flashkat was imported from .*, not from"):
        compare.timed(tmp_path, [])


def test_a_folder_without_source_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="has no src/flashkat"):
        compare.main([str(tmp_path), "--output", str(tmp_path / "x.json")])
