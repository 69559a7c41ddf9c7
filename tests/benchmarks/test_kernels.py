"""The benchmark of the kernels runs, at toy sizes and with a fake clock, and its targets judge as they should."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import kernels

TINY = kernels.Plan(
    tokens=(1, 3),
    widths=(16,),
    dtypes=("bf16", "fp16"),
    baseline_dtypes=("bf16",),
    baseline_widths=(16,),
    autocast_widths=(32,),
    variant_width=32,
    odd_width=24,
    nchw=(2, 8, 2, 2),
    copy_elements=64,
    rounds=1,
)


def _one_microsecond(call):
    call()
    return 1.0


@pytest.fixture(scope="module")
def rows(device):
    with pytest.MonkeyPatch.context() as patch:
        compile_with_autograd = torch.compile
        patch.setattr(
            torch, "compile", lambda f, dynamic: compile_with_autograd(f, dynamic=dynamic, backend="aot_eager")
        )
        return kernels.collect(TINY, device, _one_microsecond)


def test_every_contender_of_every_case_has_a_row(rows):
    def contenders(case, direction, **fields):
        return [
            row["contender"]
            for row in rows
            if (row["case"], row["direction"]) == (case, direction) and fields.items() <= row.items()
        ]

    others = ["flashkat paper", "kat", "formula, eager", "formula, compiled"]
    assert contenders("default", "forward", dtype="bf16") == ["ours", "gelu", "copy", *others, "ours"]
    assert contenders("default", "backward", dtype="bf16") == ["ours", "gelu", *others, "ours"]
    assert contenders("default", "forward", dtype="fp16") == ["ours", "gelu", "copy", "ours"]
    assert contenders("autocast", "forward", out_dtype="fp16") == ["ours", "copy", "ours"]
    assert contenders("autocast", "backward", out_dtype="bf16") == ["ours", "ours"]
    assert contenders("nchw", "backward", dtype="fp16") == ["ours", "gelu", "ours"]
    for direction in ("forward", "backward"):
        assert contenders("variants", direction, dtype="fp16").count("ours") == 14
        assert len(contenders("variants", direction, dtype="bf16", m=8, n=6)) == 2
        for outliers in ("none", "number", "channel"):
            assert contenders("outliers", direction, dtype="fp16", outliers=outliers) == ["ours"]


@pytest.mark.parametrize(("outliers", "count"), [("none", 0), ("number", 1), ("channel", 6)])
def test_outliers_are_in_the_input(outliers, count):
    problem = kernels.Problem((2, 3, 16), "bf16", "bf16", outliers=outliers)
    assert int((kernels.Tensors(problem, "cpu").x > 1000).sum()) == count


def test_bytes_are_the_fewest_that_the_operation_moves():
    x = kernels.Problem((2, 3, 8), "fp32", "bf16")
    assert (x.bytes("forward"), x.bytes("backward")) == (48 * 6, 48 * 10)


def test_bandwidths(rows):
    row = next(row for row in rows if row["case"] == "default" and row["contender"] == "gelu")
    assert row["gb_per_s"] == pytest.approx(48 * 4 / 1e3, abs=0.01)
    assert row["copy_gb_per_s"] == pytest.approx(64 * 4 / 1e3, abs=0.01)
    assert row["of_copy"] == pytest.approx(48 / 64, abs=0.001)


def _row(contender="ours", median_us=100.0, of_copy=0.9, case="default", width=1536, direction="forward", **fields):
    problem = {"shape": (128, 197, width), "dtype": "bf16", "out_dtype": "bf16", "dim": -1, "groups": 8}
    return {
        "case": case, "direction": direction, "contender": contender, **problem, "numerator_rows": 1, "m": 6, "n": 4,
        "median_us": median_us, "of_copy": of_copy, "bytes": width, **fields,
    }  # fmt: skip


def _verdicts(*rows):
    return [(target["value"], target["limit"], target["met"]) for target in kernels.targets(list(rows))]


def test_targets_of_the_default_case():
    fast = _row(), _row("gelu", 98.0)
    assert _verdicts(*fast) == [(1.02, 1.05, True), (0.9, 0.87, True)]
    slow = _row(direction="backward", of_copy=0.86), _row("gelu", 90.0, direction="backward"), _row("gelu", 200.0)
    assert _verdicts(*slow) == [(1.111, 1.08, False), (0.86, 0.87, False)]
    assert _verdicts(_row(width=192), _row("gelu", 95.0, width=192)) == [(1.053, 1.10, True)]


def test_targets_of_the_other_cases():
    assert _verdicts(_row(case="autocast", of_copy=0.8)) == [(1.25, 1.15, False)]
    assert _verdicts(
        _row(case="nchw", direction="backward"), _row("gelu", 99.0, case="nchw", direction="backward")
    ) == [(1.01, 1.08, True)]
    default, wide = _row(case="variants"), _row(case="variants", width=2 * 1536, median_us=280.0)
    other = _row(case="variants", dtype="fp32", median_us=1.0)
    assert _verdicts(other, default, wide) == [(1.4, 1.5, True)]


def test_every_row_that_is_ours_has_a_target_at_the_sizes_that_matter(rows):
    names = [target["name"] for target in kernels.targets(rows)]
    assert len(names) == len(set(names))
    assert len(names) == 2 * 2 * (2 + 13 + 2)  # both directions and dtypes: autocast, variants but the default, NCHW


@pytest.mark.gpu
def test_a_captured_graph_is_right():
    assert kernels.graph_is_right()
