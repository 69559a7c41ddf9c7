"""Kill tiny trainings with SIGKILL, resume them, and compare: ``python -m dev.kills --chains 100`` or ``--steps``.

The folder of a run that was killed must end with the same bits as that of a run that never was. A chain is killed some
times at random moments. ``--steps`` kills a run before each call of the file system on its folder, once at each.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

__all__ = ["Kills", "differences"]

_PRELOADED = ["flashkat.training", "flashkat.cli.main", "flashkat.training.outputs.folder", "dev.kills"]
_KWARGS = ["patch_size=4", "embed_dim=16", "depth=1", "num_heads=2"]
_FLAGS = [
    *("--img-size", "8", "--model-kwargs", *_KWARGS, "-b", "4", "--device", "cpu", "--model-ema", "--opt", "adamw"),
    *("--warmup-epochs", "0", "--mixup", "0.5", "--experiment", "run", "--resume", "auto", "--checkpoint-hist", "2"),
]
# How chains differ: workers, recoveries, epochs without evaluation, updates of several batches.
_VARIANTS = [
    ["-j", "0", "--recovery-interval", "1"],
    ["-j", "1", "--recovery-interval", "2"],
    ["-j", "0", "--recovery-interval", "0", "--grad-accum-steps", "2"],
    ["-j", "0", "--recovery-interval", "1", "--val-interval", "2"],
]
# Columns of the summary that no two runs share.
_COSTS = {"seconds", "images_per_second", "data_wait"}
_STEPS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class Kills:
    """Runs that are killed and resumed.

    Args:
        folder: an empty one, for data and runs.
        seed: of the moments.
        epochs: of each run.
    """

    def __init__(self, folder: Path, seed: int = 0, epochs: int = 4) -> None:
        self._folder, self._seed, self._epochs = folder, seed, epochs
        self._run = folder / "output" / "run"
        self._straight: dict[int, tuple[Path, float]] = {}
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        first = self._context.Process(target=int)  # once all is imported, as the length of a run counts
        first.start()
        first.join()
        generator = np.random.default_rng(0)
        for split, count in (("train", 8), ("val", 2)):
            for name, level in (("dark", 70), ("light", 185)):
                (folder / "data" / split / name).mkdir(parents=True)
                for number in range(count):
                    pixels = generator.normal(level, 20, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / "data" / split / name / f"{number}.png")

    def chain(self, number: int) -> tuple[int, list[str]]:
        """Kill a run at random moments, resume it each time, and return the number of kills and what differs."""
        numbers = random.Random(f"{self._seed} {number}")
        variant = numbers.randrange(len(_VARIANTS))
        straight, seconds = self._undisturbed(variant)
        killed = 0
        for _ in range(numbers.randint(1, 5)):
            moment = numbers.uniform(0, seconds)
            while not (is_killed := self._killed(variant, moment)) and not killed:
                # The machine was busier when the undisturbed run was timed.
                shutil.rmtree(self._run)
                moment /= 2
            killed += is_killed
        return killed, self._resumed(variant, straight)

    def _killed(self, variant: int, seconds: float) -> bool:
        """Start the run, or go on with it, and return whether it was killed at a moment before its end."""
        process = self._start(variant)
        process.join(seconds)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), (self._folder / "log.txt").read_text()
        return process.exitcode != 0

    def steps(self) -> Iterator[list[str]]:
        """Kill a run before each of its file-system steps, and yield what differs after it was resumed."""
        straight, _ = self._undisturbed(0)
        step = 0
        while True:
            step += 1
            process = self._start(0, step)
            process.join()
            if process.exitcode == 0:
                shutil.rmtree(self._run)
                return
            assert process.exitcode == -signal.SIGKILL, f"status {process.exitcode}"
            yield self._resumed(0, straight)

    def _resumed(self, variant: int, straight: Path) -> list[str]:
        """Resume the run to its end, remove it, and return what differs from an undisturbed one."""
        process = self._start(variant)
        process.join()
        found = [f"status {process.exitcode}"] if process.exitcode else differences(straight, self._run)
        shutil.rmtree(self._run, ignore_errors=True)
        return found

    def _undisturbed(self, variant: int) -> tuple[Path, float]:
        if variant not in self._straight:
            began, process = time.perf_counter(), self._start(variant)
            process.join()
            assert process.exitcode == 0, (self._folder / "log.txt").read_text()
            path = self._folder / f"straight-{variant}"
            # The same folder, as checkpoints name it.
            self._run.rename(path)
            self._straight[variant] = path, time.perf_counter() - began
        return self._straight[variant]

    def _start(self, variant: int, step: int = 0) -> Any:
        flags = [*_FLAGS, *_VARIANTS[variant], "--epochs", str(self._epochs), "--output", str(self._run.parent)]
        argv = ["train", str(self._folder / "data"), *flags]
        process = self._context.Process(target=_train, args=(argv, str(self._folder), step))
        process.start()
        return process


def _train(argv: list[str], folder: str, step: int) -> None:
    """Run the command; with ``step``, be killed before that many steps on the run's folder."""
    from flashkat.cli.main import main
    from flashkat.system.files import replaced
    from flashkat.training.outputs import folder as outputs

    def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
        with replaced(path) as partial:
            partial.write_text(str([_without_costs(row) for row in rows]))

    with (Path(folder) / "log.txt").open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loading processes, as in a command
    setattr(outputs, "draw_curves", draw_curves)  # noqa: B010 - drawing takes most of the time
    if step:
        _kill_before(step, str(Path(folder) / "output" / "run"))
    sys.exit(main(argv))


