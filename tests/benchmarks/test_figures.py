"""Every result has a picture, and the same result gives the same file."""

from benchmarks import figures


def test_every_result_is_drawn(results, tmp_path):
    paths = figures.draw(results, tmp_path / "first")
    assert [path.stem for path in paths] == list(figures.FIGURES)
    again = figures.draw(results, tmp_path / "second")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_results_that_are_not_there_are_left_out(tmp_path):
    assert figures.draw(tmp_path, tmp_path / "pictures") == []
