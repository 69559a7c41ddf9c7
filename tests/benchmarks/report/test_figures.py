"""Every result has a picture, and the same result gives the same file."""

import pytest
import torch

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
