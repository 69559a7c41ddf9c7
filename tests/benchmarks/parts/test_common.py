"""What the benchmarks share: fair turns, honest verdicts, a description of the machine, and JSON that reads back."""

import json

import pytest

from benchmarks.parts import common


def test_contenders_take_turns():
    calls: list[str] = []
    times = iter([5.0, 50.0, 3.0, 30.0, 4.0, 70.0])

    def measure(call):
        call()
        return next(times)

    found = common.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, measure, 3)
    assert calls == ["a", "b"] * 4  # the first turn is not measured
    assert found["a"] == {"median_us": 4.0, "min_us": 3.0, "max_us": 5.0}
    assert found["b"] == {"median_us": 50.0, "min_us": 30.0, "max_us": 70.0}


def test_slow_contenders_sit_out_the_last_rounds():
    calls = []

    def measure(call):
        call()
        return calls[-1]

    contenders = {"fast": lambda: calls.append(1.0), "slow": lambda: calls.append(4.0)}
    found = common.alternate(contenders, measure, 4, patience_us=7.0)
    assert calls == [1.0, 4.0] * 3 + [1.0] * 2
    assert found["slow"]["median_us"] == 4.0


def test_host_timer_counts_only_the_measured_calls(monkeypatch):
    clock = iter([0.0, 9.0] + [time for start in range(10) for time in (start, start + 2e-6)])
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    assert common.HostTimer(10)(lambda: None) == pytest.approx(2.0, rel=1e-3)


def test_step_timer_gives_the_mean_of_as_many_calls_as_fit(monkeypatch):
    now, calls = [0.0], []

    def call(seconds):
        now[0] += seconds
        calls.append(seconds)

    monkeypatch.setattr(common.time, "perf_counter", lambda: now[0])
    timer = common.StepTimer(budget_s=1.0, most=5)
    assert timer(lambda: call(0.25)) == pytest.approx(0.25e6)
    assert len(calls) == 1 + 4
    assert timer(lambda: call(0.1)) == pytest.approx(0.1e6)
    assert len(calls) == 5 + 1 + 5
    assert timer(lambda: call(8.0)) == pytest.approx(8e6)  # longer than the budget: measured once
    assert len(calls) == 11 + 1


def test_parts_of_a_benchmark_are_picked_by_flags(capsys):
    assert common.arguments("b", "", [], parts={"sizes": ("tiny", "base")}).sizes == ["tiny", "base"]
    assert common.arguments("b", "", ["--sizes", "base"], parts={"sizes": ("tiny", "base")}).sizes == ["base"]
    with pytest.raises(SystemExit):
        common.arguments("b", "", ["--sizes", "huge"], parts={"sizes": ("tiny", "base")})
    assert "invalid choice: 'huge'" in capsys.readouterr().err


@pytest.mark.gpu
def test_gpu_timer_times_the_device():
    import torch

    cycles = 1_000_000
    timer = common.GpuTimer()

    def least(cycles):
        """Others may use the device."""
        return min(timer(lambda: torch.cuda._sleep(cycles)) for _ in range(5))

    short, long = least(cycles), least(2 * cycles)
    assert short > 100
    assert long == pytest.approx(2 * short, rel=0.1)


def test_targets():
    assert common.target("t", 1.05, 1.05)["met"]
    assert not common.target("t", 1.0501, 1.05)["met"]
    assert common.target("t", 0.92, 0.92, at_least=True)["met"]
    assert not common.target("t", 0.9, 0.92, at_least=True)["met"]
    assert not common.requirement("t", False)["met"]


def test_environment_names_the_commit_or_admits_that_it_does_not_know(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("FLASHKAT_COMMIT", raising=False)
    found = common.environment()
    assert (found["commit"], found["uncommitted_changes"]) == (None, None)
    monkeypatch.setenv("FLASHKAT_COMMIT", "abc")
    assert common.environment()["commit"] == "abc"
    assert found["torch"]
    assert found["python"]


def test_a_commit_that_is_told_counts_for_more_than_git(monkeypatch):
    monkeypatch.setenv("FLASHKAT_COMMIT", "abc")
    assert common.environment()["commit"] == "abc"


def test_results_read_back(tmp_path, capsys):
    rows = [{"contender": "ours", "median_us": 1.5, "shape": (1, 2)}]
    path = tmp_path / "new" / "kernels.json"
    common.finish(path, "kernels", {"rounds": 5}, rows, [common.target("t", 2.0, 1.0)])
    document = common.read(path)
    assert document == json.loads(path.read_text())
    assert document["rows"] == [{"contender": "ours", "median_us": 1.5, "shape": [1, 2]}]
    assert not document["targets"][0]["met"]
    assert "0 of 1 targets met" in capsys.readouterr().out
    common.finish(
        path, "kernels", {}, rows, [common.target("t", 0.5, 1.0), common.requirement("what nobody measured", None)]
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 1 targets met, 1 not measured" in printed
    assert "what nobody measured" not in printed
    common.finish(path, "kernels", {}, rows, [common.target("t", None, 1.0)])
    assert "kernels: 0 of 0 targets met, 1 not measured" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["kernels", "rounding", "host_time", "scaling", "training", "inference"])
def test_without_a_gpu_one_line_says_so(name, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    import importlib

    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        module.main(["--output", str(tmp_path / "x.json")])
    assert not list(tmp_path.iterdir())


def test_a_result_has_the_name_of_its_module():
    assert common.arguments("ship.export", "text", []).output == common.RESULTS / "export.json"
    assert common.arguments("cpu", "text", ["--quick"]).output == common.QUICK_RESULTS / "cpu.json"
