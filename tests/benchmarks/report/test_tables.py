"""The numbers on the benchmarks' pages and in the README are those of the committed results."""

import json

import pytest

from benchmarks.parts import common
from benchmarks.report import tables


@pytest.mark.parametrize("path", tables.pages(common.RESULTS), ids=lambda path: path.name)
def test_pages_show_the_committed_results(path):
    page, text = path.read_text(), tables.pages(common.RESULTS)[path]
    assert tables.replace(page, text) == page, "run: make benchmark-figures"


def test_the_overview_counts_targets(results):
    text = tables.overview(results)
    assert "| [kernels](kernels.md) | How long do the kernels take" in text
    assert "| 1 of 2 | a GPU | 2026-01-02 |" in text
    assert "| no targets | a GPU | 2026-01-02 |" in text


def _all(results):
    return "\n\n".join(tables.render(name, results) for name in tables.SECTIONS)


def test_kernels(results):
    text = _all(results)
    assert "| pass | dtype | D | ours | GELU | KAT's kernel | ours / GELU | of copy bandwidth |" in text
    assert "| backward | bf16 | 768 | 76.8 | 153.6 | 230.4 | 0.50 | 88% |" in text
    assert "1 of 2 targets were met. The others:" in text
    assert "| backward | 1.234 | at most 1.08 |" in text
    assert "| bf16 | forward | 1.10 | 2.50 |\n| bf16 | backward | 1.10 | 5.00 |" in text
    assert "*a GPU, torch 2.11, triton 3.6, 2026-01-02, commit 0123456.*" in text


def test_the_other_results(results):
    text = _all(results)
    assert "| KAT's kernel | 1.3e-02 (1.7e-04) | 2.6e-02 (6.8e-04) | no |" in text
    assert "| ours | 6.0e-05 (3.6e-09) | 1.2e-04 (1.4e-08) | yes |" in text
    assert "| ours | 45.7 | 45.7 | 45.7 | 45.7 |" in text
    assert (
        "Bandwidth at 2^30 elements: 2.90 TB/s forward, 2.90 TB/s backward. The results are right at every size."
        in text
    )
    assert "| fp32 (8, 197, 768) | 1.23 | 1.23 | 1.23 | 1.23 | 1.23 | 1.23 | 0.84 | 1.26 |" in text
    assert (
        "| KAT, timm start, formula, fp32 | KAT, timm start, eager, fp32 | step 3 | 0.034 | 0.012 | 1.250 and 1.260 |"
        in text
    )
    assert "| KAT | `--model kat` | 5,363,674 | 2 | 91.50% (91.25, 91.75) | 92.00% (91.75, 92.25) | 12,346 | " in text
    assert "mean over seeds 1 and 2 (and of each)" in text
    assert "| ViT | `--model vit` | 5,363,674 | 2 | 90.25% (90.50, 90.00) | 90.75% (91.00, 90.50) |  |  | 1.23" in text


def test_models_and_loading(results):
    text = _all(results)
    assert "| case | size | way | ours | KAT's kernel | ViT | ours / ViT | memory, ours / ViT |" in text
    assert "| bf16 | tiny | compiled | 5,950 (2.35) | 83 (2.35) | 5,000 (2.35) | 1.19 | 1.00 |" in text
    assert "| bf16 | small | eager | 5,950 (2.35) |  | 5,000 (2.35) | 1.19 | 1.00 |" in text
    assert "| 256 | tiny | eager | 5,950 (2.35) |" in text
    assert "|  | 1 worker | 2 workers | 16 workers |" in text
    assert "| photographs, 224 px, Pillow | 250 (12%) | 500 (25%) | 4,000 (200%) |" in text
    assert "| photographs, 224 px, NVIDIA DALI |  | 2,000 (100%) |  |" in text


def test_exported_models_have_their_page(results):
    text = tables.exported(results)
    assert "| eager PyTorch | 45.0 | 30.0 | 1.50 |  |  |" in text
    assert "| ONNX Runtime | 30.0 | 20.0 | 1.50 | 1.0e-06 | 1.0e-06 |" in text
    assert "AOTInductor" not in text  # was not measured


def test_several_gpus(results):
    text = _all(results)
    assert "| tiny | default | 1 | ours | 16,000 |  |  |  | 1.000 | 2.35 |" in text
    assert "| tiny | default | 2 | ours | 31,360 | 0.980 | 0.16 | 0.25 | 1.032 | 2.35 |" in text
    assert "| tiny | bare | 1 | ours | 16,100 |  |  |  |  |  |" in text


def _change(path, change):
    document = json.loads(path.read_text())
    document["rows"] = change(document["rows"])
    path.write_text(json.dumps(document))


def test_models_are_in_order_however_they_were_measured(results):
    before = _all(results)
    _change(results / "training.json", lambda rows: rows[::-1])
    assert _all(results) == before


def test_what_has_nothing_to_compare_with_has_no_ratio(results):
    alone = {"over_vit": None, "peak_over_vit": None, "peak_gib": None}
    _change(results / "training.json", lambda rows: [row | alone for row in rows if row["contender"] == "ours"])
    _change(results / "loading.json", lambda rows: [row | {"over_step": None} for row in rows])
    text = _all(results)
    assert "| bf16 | tiny | compiled | 5,950 |  |  |" in text
    assert "| photographs, 224 px, Pillow | 250 | 500 | 4,000 |" in text


def test_wrong_sizes_are_named(results):
    path = results / "scaling.json"
    document = json.loads(path.read_text())
    document["rows"][0]["right"] = False
    path.write_text(json.dumps(document))
    assert "wrong at 2^16 elements" in _all(results)


def test_only_the_part_between_the_markers_changes():
    page = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    assert tables.replace(page, "new") == f"before\n{tables.BEGIN}\nnew\n{tables.END}\nafter\n"
    with pytest.raises(SystemExit, match="needs the lines"):
        tables.replace("no markers", "new")
