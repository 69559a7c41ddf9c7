"""Shared parts of the benchmarks: flags, environment, timers, targets, and results as JSON and tables."""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "output" / "benchmarks"

Call = Callable[[], object]
Measure = Callable[[Call], float]
Row = dict[str, Any]

LABELS = {
    "ours": "ours",
    "ours, saved": "ours, values saved",
    "gelu": "GELU",
    "copy": "copy",
    "flashkat paper": "FlashKAT paper's kernel",
    "kat": "KAT's kernel",
    "formula, compiled": "formula, compiled",
    "formula, eager": "formula, eager",
    "floor": "floor: float32 terms, summed exactly",
    "vit": "ViT",
    "nothing": "floor: Python, no kernels",
}
"""The names of contenders in tables and figures, in their order there."""

_PACKAGES = ("flashkat", "torch", "triton", "timm")


# The command line


def arguments(
    name: str,
    description: str,
    argv: Sequence[str] | None = None,
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    parts: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> argparse.Namespace:
    """Parse the flags of a benchmark: ``output`` (a path), ``quick``, and its own.

    Args:
        name: name of the benchmark's module, with its folder if any. The result has the name of the module alone.
        description: text of the help, with its line breaks.
        argv: the arguments; None takes those of the process.
        add_flags: adds the benchmark's own flags.
        parts: choices by name. Each becomes a flag ``--NAME`` that picks from them; the default is all.
    """
    file = f"{name.rpartition('.')[2]}.json"
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"default: {RESULTS / file}, with --quick {QUICK_RESULTS / file}",
    )
    parser.add_argument(
        "--quick", action="store_true", help="toy sizes and few repeats, to try the command; its targets mean nothing"
    )
    add_flags(parser)
    for part, choices in parts.items():
        text = f"any of {', '.join(choices)} (default: all)"
        parser.add_argument(f"--{part}", nargs="+", metavar="NAME", choices=choices, default=list(choices), help=text)
    args = parser.parse_args(argv)
    args.output = args.output or (QUICK_RESULTS if args.quick else RESULTS) / file
    return args


