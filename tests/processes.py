"""Trainings in processes of their own, as a terminal or torchrun runs them or quickly made, and calls in threads."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import torch

# Seconds that processes may take, less than pytest gives a test.
LIMIT = 240


def started(*command):
    """Run a command to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    return subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )


def torchrun(*argv):
    """The command in two processes, as torchrun starts it."""
    return started(
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "flashkat", *argv
    )


# What a training imports.
PRELOADED = ["flashkat.training", "torch._dynamo", "torch._functorch.aot_autograd", "flashkat.evaluation.validate"]
PRELOADED += ["flashkat.cli.main", "matplotlib.backends.backend_agg"]


@dataclass(frozen=True)
class Done:
    """How several processes have ended, and what they have said."""

    status: list[int]
    stdout: str
    stderr: str


def forked(folder, function, arguments, environments):
    """Call a function in a process for each of some environments, to the end of all.

    Args:
        folder: for files of this call alone.
        function: of a module that can be imported.
        arguments: its own, strings and numbers.
        environments: variables of each process.
    """
    processes, outputs = begun(folder, function, arguments, environments)
    ends_at = time.monotonic() + LIMIT
    try:
        for process in processes:
            process.join(ends_at - time.monotonic())
        late = [number for number, process in enumerate(processes) if process.is_alive()]
    finally:
        # One that is left would keep this process from its end.
        for process in processes:
            process.kill()
            process.join()
    stdout, stderr = ("".join(path.read_text() for path in paths) for paths in zip(*outputs, strict=True))
    assert not late, f"processes {late} did not end in {LIMIT} s: {stderr}"
    return Done([process.exitcode for process in processes], stdout, stderr)


def begun(folder, function, arguments, environments):
    """Start a process for each environment, as ``forked`` does, and return them and the files of their output.

    They are forks of a process that has imported everything, for which a fresh Python takes seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    outputs = [[folder / f"process-{n}.{kind}" for kind in ("out", "err")] for n in range(len(environments))]
    processes = [
        context.Process(
            target=_call, args=(paths, {name: str(value) for name, value in each.items()}, function, arguments)
        )
        for paths, each in zip(outputs, environments, strict=True)
    ]
    for process in processes:
        process.start()
    return processes, outputs


def _call(outputs, environment, function, arguments):
    os.environ.update(environment)
    for path, stream in zip(outputs, (sys.stdout, sys.stderr), strict=True):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(1)
    function(*arguments)


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(folder, *argv, count=2, per_node=2, recompiles=False, largest=None):
    """The command in several processes that find each other as those of torchrun do.

    Args:
        folder: for files of this call alone.
        argv: of the command.
        count: how many processes, over all nodes.
        per_node: how many on each node.
        recompiles: whether they log what is compiled again.
        largest: how many bytes a file that they write may have.
    """
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": count}
    environments = [
        {**meeting, "RANK": rank, "LOCAL_RANK": rank % per_node, "LOCAL_WORLD_SIZE": per_node} for rank in range(count)
    ]
    return forked(folder, _command, ([str(word) for word in argv], recompiles, largest), environments)


def _command(argv, recompiles, largest):
    from flashkat.cli.main import run

    if largest is not None:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    torch._logging.set_logs(recompiles=recompiles)
    run(argv)


def interrupted(command, folder, number=signal.SIGINT):
    """Start a training in a folder, send a signal after its second epoch, and return its exit status and errors."""
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell has its background jobs, such as these tests may be, ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert any(line.startswith("Epoch 2/") for line in process.stdout)
        # What a terminal does: all processes of the training get it.
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, err


def from_threads(count, function):
    """Call a function from several threads at once, and return all results."""
    found = {}

    def call(number):
        found[number] = function()

    callers = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(count)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == count  # no call has raised an error
    return list(found.values())
