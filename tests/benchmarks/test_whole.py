"""Each command, from the call to the page's text and the picture, at toy sizes, on the CPU, with a fake clock."""

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
    plan = kernels.Plan((1, 2), (16, 192), ("bf16",), (), (), (16,), 32, 24, (1, 8, 2, 2), 64, 1)
    replacements = {
        kernels: lambda _, __, measure, collect=kernels.collect: collect(plan, device, measure),
        rounding: lambda _, __, collect=rounding.collect: collect(rounding.Plan((2, 4), 3, 16, 1), device),
        host_time: lambda _, measure, __, collect=host_time.collect: collect(device, _one_microsecond, 1),
        scaling: lambda _, __, measure, rounds, collect=scaling.collect: collect((10, 12), device, measure, rounds),
    }
    for module, collect in replacements.items():
        monkeypatch.setattr(module, "collect", collect)


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
