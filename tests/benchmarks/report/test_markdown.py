"""Tables in Markdown, and the line under them."""

from benchmarks.parts.common import requirement, target
from benchmarks.report.markdown import machine, markdown, provenance, verdict

HERE = {"torch": "2.11", "triton": None, "date": "2026-01-02", "commit": "0123456789", "cpu": "a CPU", "cpu_threads": 2}


def test_a_table():
    assert markdown(["a", "b"], [["1", "2"], ["3", ""]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 |  |"


def test_the_gpu_comes_before_the_cpu():
    assert machine(HERE) == "a CPU, 2 threads"
    assert machine({**HERE, "gpu": "a GPU"}) == "a GPU"


def test_the_line_names_what_is_known():
    clean = {**HERE, "uncommitted_changes": False}
    assert provenance(clean) == "*a CPU, 2 threads, torch 2.11, 2026-01-02, commit 0123456.*"
    assert provenance({**clean, "uncommitted_changes": True}).endswith("0123456 with uncommitted changes.*")
    assert provenance({**clean, "commit": None}).endswith("2026-01-02.*")


def test_missed_targets_are_listed():
    met, missed = target("speed", 1.2, 1.0, at_least=True), requirement("right", None)
    assert verdict({"targets": []}) == ""
    assert verdict({"targets": [met]}) == "1 of 1 targets were met."
    assert "| right | not measured | is True |" in verdict({"targets": [met, missed]})
