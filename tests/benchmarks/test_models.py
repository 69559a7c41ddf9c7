"""The benchmarks of whole models and of loading run at toy sizes with a fake clock, and judge as they should."""

import pytest
import torch

pytest.importorskip("triton")

import flashkat
from benchmarks import inference, loading, training
from benchmarks.parts import common, contenders

CONTENDERS = list(contenders.CONTENDERS)


def _one_millisecond(call):
    call()
    return 1000.0


@pytest.fixture(autouse=True)
def no_code(monkeypatch):
    """A compiler that generates none."""
    compile_model = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, dynamic, mode="": compile_model(model, dynamic=dynamic, backend="aot_eager")
    )


def _training(**picked):
    return training.Plan(("tiny",), scale=contenders.TOY, rounds=1, **picked)


def test_every_contender_of_a_training_case_has_a_row(device):
    plan = _training(ways=("eager", "compiled"), cases=("bf16",))
    rows = [row for piece in training.collect(plan, device, _one_millisecond) for row in piece]
    assert [(row["way"], row["contender"]) for row in rows] == [(way, name) for way in plan.ways for name in CONTENDERS]
    assert {(row["images_per_s"], row["over_vit"]) for row in rows} == {(2000.0, 1.0)}
    speed = [target for target in training.targets(rows) if "images/s" in target["name"] and target["value"]]
    assert sorted((target["value"], target["limit"]) for target in speed) == [(1.0, 0.9), (1.0, 1.0)]


def test_every_case_of_training_runs(device):
    plan = _training(ways=("eager",), contenders=("ours",))
    pieces = list(training.collect(plan, device, _one_millisecond))
    assert [row["case"] for (row,) in pieces] == list(training.CASES)
    assert [row["over_vit"] for (row,) in pieces] == [None] * len(pieces)


@pytest.mark.parametrize("module", [training, inference])
def test_quick_commands_add_to_their_result(module, monkeypatch, tmp_path):
    monkeypatch.setenv("FLASHKAT_COMMIT", "abc")
    monkeypatch.setattr(module, "StepTimer", lambda: _one_millisecond)
    flags = ["--quick", "--output", str(tmp_path / "result.json"), "--ways", "eager", "--contenders", "ours", "vit"]
    flags += ["--cases", "bf16"] if module is training else []
    precision = torch.get_float32_matmul_precision()
    try:
        for size in ("small", "tiny"):
            module.main([*flags, "--sizes", size])
    finally:
        torch.set_float32_matmul_precision(precision)
    document = common.read(tmp_path / "result.json")
    assert document["benchmark"] == module.__name__.rpartition(".")[2]
    assert {(row["size"], row["contender"]) for row in document["rows"]} == {
        (size, contender) for size in ("small", "tiny") for contender in ("ours", "vit")
    }


@pytest.mark.parametrize("flags", [["--quick"], []])
@pytest.mark.parametrize("module", [training, inference])
def test_without_a_gpu_a_line_says_what_needs_one(module, flags, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="CUDA GPU, and torch sees none here"):
        module.main([*flags, "--output", str(tmp_path / "result.json")])
    assert not list(tmp_path.iterdir())


def test_sizes_that_a_case_does_not_have_are_left_out(device):
    plan = training.Plan(("base",), cases=("bf16-1024",))
    assert list(training.collect(plan, device, _one_millisecond)) == []


def test_every_contender_of_inference_has_a_row(device):
    plan = inference.Plan(("tiny",), ("eager", "graphs"), scale=contenders.TOY, rounds=1)
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
        model = contenders.make_model(name, "tiny", device, **contenders.TOY.model)
        rationals = sum(isinstance(module, flashkat.GroupRational) for module in model.modules())
        assert rationals == (2 if name == "ours" else 0)
        y = contenders.WAYS[way](model)(x)
        y.square().sum().backward()
        results[name] = [y, *(parameter.grad for parameter in model.parameters())]
    assert len(results["kat"]) == len(results["ours"])
    for name in ("flashkat paper", "kat"):
        for found, expected in zip(results[name], results["ours"], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_ratios_are_over_the_vit_of_the_same_turns():
    times = {"vit": 2000.0, "ours": 1000.0}
    calls = []
    makers = {name: lambda name=name: lambda: calls.append(name) for name in times}

    def measure(call):
        call()
        return times[calls[-1]]

    vit, ours = contenders.compare({"size": "tiny"}, 8, makers, measure, 1)
    assert (vit["images_per_s"], ours["images_per_s"]) == (4000.0, 8000.0)
    assert (vit["over_vit"], ours["over_vit"]) == (1.0, 2.0)
    (ours,) = contenders.compare({"size": "tiny"}, 8, {"ours": makers["ours"]}, measure, 1)
    assert ours["over_vit"] is None


def _row(speed, peak=1.0, way="compiled", contender="ours", **case):
    ratios = {"over_vit": speed, "peak_over_vit": peak}
    return {"size": "tiny", "way": way, "contender": contender, **ratios, **case}


def _verdicts(found):
    return [(target["value"], target["limit"], target["met"]) for target in found]


def _of(found, where):
    return _verdicts(target for target in found if target["name"].endswith(where))


def test_targets_of_training():
    found = training.targets([_row(0.99, 1.05, case="bf16"), _row(0.91, 1.01, way="eager", case="bf16")])
    assert len(found) == 2 * 3 * 3
    assert _of(found, "tiny, compiled") == [(0.99, 1.0, False), (1.05, 1.02, False)]
    assert _of(found, "tiny, eager") == [(0.91, 0.9, True), (1.01, 1.02, True)]
    assert _of(found, "base, graphs") == [(None, 1.0, False), (None, 1.02, False)]
    found = training.targets([_row(1.5, None, case="bf16")])
    assert _of(found, "tiny, compiled") == [(1.5, 1.0, True), (None, 1.02, False)]


def test_only_ours_next_to_a_vit_in_the_usual_case_is_judged():
    rows = [_row(None, None, case="bf16"), _row(1.0, case="fp16"), _row(1.0, contender="kat", case="bf16")]
    assert {target["value"] for target in training.targets(rows)} == {None}


def test_targets_of_inference():
    rows = [_row(0.97, batch=batch) for batch in (256, 1)]
    assert _of(inference.targets(rows), "tiny, batch 256") == [(0.97, 0.98, False)]
    assert _of(inference.targets(rows), "small, batch 1") == [(None, 0.98, False)]
    found = inference.targets([_row(1.0, way="eager", batch=1), _row(None, batch=1)])
    assert {target["value"] for target in found} == {None}


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
    folder = loading.Folder(20, 40, 30, ".jpg", 16, 4)
    loading.write_images(tmp_path, folder)
    assert len(list(tmp_path.glob("train/*/*.jpg"))) == 20
    plan = loading.Plan((1,), batch=4, windows=1, window_s=0.0)
    ((row,),) = loading.collect(plan, {"toys": folder}, torch.device("cpu"), _one_millisecond)
    assert (row["images"], row["pixels"], row["workers"]) == ("toys", 16, 1)
    assert row["images_per_s"] > 0
    assert row["over_step"] is None


@pytest.mark.gpu
def test_loading_is_held_against_a_training_step(tmp_path):
    folder = loading.Folder(20, 40, 30, ".jpg", 32, 16)
    plan = loading.Plan((1,), batch=2, windows=1, window_s=0.0)
    ((row,),) = loading.collect(plan, {"toys": folder}, torch.device("cuda"), _one_millisecond)
    assert row["step_images_per_s"] == 2000.0
