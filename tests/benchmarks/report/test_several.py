"""The pages with several results, from made-up ones."""

import pytest

from benchmarks.parts import common
from benchmarks.report import several, tables


@pytest.fixture
def measured(results):
    """Results of one benchmark in each folder."""
    row = {"size": "base", "way": "eager", "contender": "ours", "peak_gib": 7.28123, "over_vit": 1.034, "spread": None}
    environment = common.read(results / "kernels.json")["environment"]
    documents = {
        "recompute": (
            [row, {"size": "base", "way": "batch", "contender": "vit", "batch": 1216}],
            [common.target("peak", 0.778, 0.8)],
        ),
        "feeding": (
            [{"images": "photographs", "images_per_s": 12345.67}],
            [common.target("share", 0.8, 0.85, at_least=True)],
        ),
    }
    for name, (rows, targets) in documents.items():
        document = {"environment": environment, "settings": {}, "rows": rows, "targets": targets}
        common.write(results / f"{name}.json", {"benchmark": name, **document})
    return results


def test_what_was_not_measured_says_so(results):
    text = several.answered("memory", results)
    assert text.count("Not measured yet.") == len(several.SUBJECTS["memory"])


def test_a_result_is_a_table_of_its_entries(measured):
    text = several.answered("memory", measured)
    assert "## Values that are computed again" in text
    assert "| size | way | contender | peak GiB | images/s over ViT's | batch |" in text
    assert "| base | eager | ours | 7.2812 | 1.034 |  |" in text
    assert "| base | batch | ViT |  |  | 1216 |" in text
    assert "1 of 1 targets were met." in text
    assert text.count("Not measured yet.") == 1


def test_missed_targets_are_listed(measured):
    assert "| share | 0.8 | at least 0.85 |" in several.answered("backends", measured)


def test_the_overview_has_a_line_for_each_result(measured):
    text = tables.overview(measured)
    assert "| [memory, recompute](memory/index.md) | How much memory does training save" in text
    assert "| [backends, feeding](backends/index.md) | How much of its speed does a training keep" in text
    assert "growth" not in text
