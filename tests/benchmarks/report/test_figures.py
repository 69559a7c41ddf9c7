"""Every result has a picture, and the same result gives the same file."""

import itertools

import matplotlib
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

pytest.importorskip("triton")

from benchmarks import host_time, kernels, rounding, scaling
from benchmarks.parts import common
from benchmarks.report import figures, tables


def _one_microsecond(call):
    call()
    return 1.0


@pytest.fixture
def small(monkeypatch, device):
    """Commands that take the CPU for a GPU."""
    for module in (kernels, rounding, host_time, scaling):
        monkeypatch.setattr(module, "require_gpu", lambda: None)
        monkeypatch.setattr(module, "GpuTimer", lambda: _one_microsecond, raising=False)
    monkeypatch.setattr(kernels, "graph_is_right", lambda: True)
    monkeypatch.setattr(host_time, "_CHAIN", 2)
    plan = kernels.Plan((1, 2), (16, 192), ("bf16",), (), (), (16,), 32, 24, (1, 8, 2, 2), 64, 1)
    replacements = {
        kernels: lambda _, __, measure, collect=kernels.collect: collect(plan, device, measure),
        rounding: lambda _, __, collect=rounding.collect: collect(rounding.Plan((2, 4), 3, 16, 1), device),
        host_time: lambda _, measure, __, collect=host_time.collect: collect(device, _one_microsecond, 1),
        scaling: lambda _, __, measure, rounds, collect=scaling.collect: collect((10, 12), device, measure, rounds),
    }
    for module, collect in replacements.items():
        monkeypatch.setattr(module, "collect", collect)


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


@pytest.mark.usefixtures("small")
def test_commands_write_what_tables_and_figures_read(tmp_path):
    for module in (kernels, rounding, host_time, scaling):
        name = module.__name__.rpartition(".")[2]
        module.main(["--output", str(tmp_path / f"{name}.json")])
        document = common.read(tmp_path / f"{name}.json")
        assert document["benchmark"] == name
        assert document["environment"]["torch"] == torch.__version__.partition("+")[0]
        assert document["rows"]
        assert document["targets"]
    assert "| forward | bf16 | 192 | 1.0 | 1.0 | 1.0 | 1.00 |" in tables.render("kernels", tmp_path)
    assert "The results are right at every size" in tables.render("scaling", tmp_path)
    assert len(figures.draw(tmp_path, tmp_path / "pictures")) == 4


@pytest.fixture(params=[name for name in figures.FIGURES if (common.RESULTS / f"{name}.json").exists()])
def drawn(request):
    """A committed result's figure, laid out."""
    with matplotlib.rc_context(figures._STYLE):
        figure = figures.FIGURES[request.param](common.read(common.RESULTS / f"{request.param}.json"))
        FigureCanvasAgg(figure).draw()
    return figure


def x_ticks(axes):
    """The labels of ticks that are seen. matplotlib also has some beyond the limits."""
    low, high = axes.get_xlim()
    places = axes.get_xticks()
    return [text for text, at in zip(axes.get_xticklabels(), places, strict=True) if low <= at <= high]


def test_texts_lie_within_their_figure(drawn):
    page = drawn.bbox.padded(1)
    for axes in drawn.axes:
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *x_ticks(axes), *axes.get_yticklabels()):
            box = text.get_window_extent()
            assert not text.get_text() or (page.x0 <= box.x0 and box.x1 <= page.x1), text


def test_ticks_do_not_overlap(drawn):
    for axes in drawn.axes:
        boxes = [text.get_window_extent() for text in x_ticks(axes)]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_legends_name_every_line(drawn):
    shown = {line.get_label() for axes in drawn.axes for line in axes.get_lines()}
    legends = [axes.get_legend() for axes in drawn.axes]
    named = {text.get_text() for legend in legends if legend for text in legend.get_texts()}
    assert {name for name in shown if not name.startswith("_")} <= named
