"""Graphs of PyTorch's own operators, which load in a process without this package."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn

import flashkat
from flashkat.errors import InputError
from flashkat.tools.export.program import (
    capture,
    difference,
    load_package,
    read_entries,
    save_compiled,
    save_program,
    trials,
)

WITHOUT_FLASHKAT = """
import sys
sys.modules["flashkat"] = sys.modules["timm"] = None
import torch
from torch._inductor import aoti_load_package
path, images = sys.argv[1], torch.load(sys.argv[2])
run = aoti_load_package(path) if path.endswith("_aoti.pt2") else torch.export.load(path).module()
torch.save([run(images), run(images[:1])], sys.argv[3])
"""


class Scaled(nn.Module):
    """Two inputs, a number that training changes, and outputs in a dictionary."""

    def __init__(self):
        super().__init__()
        self.act, self.drop = flashkat.GroupRational(8, start="gelu"), nn.Dropout(0.5)

    def forward(self, x, index):
        return {"y": self.drop(self.act(x)), "rest": (x.sum(1), index + 1)}


EXAMPLE = torch.randn(4, 8), torch.tensor([1, 2, 3, 4])


def run_without_flashkat(path, images, tmp_path):
    torch.save(images, tmp_path / "images.pt")
    command = [sys.executable, "-c", WITHOUT_FLASHKAT, path, tmp_path / "images.pt", tmp_path / "outputs.pt"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "outputs.pt")


def test_capture_leaves_the_model_as_it_is():
    model = Scaled().train()
    program = capture(model, EXAMPLE)
    assert model.training
    assert not any("flashkat" in str(node.target) or "dropout" in str(node.target) for node in program.graph.nodes)
    worst, largest = difference(model, program.module(), EXAMPLE)
    assert worst < 1e-6 < largest
    assert model.training


def test_trials_keep_whole_numbers():
    assert [[each.shape[0] for each in inputs] for inputs in trials(EXAMPLE)] == [[1, 1], [3, 3]]
    assert all(inputs[1].unique().tolist() == [1] for inputs in trials(EXAMPLE))


def test_difference_finds_one():
    model = flashkat.GroupRational(8)
    assert difference(model, lambda x: x + 0.5, EXAMPLE[:1])[0] == pytest.approx(0.5)
    assert difference(nn.Flatten(), lambda x: x * float("nan"), EXAMPLE[:1])[0] != 0


def test_infinite_outputs_hide_no_difference():
    class Overflows(nn.Module):
        def forward(self, x):
            return torch.cat([x, x * float("inf")], 1)

    model = Overflows()
    worst, largest = difference(model, lambda x: model(x) + 0.5, EXAMPLE[:1])
    assert worst == pytest.approx(0.5)
    assert largest < 10
    assert difference(model, lambda x: torch.cat([x, x], 1), EXAMPLE[:1])[0] == float("inf")


@pytest.mark.parametrize("example", [(), (torch.tensor(1.0),), (torch.ones(2, 8), torch.ones(3, 8))])
def test_an_example_needs_a_batch(example):
    with pytest.raises(InputError, match="need a first dimension of one size, the batch"):
        capture(Scaled(), example)


def test_a_model_that_cannot_be_captured():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match="cannot export the model: "):
        capture(Branches(), EXAMPLE[:1])


@torch.library.custom_op("tests_of_export::odd", mutates_args=())
def odd(x: torch.Tensor) -> torch.Tensor:
    return x + 1


odd.register_fake(torch.empty_like)


def test_an_operator_that_cannot_be_exported_is_named():
    class Odd(nn.Module):
        def forward(self, x):
            return odd(x)

    model = nn.Sequential(nn.Identity(), Odd())
    with pytest.raises(InputError, match=r"the operator tests_of_export::odd of the module 1 cannot be exported"):
        capture(model, EXAMPLE[:1])


def test_a_program_runs_where_flashkat_is_not(shipped, tmp_path):
    from flashkat.evaluation import Config, Trained
    from flashkat.tools.export.restored import restored

    images = torch.randn(5, 3, 8, 8)
    model = restored(Config(trained=Trained(checkpoint=str(shipped.checkpoint)))).module.eval()
    many, one = run_without_flashkat(shipped.pt2, images, tmp_path)
    torch.testing.assert_close(many, model(images), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one, model(images[:1]), rtol=1e-5, atol=1e-6)


def test_entries_are_read_without_running_anything(tmp_path):
    path = tmp_path / "act.pt2"
    save_program(capture(flashkat.GroupRational(8), EXAMPLE[:1]), path, {"classes": '["a"]'})
    assert read_entries(path) == ({"classes": '["a"]'}, False)
    assert load_package(path, False)(EXAMPLE[0]).shape == (4, 8)


@pytest.mark.parametrize("content", [b"", b"not a zip"])
def test_a_file_that_is_no_package(content, tmp_path):
    (tmp_path / "a.pt2").write_bytes(content)
    with pytest.raises(InputError, match=r"is no exported program, or damaged: .*; export it again$"):
        read_entries(tmp_path / "a.pt2")
    with pytest.raises(InputError, match="cannot load "):
        load_package(tmp_path / "a.pt2", False)


def test_odd_metadata_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("a/extra/flashkat.json", json.dumps([1]))
    with pytest.raises(InputError, match="has metadata that flashkat export does not write"):
        read_entries(tmp_path / "a.pt2")


C_PLUS_PLUS = """
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>
#include <iostream>

int main(int count, char** arguments) {
  c10::InferenceMode mode;
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  std::cout << model.run({torch::ones({3, 8})})[0].sum().item<float>() << model.get_metadata()["classes"];
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles")
def test_a_compiled_program_runs_without_flashkat_and_without_python(tmp_path):
    path, act = tmp_path / "act_aoti.pt2", flashkat.GroupRational(8, start="gelu")
    save_compiled(capture(act, EXAMPLE[:1]), path, {"classes": '["a"]'})
    entries, is_compiled = read_entries(path)
    assert (entries["classes"], is_compiled) == ('["a"]', True)
    x = torch.tensor([[0.0, 1e-30, 1.0, -2.0, 1e10, -1e20, 1e30, -3e38]]).repeat(5, 1)
    many, one = run_without_flashkat(path, x, tmp_path)
    torch.testing.assert_close(many, act(x).detach())
    torch.testing.assert_close(one, act(x[:1]).detach())

    from torch.utils.cpp_extension import include_paths, library_paths

    (tmp_path / "run.cpp").write_text(C_PLUS_PLUS)
    flags = [f"-I{folder}" for folder in include_paths()]
    flags += [flag for folder in library_paths() for flag in (f"-L{folder}", f"-Wl,-rpath,{folder}")]
    command = ["g++", "-std=c++20", "-O0", tmp_path / "run.cpp", "-o", tmp_path / "run", *flags]
    subprocess.run([*map(str, command), "-ltorch", "-ltorch_cpu", "-lc10"], check=True)
    done = subprocess.run([tmp_path / "run", path], capture_output=True, text=True, check=True)
    assert float(done.stdout.removesuffix('["a"]')) == pytest.approx(float(act(torch.ones(3, 8)).sum()), rel=1e-5)