def require_gpu() -> None:
    """End the program with one line if there is no CUDA GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA GPU, and torch sees none here")


# Where it ran


def environment() -> dict[str, Any]:
    """Return what the numbers depend on: machine, versions, and the measured commit."""
    commit, dirty = _commit()
    description: dict[str, Any] = {
        "commit": commit,
        "uncommitted_changes": dirty,
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "cpu": _cpu(),
        "cpu_threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        description |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "gpu_processors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    return description


def _commit() -> tuple[str | None, bool | None]:
    """Return the last commit that changed code, and whether code has uncommitted changes.

    For a copy without a current git history, FLASHKAT_COMMIT gives the commit.
    """
    if "FLASHKAT_COMMIT" in os.environ:
        return os.environ["FLASHKAT_COMMIT"], None
    code = ("src", "benchmarks", ":!benchmarks/results")
    commit = _first_line("git", "log", "-1", "--format=%H", "--", *code)
    if commit is None:
        return None, None
    return commit, bool(_first_line("git", "status", "--porcelain", "--", *code))


def _first_line(*command: str) -> str | None:
    """Return the first line that a command prints, or None if it fails or does not exist."""
    try:
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.partition("\n")[0].strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# Timing


def alternate(
    contenders: Mapping[str, Call], measure: Measure, rounds: int, patience_us: float = math.inf
) -> dict[str, Row]:
    """Time contenders in turn, so that a drifting clock affects all of them alike.

    Args:
        contenders: the calls by name. Each is first called once, to compile.
        measure: returns the microseconds of a call.
        rounds: measurements of each contender.
        patience_us: a contender is not measured again once its measurements add up to this.

    Returns:
        By name, the ``median_us`` of the measurements and their ``min_us`` and ``max_us``.
    """
    for call in contenders.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            if sum(times[name]) < patience_us:
                times[name].append(measure(call))
    return {
        name: {
            "median_us": round(statistics.median(found), 3),
            "min_us": round(min(found), 3),
            "max_us": round(max(found), 3),
        }
        for name, found in times.items()
    }


class GpuTimer:
    """Microseconds on the device: the median of several calls, each after a flush of the L2 cache.

    It measures as ``triton.testing.do_bench``, with one difference. The device waits until the host has queued all
    calls, so that slow launches do not count. ``host_time.py`` measures those.

    Args:
        budget_ms: device time of a measurement, without flushes; at least one call is made.
        most: the most calls of a measurement.
    """

    _FLUSH_BYTES = 2**28  # several times the L2 cache of any current GPU
    _CYCLES_PER_SECOND = 2e9  # at least the clock of any current GPU
    _LAUNCH_SECONDS = 50e-6  # a flush and two events
    _LONGEST_WAIT_SECONDS = 0.1

    def __init__(self, budget_ms: float = 8.0, most: int = 40) -> None:
        self._budget_ms = budget_ms
        self._most = most
        self._flushed = torch.empty(self._FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def __call__(self, call: Call) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        host_seconds = time.perf_counter() - start
        torch.cuda.synchronize()
        total_ms = (time.perf_counter() - start) * 1e3
        repeats = max(1, min(self._most, int(self._budget_ms / total_ms)))

        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        wait = min(self._LONGEST_WAIT_SECONDS, repeats * (host_seconds + self._LAUNCH_SECONDS))
        torch.cuda._sleep(int(wait * self._CYCLES_PER_SECOND))
        for before, after in events:
            self._flushed.zero_()
            before.record()
            call()
            after.record()
        torch.cuda.synchronize()
        return statistics.median(before.elapsed_time(after) * 1e3 for before, after in events)


class HostTimer:
    """Microseconds on the host: the median over ``repeats`` calls, each timed alone.

    Args:
        repeats: calls of a measurement, after a tenth as many for warm-up.
    """

    def __init__(self, repeats: int) -> None:
        self._repeats = repeats

    def __call__(self, call: Call) -> float:
        _synchronize()
        times = []
        for _ in range(self._repeats + self._repeats // 10):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return statistics.median(times[-self._repeats :]) * 1e6


class StepTimer:
    """Microseconds of a call in a row of calls, in which host and device work at once.

    The time is the mean over as many calls as fit the budget, between two idle states of the device. A call that takes
    longer than the budget is measured once.

    Args:
        budget_s: seconds of a measurement.
        most: the most calls of a measurement.
    """

    def __init__(self, budget_s: float = 0.5, most: int = 200) -> None:
        self._budget_s = budget_s
        self._most = most

    def __call__(self, call: Call) -> float:
        alone = self._seconds(call, 1)
        repeats = min(self._most, int(self._budget_s / alone))
        return (self._seconds(call, repeats) / repeats if repeats > 1 else alone) * 1e6

    def _seconds(self, call: Call, repeats: int) -> float:
        _synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        _synchronize()
        return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# Targets


def target(name: str, value: float | None, limit: float, at_least: bool = False) -> Row:
    """Return a target: a number that has to be at most (or at least) a limit. None was not measured, and misses it."""
    met = value is not None and (value >= limit if at_least else value <= limit)
    bound = "at least" if at_least else "at most"
    rounded = None if value is None else float(f"{value:.4g}")
    return {"name": name, "value": rounded, "bound": bound, "limit": limit, "met": met}


def requirement(name: str, holds: bool | None) -> Row:
    """Return a target that has to be true. None was not measured, and misses it."""
    return {"name": name, "value": holds, "bound": "is", "limit": True, "met": bool(holds)}


# Results


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a result as JSON with a line per row, so that results are easy to compare."""
    parts = [f" {json.dumps(key)}: {_format(value)}" for key, value in document.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _format(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n ]"
    return json.dumps(value)


def read(path: Path) -> dict[str, Any]:
    """Read a result that :func:`write` wrote."""
    return json.loads(path.read_text())


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows as a table whose columns are the keys of the first. Without rows, print the title alone."""
    table = Table(title=title, title_justify="left")
    for key in rows[0] if rows else ():
        table.add_column(key, justify="right" if isinstance(rows[0][key], int | float) else "left")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if os.isatty(1) else 160).print(table if rows else title)


def save(path: Path, name: str, settings: Mapping[str, Any], rows: list[Row], targets: list[Row]) -> None:
    """Write a benchmark's result with its environment."""
    write(
        path,
        {"benchmark": name, "environment": environment(), "settings": settings, "rows": rows, "targets": targets},
    )


def finish(path: Path, name: str, settings: Mapping[str, Any], rows: list[Row], targets: list[Row]) -> None:
    """Write a benchmark's result, and print the measured targets, missed ones first."""
    save(path, name, settings, rows, targets)
    measured = sorted((row for row in targets if row["value"] is not None), key=lambda row: row["met"])
    if targets:
        missing = f", {len(targets) - len(measured)} not measured" if len(measured) < len(targets) else ""
        show(f"{name}: {sum(row['met'] for row in measured)} of {len(measured)} targets met{missing}", measured)
    print(f"wrote {path}")
