"""Two real processes on CPUs, against one."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from processes import forked, free_port, started, together, torchrun
from tiny import write_images

from flashkat.cli.main import main, run
from flashkat.system.signals import StopRequest
from flashkat.training import loop
from flashkat.training.parallel import full

# Nothing random but the order of images, which is the same for all numbers of processes; and an optimiser that does
# not blow up the rounding errors of gradients that are zero, as Adam does with the bias of the keys.
FLAGS = ["-j", 0, "--device", "cpu", "--epochs", 2, "--opt", "sgd", "--lr", 0.1, "--warmup-epochs", 0]
FLAGS += ["--no-aug", "--model-ema", "--model-ema-decay", 0.9, "--model-ema-warmup"]

# Columns that may differ between two runs.
TIMES = ("images_per_second", "data_wait", "seconds")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    # Of 10 evaluation images two processes have 5 each, of 9 they have 5 and 4.
    root = write_images(tmp_path_factory.mktemp("images"), train=8, val=5)
    (root / "val" / "light" / "4.png").unlink()
    return root


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """Runs ``flashkat train`` in one or two processes, and returns the run's folder and its output."""
    output = tmp_path_factory.mktemp("output")

    def run(name, processes, *flags, **how):
        argv = ["train", images, *tiny.FLAGS, *FLAGS, "--output", output, "--experiment", name, *flags]
        if processes == 1:
            assert main([str(argument) for argument in argv]) == 0
            return output / name, ""
        done = together(tmp_path_factory.mktemp("processes"), *argv, **how)
        assert done.status == [0] * processes, done.stderr
        return output / name, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def alone(trained):
    return trained("alone", 1, "-b", 4)[0]


def assert_same(folder, other, summary_of):
    for ours, theirs in zip(summary_of(folder), summary_of(other), strict=True):
        for name in TIMES:
            # Waiting is a share of the epoch, and rounds to 0 where most of that goes to compiling.
            assert min(ours.pop(name), theirs.pop(name)) > 0 or name == "data_wait"
        for summary in (ours, theirs):  # GPUs have one, the CPU has none
            summary.pop("peak_memory_gib", None)
        assert ours == pytest.approx(theirs, rel=1e-4)
    a, b = (torch.load(path / "last.pth.tar", weights_only=True, map_location="cpu") for path in (folder, other))
    for key in ("state_dict", "state_dict_ema"):
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)
    moments = [
        [entry["momentum_buffer"] for entry in checkpoint["optimizer"]["state"].values()] for checkpoint in (a, b)
    ]
    torch.testing.assert_close(*moments, rtol=1e-3, atol=1e-5)
    return a, b


def test_two_processes_train_as_one(alone, images, summary_of, tmp_path):
    """As torchrun starts them."""
    flags = ["-b", 2, "--log-interval", 1, "--output", tmp_path, "--experiment", "together"]
    done = torchrun("train", images, *tiny.FLAGS, *FLAGS, *flags)
    assert done.returncode == 0, done.stderr
    folder, output = tmp_path / "together", done.stdout + done.stderr
    assert_same(alone, folder, summary_of)

    # One of them writes and speaks.
    assert [path.name for path in tmp_path.iterdir()] == ["together"]
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    lines = [line for line in output.splitlines() if line.startswith(("Train: ", "Epoch ", "The run is in "))]
    assert len(lines) == len(set(lines)) == 2 * 4 + 2 + 1
    assert "Grad strides" not in output
    assert "16 training and 9 evaluation images" in output


# The first process takes its time to close the run's folder, as for a service that takes its logs.
CLOSING = """
import sys
import time
from flashkat.cli.main import run
from flashkat.training.outputs.folder import RunFolder
close = RunFolder.close
def slowly(*args):
    time.sleep(3)
    close(*args)
    print("closed", flush=True)
RunFolder.close = slowly
run(sys.argv[1:])
"""