def _kill_before(step: int, folder: str) -> None:
    steps, flush = 0, os.fsync

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _STEPS and any(str(each).startswith(folder) for each in arguments[:2]):
            count()

    def counted(descriptor: int) -> None:
        count()
        flush(descriptor)

    sys.addaudithook(hook)
    setattr(os, "fsync", counted)  # noqa: B010 - which raises no audit event


def differences(one: Path, other: Path) -> list[str]:
    """Return which files of two runs differ, apart from times."""
    names, others = ({path.name for path in folder.iterdir()} for folder in (one, other))
    found = [f"{name} is in one only" for name in sorted(names ^ others)]
    return found + [f"{name} differs" for name in sorted(names & others) if not _is_same(one / name, other / name)]


def _is_same(one: Path, other: Path) -> bool:
    read: Callable[[Path], Any] = Path.read_bytes
    if one.name.endswith(".pth.tar"):
        read = _checkpoint
    elif one.suffix == ".csv":
        read = _rows
    return _is_equal(read(one), read(other))


def _checkpoint(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    checkpoint["run"]["history"] = [_without_costs(row) for row in checkpoint["run"]["history"]]
    del checkpoint["args"]["resume"]  # names what the run has gone on from
    return checkpoint


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return [_without_costs(row) for row in csv.DictReader(file)]


def _without_costs(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _COSTS}


def _is_equal(one: Any, other: Any) -> bool:
    """Return whether nested values have the same bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    return bool(one == other)


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=100, metavar="N")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    args = parser.parse_args()
    began, runs, killed, different = time.perf_counter(), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        kills = Kills(Path(folder), args.seed, epochs=2 if args.steps else 4)
        results = ((1, each) for each in kills.steps()) if args.steps else map(kills.chain, range(args.chains))
        for number, (count, found) in enumerate(results):
            runs, killed, different = runs + 1, killed + count, different + bool(found)
            if found:
                print(f"run {number}: {', '.join(found)}", flush=True)
    seconds = round(time.perf_counter() - began)
    print(json.dumps({"runs": runs, "kills": killed, "different": different, "seconds": seconds}))
    return int(different > 0)


if __name__ == "__main__":
    raise SystemExit(_main())
