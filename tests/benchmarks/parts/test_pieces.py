"""Results that grow keep what belongs together, and lose nothing that was measured."""

import pytest

from benchmarks.parts import common, pieces


def _row(size, contender, us):
    return {"size": size, "contender": contender, "us": us}


def _measure(path, found, settings=None, apart=()):
    pieces.collect_in_pieces(path, "b", settings or {"rounds": 5}, found, ("size",), lambda rows: [], apart)


@pytest.fixture
def known_commit(monkeypatch):
    environment = {"commit": "abc", "date": "2026-01-01", "torch": "2.11", "gpu": "a GPU"}
    for module in (common, pieces):
        monkeypatch.setattr(module, "environment", lambda: dict(environment))
    return environment


def test_a_piece_replaces_all_rows_of_its_case_and_no_others(known_commit, tmp_path):
    path = tmp_path / "b.json"
    _measure(path, [[_row("tiny", "ours", 1), _row("tiny", "vit", 2)], [_row("small", "ours", 3)]])
    known_commit["date"] = "2026-01-02"
    _measure(path, [[_row("tiny", "ours", 4)], [_row("base", "vit", 5)]])
    assert [row["us"] for row in common.read(path)["rows"]] == [3, 4, 5]


def test_what_was_measured_stays_when_the_time_runs_out(known_commit, tmp_path):
    def interrupted():
        yield [_row("tiny", "ours", 1)]
        raise KeyboardInterrupt

    path = tmp_path / "b.json"
    with pytest.raises(KeyboardInterrupt):
        _measure(path, interrupted())
    assert [row["us"] for row in common.read(path)["rows"]] == [1]


def test_parts_that_run_at_once_add_up(known_commit, tmp_path):
    path = tmp_path / "results" / "b.json"

    def while_another_runs():
        _measure(path, [[_row("small", "ours", 1)]])
        yield [_row("tiny", "ours", 2)]
        yield [_row("base", "ours", 3)]
        _measure(path, [[_row("tiny", "ours", 4)], [_row("tiny", "vit", 5)]])

    _measure(path, while_another_runs())
    assert [row["us"] for row in common.read(path)["rows"]] == [1, 3, 5]


@pytest.mark.parametrize("key", ["commit", "torch", "gpu", "settings"])
def test_pieces_of_different_origin_do_not_join(known_commit, tmp_path, key):
    path = tmp_path / "b.json"
    _measure(path, [[_row("tiny", "ours", 1)]])
    before = path.read_text()
    known_commit[key] = "other"
    settings = {"rounds": 2} if key == "settings" else None
    with pytest.raises(SystemExit, match=f"differ from this run in .*{key}.*: move them or give --output"):
        _measure(path, [[_row("tiny", "ours", 2)]], settings)
    assert path.read_text() == before


def test_pieces_of_an_unknown_commit_do_not_join(known_commit, tmp_path):
    known_commit["commit"] = None
    _measure(tmp_path / "b.json", [[_row("tiny", "ours", 1)]])
    with pytest.raises(SystemExit, match="set FLASHKAT_COMMIT"):
        _measure(tmp_path / "b.json", [[_row("tiny", "ours", 2)]])


@pytest.mark.parametrize("commit", ["def", None])
def test_parts_may_differ_where_that_does_not_matter(known_commit, tmp_path, commit):
    path = tmp_path / "b.json"
    _measure(path, [[_row("tiny", "ours", 1)]])
    known_commit |= {"commit": commit}
    _measure(path, [[_row("small", "ours", 2)]], apart=["commit"])
    document = common.read(path)
    assert [row["us"] for row in document["rows"]] == [1, 2]
    assert document["environment"]["commit"] == commit
    known_commit["gpu"] = "another GPU"
    with pytest.raises(SystemExit, match="differ from this run in gpu"):
        _measure(path, [[_row("base", "ours", 3)]], apart=["commit"])
