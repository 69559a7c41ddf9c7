"""The trainings of the study: what they run, and what they leave for its result."""

import json
import math
import shutil
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashkat import checkpoints
from flashkat.tools.flops import flops

from ..cifar10 import Run, train
from ..parts.common import Row, environment
from .contenders import Contender, parse
from .functions import learned_functions

__all__ = ["KEYS", "Trial", "measured", "plan", "summary"]

KEYS = ("contender", "seed", "split", "epochs", "from_epochs")
"""The entries of a row that identify its training."""


@dataclass(frozen=True)
class Trial(Run):
    """A training of a contender.

    Attributes:
        split: "validation" trains without the held-out part of the training images, and evaluates on it. "test" trains
            on all of them, and evaluates on the test images.
        held_out: the share that is held out.
        start: what the second rationals of a KAT start as.
        source: the training of a ViT to start from.
    """

    split: str = "validation"
    held_out: str = ""
    start: str = ""
    source: "Trial | None" = None

    @property
    def from_epochs(self) -> int:
        """Epochs of the ViT to start from; 0 from scratch."""
        return self.source.epochs if self.source else 0

    @property
    def key(self) -> tuple[str, int, str, int, int]:
        """The values of ``KEYS``."""
        return self.contender, self.seed, self.split, self.epochs, self.from_epochs

    @property
    def name(self) -> str:
        """The run's folder, relative to the common one."""
        after = f"-after-{self.from_epochs}" if self.source else ""
        return f"{self.split}-{self.epochs}{after}/{self.contender}-{self.seed}"

    def command(self, data: Path, work: Path, workers: int) -> list[str]:
        """Return the command that starts or resumes the run. A folder that cannot be resumed is removed."""
        chooses = self.split == "validation"
        command = super().command(data / "train" if chooses else data, work, workers)
        if chooses:
            command += ["--val-fraction", self.held_out]
        if self.source and "--resume" not in command:
            command += ["--pretrained-path", str(work / self.source.name / "last.pth.tar")]
        return command


def plan(
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    split: str,
    size: str,
    epochs: int,
    from_epochs: int,
    flags: Sequence[str],
) -> list[Trial]:
    """Return a trial for each seed and contender, seed by seed, so that pairs are complete early.

    Args:
        contenders: who trains. One that comes twice trains once.
        seeds: the seeds, likewise.
        split: where to evaluate: "validation" or "test".
        size: size of the models.
        epochs: epochs of each training.
        from_epochs: epochs of the ViTs that contenders start from.
        flags: flags that all share.
    """

    def trial(contender: Contender, seed: int, epochs: int, source: Trial | None = None) -> Trial:
        # The contender's own flags override those of the recipe.
        data = contender.data
        warmup = ("--warmup-epochs", str(max(1, epochs // 5))) if epochs < 5 * data.warmup_epochs else ()
        own = (*flags, *warmup, *contender.flags(size), "--seed", str(seed))
        start = contender.level("start") if contender.family == "kat" else ""
        return Trial(str(contender), seed, own, epochs, split=split, held_out=data.held_out, start=start, source=source)

    def source(contender: Contender, seed: int) -> Trial | None:
        return trial(parse("vit", contender.data), seed, from_epochs) if contender.level("from") == "vit" else None

    planned = (trial(contender, seed, epochs, source(contender, seed)) for seed in seeds for contender in contenders)
    return list(dict.fromkeys(planned))


def measured(
    trials: Sequence[Trial],
    known: Collection[tuple[object, ...]],
    data: Path,
    work: Path,
    deadline: float,
    at_once: int,
    errors: dict[str, str],
) -> Iterator[list[Row]]:
    """Train what is not known yet, and yield the row of each training that is done.

    The folder of a finished run is removed, unless another one of ``trials`` starts from it.

    Args:
        trials: the trainings.
        known: the keys of those that the result has.
        data: folder of the data set.
        work: folder of the runs.
        deadline: time to stop, as of ``time.monotonic``.
        at_once: how many train at the same time.
        errors: receives the last line of each failed run, by name.
    """
    left = [trial for trial in trials if trial.key not in known]
    sources = list(dict.fromkeys(trial.source for trial in left if trial.source))
    for trial in _ended(sources, data, work, deadline, at_once, errors):
        yield [summary(trial, work)]
    others = [trial for trial in left if trial not in sources]
    startable = [trial for trial in others if trial.source is None or trial.source.is_done(work)]
    for trial in _ended(startable, data, work, deadline, at_once, errors):
        yield [summary(trial, work)]
        shutil.rmtree(work / trial.name)


def _ended(
    trials: Sequence[Trial], data: Path, work: Path, deadline: float, at_once: int, errors: dict[str, str]
) -> Iterator[Trial]:
    """Yield the trials that ended earlier, then the others as they end."""
    done = [trial for trial in trials if trial.is_done(work)]
    yield from done
    left = {trial.name: trial for trial in trials if trial not in done}
    for run, line in train(left.values(), data, work, deadline, at_once):
        if line:
            errors[run.name] = line
        elif run.is_done(work):
            yield left[run.name]


def summary(trial: Trial, work: Path) -> Row:
    """Return the row of a finished trial, from its folder in ``work``."""
    epochs = trial.rows(work)
    evaluated = [row for row in epochs if "eval_top1" in row]
    checkpoint = checkpoints.read(work / trial.name / "last.pth.tar")
    weights, args = checkpoint["state_dict"], checkpoint["args"]
    cost = json.loads(
        flops(args["model"], args["img_size"], len(checkpoint["classes"]), args["model_kwargs"], as_json=True)
    )
    losses = [value for row in epochs for name, value in row.items() if name.endswith("_loss")]
    return {
        **dict(zip(KEYS, trial.key, strict=True)),
        "parameters": cost["total"]["parameters"],
        "gflops": round(cost["total"]["flops"] / 1e9, 6),
        "top1": evaluated[-1]["eval_top1"],
        "ema_top1": evaluated[-1]["eval_ema_top1"],
        "finite": all(map(math.isfinite, losses)),
        "train_loss": round(epochs[-1]["train_loss"], 4),
        "images_per_second": statistics.median(row["images_per_second"] for row in epochs[1:] or epochs),
        "commit": environment()["commit"],
        "curve": {
            "epoch": [int(row["epoch"]) + 1 for row in evaluated],
            "top1": [row["eval_top1"] for row in evaluated],
            "ema_top1": [row["eval_ema_top1"] for row in evaluated],
        },
        "functions": learned_functions(weights, trial.start) if trial.start else [],
    }
