"""Evaluate one model, or each of a list of models or checkpoints, and write the results."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils.misc import natural_key

from ..defaults import RESULT_FORMATS
from ..errors import InputError, UnreachableError
from ..system import distributed
from ..system.files import check_writable
from ..system.heartbeat import watched
from .config import Config
from .results import write_results
from .validate import PassError, Say, check_processes, prepare, validate_on

__all__ = ["validate_all"]

_CHECKPOINTS = ("*.pth.tar", "*.pth", "*.safetensors", "*.npz")

# timm's pattern for "--model all".
_ALL = "*kat_*"

# timm's results begin so too, as CSV or JSON.
_RESULTS = r'model,|[\[{\s]+"model":'


def validate_all(
    config: Config, results_file: str = "", results_format: str = "csv", say: Say = lambda line: None
) -> dict[str, Any] | list[dict[str, Any]]:
    """Evaluate a model, or each of a list of models or checkpoints.

    Under torchrun all processes call this together. The first one prints and writes.

    Args:
        config: ``trained.checkpoint`` may be a folder. ``model.model`` may be a file of names, a pattern or "all".
        results_file: where to write the results; by default a list goes to results-all.csv.
        results_format: "csv" or "json".
        say: called with each of timm's lines.

    Returns:
        The row of one result, or the rows of a list from best to worst. See :meth:`Result.row`.

    Raises:
        InputError: the configuration cannot be used, or no model of a list can be evaluated.
    """
    if results_format not in RESULT_FORMATS:
        raise InputError(f"--results-format must be one of {', '.join(RESULT_FORMATS)}, not {results_format!r}")
    prepare(config)
    with distributed.joined(config.runtime.device) as device, watched(distributed.rank(), distributed.size()):
        check_processes(config.evaluation)
        is_primary = distributed.is_primary()
        say = say if is_primary else lambda line: None
        jobs = _jobs(config)
        results_file = results_file or ("" if jobs is None else "results-all.csv")
        if results_file:
            check_writable(Path(results_file), begins=_RESULTS)
        results: Any = validate_on(config, device, say).row() if jobs is None else _each(jobs, device, say)
        if results_file and is_primary:
            write_results(results_file, results, results_format)
            say(f"Wrote {results_file}")
    return results


def _jobs(config: Config) -> list[tuple[str, Config]] | None:
    """Return a name and a configuration for each model or checkpoint, or None if the configuration names only one."""
    path, name = config.trained.checkpoint, config.model.model
    if path and Path(path).is_dir():
        paths = {str(found) for pattern in _CHECKPOINTS for found in Path(path).glob(pattern)}
        if not paths:
            raise InputError(f"no checkpoints ({', '.join(_CHECKPOINTS)}) in {path}")
        return [
            (found, replace(config, trained=replace(config.trained, checkpoint=found)))
            for found in sorted(paths, key=natural_key)
        ]
    if not name or timm.is_model(name):
        return None
    if Path(name).is_file():
        try:
            names = [line.strip() for line in Path(name).read_text().splitlines()]
        except UnicodeDecodeError as error:
            raise InputError(f"--model {name} is no text with a name a line: weights go with --checkpoint") from error
        names = [line for line in names if line and not line.startswith("#")]
    elif name == "all" or any(sign in name for sign in "*?["):
        names = timm.list_models(_ALL if name == "all" else name, pretrained=not path)
    else:
        return None
    if not names:
        weights = "" if path else " that have published weights"
        raise InputError(f"--model {name} names no models{weights}")
    return [(each, replace(config, model=replace(config.model, model=each))) for each in names]


def _each(jobs: list[tuple[str, Config]], device: torch.device, say: Say) -> list[dict[str, Any]]:
    results, errors, told = [], [], set[str]()
    for name, config in jobs:
        try:
            row = validate_on(config, device, say, told).row()
        except (UnreachableError, PassError):
            # Every further download would take as long to fail. After a pass, the other processes wait for this one.
            raise
        except InputError as error:
            errors.append(error)
            say(f"{config.trained.checkpoint or name} is left out: {error}")
        else:
            is_checkpoint = name == config.trained.checkpoint
            results.append({**row, "checkpoint": name} if is_checkpoint else row)
    if not results:
        raise errors[0]
    return sorted(results, key=lambda row: row["top1"], reverse=True)
