"""Does this version take longer than an earlier one? Kernels, calls on the host, and training steps.

Each version is timed in processes of its own, in turn. OLD is a folder with the earlier version's source:

  git worktree add ../earlier COMMIT
  python -m benchmarks.versions.compare ../earlier

  --parts  kernels: the rational on the GPU, forward and backward
           host: a forward and a backward call on the host
           steps: training steps with CUDA graphs
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..parts.common import ROOT, Row, arguments, finish, require_gpu, show, target

__all__ = ["collect", "targets", "timed"]

_PARTS = ("kernels", "host", "steps")
_OVER_OLD = 1.02


def collect(old: Path, new: Path, rounds: int, time: Callable[[Path], dict[str, float]]) -> list[Row]:
    """Time two versions in turn, and return a row for each case.

    Args:
        old: folder of the earlier version.
        new: folder of the later one.
        rounds: processes of each.
        time: returns the microseconds of each case for a folder.
    """
    found: dict[Path, list[dict[str, float]]] = {old: [], new: []}
    for number in range(rounds):
        # Each is the first as often as the second, as a GPU that was idle is faster.
        for folder in (old, new) if number % 2 == 0 else (new, old):
            print(f"round {number + 1} of {rounds}: {folder}", file=sys.stderr, flush=True)
            found[folder].append(time(folder))
    rows = []
    for case in found[new][0]:
        before, after = ([times[case] for times in found[folder]] for folder in (old, new))
        old_us, new_us = statistics.median(before), statistics.median(after)
        rows.append(
            {
                "case": case,
                "old_us": round(old_us, 2),
                "new_us": round(new_us, 2),
                "over_old": round(new_us / old_us, 4),
                "old_spread": round(max(before) / min(before), 4),
                "new_spread": round(max(after) / min(after), 4),
            }
        )
    return rows


def timed(folder: Path, parts: Sequence[str]) -> dict[str, float]:
    """Time the version in a folder in a new process.

    Raises:
        SystemExit: the process failed.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "src"), str(ROOT)])}
    command = [sys.executable, "-m", "benchmarks.versions.timed", str(folder), *parts]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{folder}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets: no case takes longer than before."""
    return [target(f"{row['case']}: time over the earlier version's", row["over_old"], _OVER_OLD) for row in rows]


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path, metavar="OLD", help="folder with the source of the earlier version")
    parser.add_argument(
        "--rounds", type=int, default=4, metavar="N", help="processes of each version (default: %(default)s)"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Time both versions, write the result and print it."""
    args = arguments("versions.compare", __doc__ or "", argv, _add_flags, {"parts": _PARTS})
    if not (args.old / "src" / "flashkat").is_dir():
        raise SystemExit(f"{args.old} has no src/flashkat: give a checkout of an earlier version")
    require_gpu()
    rounds = 1 if args.quick else args.rounds
    rows = collect(args.old.resolve(), ROOT, rounds, lambda folder: timed(folder, args.parts))
    settings = {
        "timing": f"least of 5 measurements in a process, median over {rounds} processes, versions in turn",
        "kernels": "x (25216, D) in bfloat16, 8 groups, coefficients ~ N(0, 1)",
        "steps": "batch 128, 224 px, autocast to bfloat16, CUDA graphs",
    }
    show("versions", rows)
    finish(args.output, "compare", settings, rows, targets(rows))


if __name__ == "__main__":
    main()