def test_the_first_process_closes_the_folder_of_a_run_that_fails(images, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(CLOSING)
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, script, "train")
    done = started(*launch, images, *tiny.FLAGS, *FLAGS, "-b", 2, "--lr", 1e30, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "closed" in done.stdout
    assert "the loss is nan in epoch 1" in done.stderr


def test_two_nodes_train_as_one(alone, trained, summary_of):
    """A process on each of two nodes, which are this machine twice."""
    folder, _ = trained("nodes", 2, "-b", 2, per_node=1)
    assert_same(alone, folder, summary_of)


def test_accumulated_batches_are_one_batch(alone, trained, summary_of):
    """4 = 2 processes of 1 image, 2 times."""
    folder, _ = trained("accumulated", 2, "-b", 1, "--grad-accum-steps", 2)
    assert_same(alone, folder, summary_of)


def test_compiled(alone, trained, summary_of):
    """With names of weights that do not show it."""
    folder, output = trained("compiled", 2, "-b", 2, "--torchcompile", "aot_eager", recompiles=True)
    assert_same(alone, folder, summary_of)
    # For evaluation, by either process; of its last batch one has 2 images, the other too, of which one counts.
    assert output.count("Recompiling function") == 2
    assert output.count("changed: grad_mode") == 2


def test_a_gathered_state_has_its_types():
    """Some optimisers take back tuples alone."""
    state = {"a": (1, (2, [3])), "b": torch.ones(2)}
    found = full(state)
    assert found["a"] == (1, (2, [3]))
    assert found["b"] is state["b"]


def test_sharded(alone, trained, summary_of, tmp_path, images):
    """FSDP2 trains to the same weights, and leaves ordinary checkpoints; both kinds of run continue them."""
    folder, _ = trained("sharded", 2, "-b", 2, "--fsdp", "--clip-grad", 1e6)
    checkpoint, ordinary = assert_same(folder, alone, summary_of)
    for key in ("state_dict", "state_dict_ema"):
        assert checkpoint[key].keys() == ordinary[key].keys()
        assert all(type(value) is torch.Tensor for value in checkpoint[key].values())
    assert main(["validate", str(images), "--checkpoint", str(folder / "last.pth.tar"), "-j", "0"]) == 0
    resumed, _ = trained(
        *("sharded-resumed", 2, "-b", 2, "--fsdp", "--torchcompile", "aot_eager"),
        *("--resume", folder / "checkpoint-0.pth.tar"),
    )
    assert_same(resumed, alone, summary_of)
    alone_resumed, _ = trained("unsharded", 1, "-b", 4, "--resume", folder / "checkpoint-0.pth.tar")
    assert_same(alone_resumed, alone, summary_of)


def test_resumed_in_the_middle_of_an_epoch(trained, summary_of):
    """With all that is random, which each process draws for itself."""
    random = ["-b", 2, "--mixup", 0.5, "--reprob", 0.5, "--drop", 0.2, "--recovery-interval", 2]
    straight, _ = trained("straight", 2, *random)
    resumed, _ = trained("resumed", 2, *random, "--resume", straight / "recovery-1-1.pth.tar")
    a, b = (torch.load(path / "last.pth.tar", weights_only=True) for path in (straight, resumed))
    assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])
    assert all(torch.equal(a["state_dict_ema"][name], b["state_dict_ema"][name]) for name in a["state_dict"])
    first, second = (
        [{**row, **dict.fromkeys(TIMES, 0)} for row in summary_of(folder)] for folder in (straight, resumed)
    )
    assert first == second


def stopped_in_its_evaluation(*argv):
    """Each process gets a signal at its evaluation, and waits there until the others know."""
    evaluate, after_step = loop.evaluate, StopRequest.after_step

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGUSR1)
        return evaluate(*arguments)

    def told(stop):
        while stop._received and stop._told is None:
            time.sleep(0.01)
        return after_step(stop)

    loop.evaluate, StopRequest.after_step = signalled, told
    run(list(argv))


def test_sharded_and_stopped_in_an_evaluation(alone, trained, images, tmp_path):
    argv = ["train", images, *tiny.FLAGS, *FLAGS, "-b", 2, "--fsdp", "--output", tmp_path, "--experiment", "stopped"]
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    environments = [{**meeting, "RANK": rank, "LOCAL_RANK": rank} for rank in range(2)]
    done = forked(tmp_path, stopped_in_its_evaluation, [str(word) for word in argv], environments)
    recovery = tmp_path / "stopped" / "recovery-0-3.pth.tar"
    assert done.status == [128 + signal.SIGUSR1] * 2, done.stderr
    assert done.stderr == f"flashkat train: error: stopped: go on with the same flags and --resume {recovery}\n"
    resumed, _ = trained("evaluated first", 2, "-b", 2, "--fsdp", "--resume", recovery)
    ours, theirs = (torch.load(folder / "last.pth.tar", weights_only=True) for folder in (resumed, alone))
    for key in ("state_dict", "state_dict_ema"):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-5)


def test_validation_counts_every_image_once(alone, images, tmp_path, capsys):
    results = tmp_path / "results.json"
    argv = ["validate", images, "--checkpoint", alone / "last.pth.tar", "-j", 0, "--device", "cpu", "-b", 2]
    argv += ["--results-file", results, "--results-format", "json"]
    capsys.readouterr()
    assert main([str(argument) for argument in argv]) == 0
    expected = capsys.readouterr().out
    done = together(tmp_path, *argv)
    assert done.status == [0, 0], done.stderr
    assert done.stdout == expected
    assert json.loads(results.read_text())["top1"] == json.loads(expected.removeprefix("--result\n"))["top1"]
    assert done.stderr.count("Validating in float32") == 1


@pytest.mark.gpu
def test_two_gpus(alone, trained, summary_of):
    """NCCL; in float32 without TF32, so that the results are those of the CPU. Compiled by default, but for FSDP."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    folder, output = trained("gpus", 2, "-b", 2, "--device", "cuda", "--no-tf32")
    assert output.count("Compiling the model") == 1
    assert "on cuda:0 and 1 more" in output
    assert_same(alone, folder, summary_of)
    sharded, _ = trained("gpus-sharded", 2, "-b", 2, "--device", "cuda", "--fsdp", "--no-tf32")
    assert_same(alone, sharded, summary_of)
