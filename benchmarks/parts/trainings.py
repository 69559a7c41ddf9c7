"""Trainings through the command line: the published recipe's flags, speeds from the summary, and memory meanwhile."""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .common import ROOT, Row

__all__ = [
    "BATCHES",
    "CONTENDERS",
    "EPOCHS",
    "RECIPE",
    "SIZES",
    "Sample",
    "launch",
    "medians",
    "output_of",
    "read_summary",
    "train",
]

CONTENDERS = {"ours": "kat_{}_patch16_224", "vit": "vit_{}_patch16_224"}
SIZES = ("tiny", "small", "base")
BATCHES = {"tiny": 1800, "small": 900, "base": 600}
"""Batches of an epoch, by the size of the model.

An H200 takes 15 to 25 seconds for them. The start of an epoch, beside the writing of a checkpoint, takes 0.1 to 0.5 s.
An epoch of ImageNet is 5 to 17 times as long.
"""

EPOCHS = 3
"""Epochs of a training whose speed is measured. The first compiles and the last evaluates, so these do not count."""

RECIPE = (
    *("--amp", "--amp-dtype", "bfloat16", "--opt", "adamw", "--lr", "1e-3", "--weight-decay", "0.05"),
    *("--clip-grad", "1", "--mixup", "0.8", "--cutmix", "1.0", "--smoothing", "0.1", "--drop-path", "0.1"),
    *("--sched", "cosine", "--model-ema", "--model-ema-decay", "0.9999", "--model-ema-warmup"),
)
"""The published recipe, without the augmentation of single images."""

_MIB_OF_KIB = 1 / 1024


@dataclass(frozen=True)
class Sample:
    """Memory at a moment of a training.

    Attributes:
        epochs: epochs that have ended.
        gpu_mib: memory in use on the fullest visible GPU, of all programs; None without a GPU.
        host_mib: memory of the process that was started.
    """

    epochs: int
    gpu_mib: float | None
    host_mib: float


def launch(gpus: int) -> list[str]:
    """Return the command that starts a module in one process for each GPU."""
    if gpus == 1:
        return [sys.executable, "-m"]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", f"{gpus}", "-m"]


def output_of(command: Sequence[str]) -> str:
    """Run a command and return what it prints.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def train(
    flags: Sequence[str], start: Sequence[str], every_s: float | None = None
) -> tuple[list[dict[str, float]], list[Sample]]:
    """Train with ``flashkat train``.

    Args:
        flags: its flags, without those of the output.
        start: the command that starts a module, see :func:`launch`.
        every_s: seconds between samples of memory; None takes none.

    Returns:
        The numbers of each epoch, as in the run's summary, and samples of memory.

    Raises:
        SystemExit: the training failed.
    """
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        command = [*start, "flashkat", "train", *flags, "--output", folder, "--experiment", "run"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            while _runs(process, every_s):
                samples += _samples(process.pid, len(read_summary(Path(folder) / "run")))
        finally:
            process.terminate()
            process.wait()
        if process.returncode:
            raise SystemExit(f"failed: {' '.join(command)}\n{Path(log.name).read_text()[-2000:]}")
        epochs = read_summary(Path(folder) / "run")
    return epochs, samples


def read_summary(run: Path) -> list[dict[str, float]]:
    """Return the numbers of each epoch in the summary of a run's folder; empty if it has none yet."""
    path = run / "summary.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def medians(epochs: Sequence[Row], names: Sequence[str]) -> Row:
    """Return medians over the epochs. The first compiles and the last evaluates, so these are left out."""
    return {name: statistics.median(epoch[name] for epoch in epochs[1:-1]) for name in names}


def _runs(process: subprocess.Popen, seconds: float | None) -> bool:
    """Wait, and return whether the process still runs after so many seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _samples(process: int, epochs: int) -> list[Sample]:
    host = _host_mib(process)
    return [] if host is None else [Sample(epochs, _gpu_mib(), host)]


def _host_mib(process: int) -> float | None:
    """Return the resident memory of a process, or None if it has ended or this is not Linux."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(found[0]) * _MIB_OF_KIB if found else None


def _gpu_mib() -> float | None:
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        query.append(f"--id={visible}")
    try:
        printed = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return max(map(float, printed.split()), default=None)
