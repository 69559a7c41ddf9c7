"""What is compiled is decided from the flags and the device, and compiled once, however batches end."""

from dataclasses import replace

import pytest
import torch
import yaml
from configs import compilation_of
from tiny import write_images
from torch._dynamo.utils import counters

from flashkat.cli.main import main
from flashkat.errors import InputError
from flashkat.system import compile as runtime
from flashkat.system.compile import Compilation, captures_steps

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ONCE_EACH = 2  # graphs, of training and of evaluation


@pytest.fixture
def complete(monkeypatch):
    """As if all that compiling needs were there."""
    monkeypatch.setattr(runtime, "is_installed", lambda module: True)
    monkeypatch.setenv("CC", "cc")


@pytest.fixture
def choose(training_config, complete):
    """What a run with these flags is compiled with, and the lines about it."""

    def run(device, *flags):
        chosen, lines = compilation_of(training_config(*flags), device)
        return chosen.torchcompile, chosen.torchcompile_mode, lines

    return run


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory):
    """Of 10 evaluation images the last batch of 4 has 2; of 18 training images 2 are left out."""
    return write_images(tmp_path_factory.mktemp("odd"), train=9, val=5)


@pytest.fixture
def compilations():
    """Counts the graphs compiled since it was asked last."""

    def count():
        found = counters["stats"]["unique_graphs"]
        torch.compiler.reset()
        counters.clear()
        return found

    count()
    yield count
    count()


@pytest.fixture
def by_default(monkeypatch):
    """Training compiles as it does for users, where other tests here have it compile when asked to."""
    monkeypatch.setattr("flashkat.training.run.choose_for_training", runtime.choose_for_training)


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


def test_a_file_that_contradicts_itself(training_config):
    contradiction = Compilation(torchcompile="inductor", no_compile=True)
    with pytest.raises(InputError, match="contradict"):
        compilation_of(replace(training_config(), compilation=contradiction), CPU)


@pytest.mark.parametrize(
    "flags",
    [
        ["--model-ema"],
        ["--grad-accum-steps", 3, "--clip-grad", 1, "--model-ema", "--amp"],
        ["-vb", 7, "--tta", 2, "--channels-last"],
        ["--mixup", 0.5, "--mixup-off-epoch", 1, "--drop", 0.1, "--drop-path", 0.1, "--recovery-interval", 1],
        ["--grad-checkpointing", "--mixup", 0.5, "--mixup-mode", "half"],
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_once_to_train_and_once_to_evaluate(train, odd_images, compilations, flags):
    train("--epochs", 2, "--torchcompile", "aot_eager", *flags, data=odd_images)
    assert compilations() == ONCE_EACH


def test_resumed_in_the_middle_of_an_epoch(train, odd_images, compilations):
    flags = ["--epochs", 2, "--torchcompile", "aot_eager", "--model-ema", "--recovery-interval", 1]
    flags += ["--grad-accum-steps", 3]
    straight = train(*flags, data=odd_images, experiment="straight")
    compilations()
    resumed = train(*flags, "--resume", straight / "recovery-1-0.pth.tar", data=odd_images, experiment="resumed")
    assert compilations() == ONCE_EACH
    for key in ("state_dict", "state_dict_ema"):
        a, b = (torch.load(folder / "last.pth.tar", weights_only=True)[key] for folder in (straight, resumed))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_filled_up_batches_evaluate_to_the_same(train, odd_images, summary_of, compilations):
    flags = ["--epochs", 1, "--model-ema", "--model-ema-decay", 0.5, "--lr", 0.1, "--warmup-epochs", 0]
    compiled = train(*flags, "--torchcompile", "aot_eager", data=odd_images, experiment="compiled")
    (ours,), (theirs,) = summary_of(compiled), summary_of(train(*flags, data=odd_images, experiment="plain"))
    for name in ours:
        if name.startswith("eval"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


def test_validation_compiles_once(train, odd_images, compilations, capsys):
    checkpoint = train("--epochs", 1, data=odd_images) / "last.pth.tar"
    capsys.readouterr()
    argv = [str(word) for word in ("validate", odd_images, "--checkpoint", checkpoint, "-j", 0, "-b", 4)]
    # What sees outputs sees none of a batch that was filled up.
    argv += ["--metrics-avg", "macro"]
    assert main(argv) == 0
    expected = capsys.readouterr().out
    assert main([*argv, "--torchcompile", "aot_eager"]) == 0
    assert capsys.readouterr().out == expected
    assert compilations() == 1


def test_a_default_is_said(train, monkeypatch, capsys):
    """As if on a GPU, up to where training would begin. It is no flag of runs that take over this one's."""
    monkeypatch.setattr("flashkat.training.run.run_epochs", lambda *args: None)
    monkeypatch.setattr(
        "flashkat.training.run.choose_for_training",
        lambda asked, device, **how: runtime.choose_for_training(asked, GPU, **how),
    )
    monkeypatch.setattr(runtime, "is_installed", lambda module: True)
    monkeypatch.setenv("CC", "cc")
    folder = train()
    args = yaml.safe_load((folder / "args.yaml").read_text())
    assert (args["torchcompile"], args["torchcompile_mode"]) == (None, None)
    assert capsys.readouterr().out.count("Compiling the model once, which takes a minute or two. --no-compile") == 1
    args = yaml.safe_load((train("--no-compile") / "args.yaml").read_text())
    assert (args["torchcompile"], args["no_compile"]) == (None, True)
    train("-c", folder / "args.yaml", "--no-compile")
    train("-c", folder / "args.yaml", "--grad-accum-steps", 2, "--no-compile")
    assert "ompil" not in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.usefixtures("by_default")
def test_by_default_on_a_gpu(train, odd_images, compilations, capsys):
    flags = ["--epochs", 3, "--model-ema", "--opt", "adamw", "--lr", 1e-3, "--amp", "--amp-dtype", "float16"]
    flags += ["--tta", 2]
    straight = train(*flags, "--clip-grad", 1, data=odd_images, experiment="straight")
    assert compilations() == ONCE_EACH
    out = capsys.readouterr().out
    assert out.count("Compiling the model") == 1
    assert "peak_memory_gib" in (straight / "summary.csv").read_text()
    resumed = train(
        *flags, "--clip-grad", 1, "--resume", straight / "checkpoint-0.pth.tar", data=odd_images, experiment="resumed"
    )
    assert compilations() == ONCE_EACH
    a, b = (torch.load(folder / "last.pth.tar", weights_only=True) for folder in (straight, resumed))
    for checkpoint in (a, b):
        assert {group["fused"] for group in checkpoint["optimizer"]["param_groups"]} == {True}
    torch.testing.assert_close(a["state_dict"], b["state_dict"])


@pytest.mark.gpu
@pytest.mark.usefixtures("by_default", "compilations")
@pytest.mark.parametrize("more", [[], ["--grad-checkpointing", "--mixup", 0.5]], ids=str)
def test_cuda_graphs_train_to_the_same(train, odd_images, summary_of, more):
    flags = ["--epochs", 3, "--opt", "adamw", "--lr", 1e-3, "--clip-grad", 1, "--model-ema", "--no-tf32", *more]
    graphs = train(*flags, data=odd_images, experiment="graphs")
    trained = torch.load(graphs / "last.pth.tar", weights_only=True)["args"]
    assert (trained["torchcompile"], trained["torchcompile_mode"]) == ("inductor", None)
    eager = train(*flags, "--no-compile", data=odd_images, experiment="eager")
    for ours, theirs in zip(summary_of(graphs), summary_of(eager), strict=True):
        for name in ours:
            if name.endswith("loss"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
