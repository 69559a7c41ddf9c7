"""Contenders take each other's place, and are compared in the same turns."""

import pytest
import torch

pytest.importorskip("triton")

import flashkat
from benchmarks import inference, training
from benchmarks.parts import common, contenders

pytestmark = pytest.mark.usefixtures("no_code")


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


@pytest.mark.parametrize("module", [training, inference])
def test_quick_commands_add_to_their_result(module, monkeypatch, tmp_path, clock):
    monkeypatch.setenv("FLASHKAT_COMMIT", "abc")
    monkeypatch.setattr(module, "StepTimer", lambda: clock)
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
