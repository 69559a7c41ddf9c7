"""Every result has a picture, and the same result gives the same file."""

from benchmarks.parts import common
from benchmarks.report import figures


def test_every_result_is_drawn(results, tmp_path):
    paths = figures.draw(results, tmp_path / "first")
    assert [path.stem for path in paths] == list(figures.FIGURES)
    again = figures.draw(results, tmp_path / "second")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_results_that_are_not_there_are_left_out(tmp_path):
    assert figures.draw(tmp_path, tmp_path / "pictures") == []


def test_a_legend_names_each_contender_once(results):
    accuracy, loss = figures.FIGURES["cifar10"](common.read(results / "cifar10.json")).axes
    names = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (accuracy, loss)]
    assert names == [["KAT", "KAT, averaged", "ViT", "ViT, averaged"], ["KAT", "ViT"]]
    assert len(loss.get_lines()) == 4
