"""A compiled run compiles once to train and once to evaluate, whatever else it does and however its batches end."""

import pytest
import torch
import yaml
from torch._dynamo.utils import counters

from flashkat.cli.main import main
from flashkat.system import compile as runtime

GPU = torch.device("cuda")
ONCE_EACH = 2


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing takes longer than all else here."""
    monkeypatch.setattr("flashkat.training.outputs.folder.draw_curves", lambda rows, path: None)


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory, write_images):
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
    assert capsys.readouterr().out.count("Compiling the model, which takes a minute or two, once; --no-compile") == 1
    args = yaml.safe_load((train("--no-compile") / "args.yaml").read_text())
    assert (args["torchcompile"], args["no_compile"]) == (None, True)
    train("-c", folder / "args.yaml", "--no-compile")
    train("-c", folder / "args.yaml", "--grad-accum-steps", 2, "--no-compile")
    assert "ompil" not in capsys.readouterr().out


@pytest.fixture
def by_default(monkeypatch):
    """Training compiles as it does for users, where other tests here have it compile when asked to."""
    monkeypatch.setattr("flashkat.training.run.choose_for_training", runtime.choose_for_training)


@pytest.mark.gpu
@pytest.mark.usefixtures("by_default")
def test_by_default_on_a_gpu(train, odd_images, compilations, capsys):
    flags = ["--epochs", 3, "--model-ema", "--opt", "adamw", "--lr", 1e-3, "--amp", "--amp-dtype", "float16"]
    flags += ["--tta", 2]
    straight = train(*flags, "--clip-grad", 1, data=odd_images, experiment="straight")
    assert compilations() == ONCE_EACH
    out = capsys.readouterr().out
    assert out.count("Compiling the model") == 1
    assert out.count(" GiB") == 3
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
