"""The README's numbers are those of the committed results."""

import json

import pytest

from benchmarks import common, tables


def test_readme_shows_the_committed_results():
    readme = (common.ROOT / "README.md").read_text()
    assert tables.replace(readme, tables.render(common.RESULTS)) == readme, "run: make benchmark-figures"


def test_kernels(results):
    text = tables.render(results)
    assert "| pass | dtype | D | ours | GELU | KAT's kernel | ours / GELU | of copy bandwidth |" in text
    assert "| backward | bf16 | 768 | 76.8 | 153.6 | 230.4 | 0.50 | 88% |" in text
    assert "1 of 2 targets met; those missed" in text
    assert "- backward: 1.234, wanted at most 1.08" in text
    assert "*a GPU, torch 2.11, triton 3.6, 2026-01-02, commit 0123456.*" in text


def test_the_other_results(results):
    text = tables.render(results)
    assert "| KAT's kernel | 1.3e-02 | 2.6e-02 | no |" in text
    assert "| ours | 6.0e-05 | 1.2e-04 | yes |" in text
    assert "| ours | 45.7 | 45.7 | 45.7 | 45.7 |" in text
    assert "At 2^30 elements: 2.90 TB/s forward, 2.90 TB/s backward; the results are right at every size." in text
    assert "| KAT | 5,363,674 | 2 | 91.25% | 91.75% | 12,346 | 12345.6 |  | 1.23 GiB |" in text
    assert "| ViT | 5,363,674 | 2 | 90.50% | 91.00% |  |  |  | 1.23 GiB |" in text


def test_wrong_sizes_are_named(results):
    path = results / "scaling.json"
    document = json.loads(path.read_text())
    document["rows"][0]["right"] = False
    path.write_text(json.dumps(document))
    assert "wrong at 2^16 elements" in tables.render(results)


def test_without_results(tmp_path):
    assert tables.render(tmp_path) == "No results yet."


def test_only_the_part_between_the_markers_changes():
    readme = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    assert tables.replace(readme, "new") == f"before\n{tables.BEGIN}\nnew\n{tables.END}\nafter\n"
    with pytest.raises(SystemExit, match="has to have the lines"):
        tables.replace("no markers", "new")
