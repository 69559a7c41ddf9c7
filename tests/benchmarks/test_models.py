"""The benchmarks of whole models and of loading run at toy sizes with a fake clock, and judge as they should."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton")

import flashkat
from benchmarks import common, contenders, inference, loading, training

TINY = {"depth": 1, "embed_dim": 16, "num_heads": 2}
CONTENDERS = list(contenders.CONTENDERS)


def _one_millisecond(call):
    call()
    return 1000.0


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """Models of one block, and a compiler that generates no code."""
    compile_model, make = torch.compile, contenders.make_model
    monkeypatch.setattr(
        torch, "compile", lambda model, dynamic, mode="": compile_model(model, dynamic=dynamic, backend="aot_eager")
    )
    for module in (training, inference):
        monkeypatch.setattr(module, "make_model", lambda *args, **kwargs: make(*args, **kwargs, **TINY))
    monkeypatch.setattr(
        training, "CASES", {name: dataclasses.replace(case, batch=2) for name, case in training.CASES.items()}
    )


def test_every_contender_of_a_training_case_has_a_row(device):
    plan = training.Plan(("tiny",), ("eager", "compiled"), CONTENDERS, ("bf16",), 32, 1)
    rows = [row for piece in training.collect(plan, device, _one_millisecond) for row in piece]
    assert [(row["way"], row["contender"]) for row in rows] == [(way, name) for way in plan.ways for name in CONTENDERS]
    assert {row["images_per_s"] for row in rows} == {2000.0}
    speed = [target for target in training.targets(rows) if "images/s" in target["name"]]
    assert [(target["value"], target["limit"]) for target in speed] == [(1.0, 0.9), (1.0, 1.0)]


def test_every_case_of_training_runs(device):
    plan = training.Plan(("tiny",), ("eager",), ("ours",), tuple(training.CASES), 32, 1)
    pieces = list(training.collect(plan, device, _one_millisecond))
    assert [row["case"] for (row,) in pieces] == list(training.CASES)


@pytest.mark.parametrize("module", [training, inference])
def test_commands_add_to_their_result(module, monkeypatch, tmp_path, device):
    monkeypatch.setenv("FLASHKAT_COMMIT", "abc")
    monkeypatch.setattr(module, "require_gpu", lambda: None)
    monkeypatch.setattr(module, "StepTimer", lambda: _one_millisecond)
    monkeypatch.setattr(module, "FULL", dataclasses.replace(module.FULL, image_size=32))
    monkeypatch.setattr(
        module, "collect", lambda plan, _, measure, collect=module.collect: collect(plan, device, measure)
    )
    flags = ["--quick", "--output", str(tmp_path / "result.json"), "--sizes", "tiny", "--ways", "eager"]
    flags += ["--cases", "bf16"] if module is training else []
    precision = torch.get_float32_matmul_precision()
    try:
        for contender in ("ours", "vit"):
            module.main([*flags, "--contenders", contender])
    finally:
        torch.set_float32_matmul_precision(precision)
    document = common.read(tmp_path / "result.json")
    assert {row["contender"] for row in document["rows"]} == {"ours", "vit"}
    assert document["benchmark"] == module.__name__.rpartition(".")[2]


def test_sizes_that_a_case_does_not_have_are_left_out(device):
    plan = training.Plan(("base",), cases=("bf16-1024",))
    assert list(training.collect(plan, device, _one_millisecond)) == []


def test_every_contender_of_inference_has_a_row(device):
    plan = inference.Plan(("tiny",), ("eager", "graphs"), CONTENDERS, (2, 1), 32, 1)
    rows = [row for piece in inference.collect(plan, device, _one_millisecond) for row in piece]
    assert [row["contender"] for row in rows] == CONTENDERS * 4
    assert [row["images_per_s"] for row in rows if row["contender"] == "ours"] == [2000.0, 1000.0] * 2


@pytest.mark.parametrize("way", ["eager", "compiled"])
def test_published_kernels_take_the_place_of_ours_and_agree(way, device):
    x = torch.randn(2, 3, 32, 32, device=device, generator=torch.Generator(device).manual_seed(0))
    torch.compiler.reset()
    results = {}
    for name in ("ours", "flashkat paper", "kat"):
        torch.manual_seed(0)
        model = contenders.make_model(name, "tiny", device, img_size=32, **TINY)
        rationals = sum(isinstance(module, flashkat.GroupRational) for module in model.modules())
        assert rationals == (2 if name == "ours" else 0)
        y = contenders.WAYS[way](model)(x)
        y.square().sum().backward()
        results[name] = [y, *(parameter.grad for parameter in model.parameters())]
    assert len(results["kat"]) == len(results["ours"])
    for name in ("flashkat paper", "kat"):
        for found, expected in zip(results[name], results["ours"], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def _row(contender, rate, peak=2.0, run="now", way="compiled", **case):
    return {
        "size": "tiny",
        "way": way,
        "contender": contender,
        "images_per_s": rate,
        "peak_gib": peak,
        "run": run,
        **case,
    }


def _verdicts(found):
    return [(target["value"], target["limit"], target["met"]) for target in found]


def test_targets_of_training():
    rows = [_row("ours", 990.0, 2.1, case="bf16"), _row("vit", 1000.0, case="bf16")]
    assert _verdicts(training.targets(rows)) == [(0.99, 1.0, False), (1.05, 1.02, False)]
    rows = [_row("ours", 910.0, 2.02, way="eager", case="bf16"), _row("vit", 1000.0, way="eager", case="bf16")]
    assert _verdicts(training.targets(rows)) == [(0.91, 0.9, True), (1.01, 1.02, True)]


def test_only_what_took_turns_at_the_usual_batch_is_judged():
    assert training.targets([_row("ours", 1.0, case="bf16"), _row("vit", 1.0, run="earlier", case="bf16")]) == []
    assert training.targets([_row("ours", 1.0, case="fp16"), _row("vit", 1.0, case="fp16")]) == []
    assert training.targets([_row("ours", 1.0, case="bf16"), _row("kat", 1.0, case="bf16")]) == []


def test_targets_of_inference():
    rows = [_row(name, rate, batch=batch) for batch in (256, 1) for name, rate in (("ours", 970.0), ("vit", 1000.0))]
    assert _verdicts(inference.targets(rows)) == [(0.97, 0.98, False)] * 2
    assert inference.targets([{**row, "way": "eager"} for row in rows]) == []


def test_loading_counts_images_within_its_windows(monkeypatch):
    now = [0.0]

    def batches():
        while True:
            now[0] += 0.25
            yield None

    monkeypatch.setattr(loading.time, "perf_counter", lambda: now[0])
    plan = loading.Plan((2,), batch=8, windows=3, window_s=1.0)
    assert loading._rates(batches(), plan, workers=2) == [32.0] * 3


def test_loading_runs(tmp_path):
    folder = loading.Folder(20, 40, 30, ".jpg", 16)
    loading.write_images(tmp_path, folder)
    assert len(list(tmp_path.glob("train/*/*.jpg"))) == 20
    plan = loading.Plan((1,), batch=4, windows=1, window_s=0.0)
    (row,) = loading.collect(plan, {"toys": folder}, torch.device("cpu"))
    assert (row["images"], row["pixels"], row["workers"]) == ("toys", 16, 1)
    assert row["images_per_s"] > 0
