"""A training as a terminal runs it, and ends it on Ctrl-C."""

import os
import signal
import subprocess
import sys


def interrupted(command, folder):
    """Start a training in a folder and interrupt it after its second epoch; its exit status and what it had to say."""
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
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, err
