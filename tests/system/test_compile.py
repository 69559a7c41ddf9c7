"""What is decided from the flags and the device before a model is made. No GPU is needed to decide for one."""

import warnings
from dataclasses import replace

import pytest
import torch
from configs import compilation_of, config_of

from flashkat.errors import InputError
from flashkat.system import compile as runtime
from flashkat.system.compile import Compilation, captures_steps
from flashkat.system.device import training_products

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def config(*flags):
    return config_of("data", *flags)


@pytest.fixture
def choose():
    """What a run with these flags is compiled with, and the lines about it."""

    def run(device, *flags):
        chosen, lines = compilation_of(config(*flags), device)
        return chosen.torchcompile, chosen.torchcompile_mode, lines

    return run


@pytest.fixture(autouse=True)
def complete(monkeypatch):
    """As if all that compiling needs were there."""
    monkeypatch.setattr(runtime, "is_installed", lambda module: True)
    monkeypatch.setenv("CC", "cc")


def test_training_compiles_on_a_gpu(choose):
    backend, mode, lines = choose(GPU)
    assert (backend, mode) == ("inductor", None)
    assert len(lines) == 1
    assert "a minute or two" in lines[0]
    assert "--no-compile" in lines[0]


@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_a_mode_that_was_asked_for_is_kept(choose, mode):
    assert choose(GPU, "--torchcompile-mode", mode)[:2] == ("inductor", mode)


def test_steps_are_captured_where_no_mode_asks_for_something_else():
    captured = Compilation(torchcompile="inductor")
    assert captures_steps(captured, GPU)
    assert not captures_steps(captured, CPU)
    assert not captures_steps(Compilation(), GPU)
    assert not captures_steps(Compilation(torchcompile="eager"), GPU)
    assert not captures_steps(Compilation(torchcompile="inductor", torchcompile_mode="default"), GPU)


@pytest.mark.parametrize(
    ("device", "flags", "backend"),
    [
        (CPU, [], None),
        (CPU, ["--torchcompile"], "inductor"),
        (GPU, ["--no-compile"], None),
        (GPU, ["--torchcompile", "eager"], "eager"),
    ],
)
def test_what_was_asked_for_is_not_commented_on(choose, device, flags, backend):
    assert choose(device, *flags) == (backend, None, [])


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["-b", 1], "two images or more"),
        (["-b", 2, "--mixup", 0.5, "--mixup-mode", "half"], "two images or more"),
        (["--fsdp"], "by --torchcompile"),
    ],
)
def test_what_does_not_compile_is_left_eager(choose, flags, reason):
    backend, mode, (line,) = choose(GPU, *flags)
    assert (backend, mode) == (None, None)
    assert line.startswith("The model is not compiled: ")
    assert reason in line


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_cuda_graphs_do_not_add_up_gradients(choose, mode):
    with pytest.raises(InputError, match=f"{mode} keeps the gradients of one batch only: leave it out"):
        choose(GPU, "--torchcompile-mode", mode, "--grad-accum-steps", 2)
    assert choose(GPU, "--torchcompile-mode", "default", "--grad-accum-steps", 2)[0] == "inductor"


def test_without_triton_or_a_c_compiler_it_is_left_eager(choose, monkeypatch):
    monkeypatch.delenv("CC")
    monkeypatch.setattr(runtime.os, "name", "posix")
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    assert choose(GPU) == (None, None, ["The model is not compiled: Triton finds no C compiler"])
    monkeypatch.setattr(runtime, "is_installed", lambda module: False)
    assert choose(GPU) == (None, None, ["The model is not compiled: Triton is not installed"])


@pytest.mark.parametrize(
    ("device", "flags", "words"),
    [
        (CPU, ["--torchcompile-mode", "max-autotune"], "--torchcompile-mode needs --torchcompile"),
        (
            GPU,
            ["--no-compile", "--torchcompile-mode", "max-autotune"],
            "--torchcompile-mode and --no-compile contradict",
        ),
        (CPU, ["-b", 1, "--torchcompile"], "batches of two images or more"),
    ],
)
def test_flags_that_do_not_go_together(choose, device, flags, words):
    with pytest.raises(InputError, match=words):
        choose(device, *flags)


def test_a_file_that_contradicts_itself():
    contradiction = Compilation(torchcompile="inductor", no_compile=True)
    with pytest.raises(InputError, match="contradict"):
        compilation_of(replace(config(), compilation=contradiction), CPU)


def precision():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("device", "flags", "expected"),
    [(GPU, [], ("high", True)), (GPU, ["--no-tf32"], ("highest", False)), (CPU, [], None), (CPU, ["--no-tf32"], None)],
)
def test_products(device, flags, expected):
    before = precision()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with training_products(config(*flags).runtime, device):
            assert precision() == (expected or before)
    assert precision() == before
