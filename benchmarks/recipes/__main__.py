"""Train contenders in parts that add up to one result, and compare them by seed.

Choices are made with --split validation, on a part of the training images. Claims are made with --split test.
Contenders of one seed see the same images in the same order. A contender is a model and what differs from the recipe:

  kat  vit  kat,degrees=5-4  kat,opt=muon,start=gelu  vit,lr=5e-4+1e-3,wd=all

Levels stand between plus signs, and "all" stands for every listed level. A call stops after --minutes, and the same
call goes on. Finished trainings are in the result, and do not run again. Unfinished ones go on from their checkpoints
in --work, or start anew if these are lost.
"""

import argparse
import math
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from flashkat.cli.parser import positive
from flashkat.tools.data.digits import write_digits

from ..parts.common import QUICK_RESULTS, RESULTS, ROOT, Row, arguments, read, show
from ..parts.pieces import collect_in_pieces
from .contenders import DATA_SETS, FACTORS, DataSet, expand
from .paired import difference, groups, scores, targets, tuned
from .trials import KEYS, measured, plan

__all__ = ["main"]

_ON_GPU = ("--amp", "--data-backend", "memory", "--use-multi-epochs-loader")
_ON_CPU = ("--device", "cpu")

# Accuracies of one recipe do not depend on these. Rows have their commit.
_APART = (
    *("commit", "uncommitted_changes", "flashkat", "python", "cpu", "cpu_threads"),
    *("gpu_memory_gib", "gpu_processors", "cuda", "driver"),
)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data_set", choices=DATA_SETS, help="the data set and its recipe")
    parser.add_argument(
        "data", nargs="?", type=Path, metavar="DIR", help="its images as train/CLASS/* and val/CLASS/* (not of digits)"
    )
    levels = "; ".join(f"{factor}: {', '.join(levels)}" for factor, levels in FACTORS.items())
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=["kat", "vit"],
        metavar="NAME",
        help=f"who trains (default: kat vit). Levels of the factors, the usual default first: {levels}. "
        "rlr, lr and wd take any number above 0",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2], metavar="S", help="default: 1 2")
    parser.add_argument(
        "--split", choices=("validation", "test"), default="validation", help="where to evaluate (default: validation)"
    )
    parser.add_argument("--epochs", type=positive, metavar="N", help="epochs to train (default: 100, digits 40)")
    parser.add_argument(
        "--from-epochs",
        type=positive,
        metavar="N",
        help="epochs of the ViTs that from=vit starts from (default: --epochs)",
    )
    sizes = "; ".join(f"{name}: {', '.join(data.sizes)}" for name, data in DATA_SETS.items())
    parser.add_argument("--size", metavar="NAME", help=f"size of the models, the default first: {sizes}")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="default: 256, digits 64")
    parser.add_argument(
        "--val-interval",
        type=positive,
        default=10,
        metavar="N",
        help="evaluate after each N epochs (default: %(default)s)",
    )
    parser.add_argument(
        "--at-once", type=positive, default=1, metavar="N", help="trainings at the same time (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="F", help="stop after F, to be called again")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder of runs and logs (default: output/recipes)")


def main(argv: Sequence[str] | None = None) -> None:
    """Train until the time is up, write the result and print comparisons."""
    args = arguments("recipes", f"{__doc__}", argv, _add_flags)
    deadline = time.monotonic() + 60 * args.minutes
    data_set = DATA_SETS[args.data_set]
    size = args.size or ("toy" if args.quick else next(iter(data_set.sizes)))
    if size not in data_set.sizes:
        raise SystemExit(f"no --size {size} of {data_set.name}: choose one of {', '.join(data_set.sizes)}")
    epochs = args.epochs or (2 if args.quick else data_set.epochs)
    batch_size = args.batch_size or data_set.batch_size
    try:
        contenders = [each for name in args.contenders for each in expand(name, data_set)]
    except ValueError as error:
        raise SystemExit(f"{error}") from error
    if args.output.name == "recipes.json":
        other = "" if size == next(iter(data_set.sizes)) else f"_{size}"
        args.output = (QUICK_RESULTS if args.quick else RESULTS) / f"recipes_{data_set.name}{other}.json"
    work = args.work or ROOT / "output" / "recipes" / f"{data_set.name}-{size}"
    # A shell starts background commands with interrupts ignored, and child processes would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    machine = _ON_GPU if torch.cuda.is_available() else _ON_CPU
    shared = (*data_set.flags.split(), *machine, "--batch-size", str(batch_size))
    flags = (*shared, "--val-interval", str(args.val_interval))
    trials = plan(contenders, args.seeds, args.split, size, epochs, args.from_epochs or epochs, flags)
    settings = {
        "data": data_set.name,
        "size": size,
        "model": f"{data_set.kwargs} {data_set.sizes[size]}".strip(),
        "flags": " ".join(shared),
        "recipe": {factor: data_set.default(factor) for factor in FACTORS},
        "held_out": data_set.held_out,
        "top1": "of the last epoch; ema_top1 of the averaged weights",
    }
    errors: dict[str, str] = {}
    known = _known(args.output)
    rows = measured(trials, known, _images(args.data, data_set, work), work, deadline, args.at_once, errors)
    check = targets if data_set.name == "cifar10" else lambda rows: []
    try:
        collect_in_pieces(args.output, "recipes", settings, _told(rows), KEYS, check, _APART)
    except KeyboardInterrupt:
        print("interrupted: call again to go on", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None

    found = read(args.output)["rows"]
    _show(found)
    for name, line in errors.items():
        print(f"{name} failed: {line} (see {work / name}.log)", file=sys.stderr)
    known = _known(args.output)
    left = [trial.name for trial in trials if trial.key not in known]
    if left:
        print(f"{len(left)} of {len(trials)} are not done: {', '.join(left)}. Call again to go on")
    if errors:
        raise SystemExit(1)


def _images(given: Path | None, data_set: DataSet, work: Path) -> Path:
    """Return the folder of the images. Digits are written where they are not there yet."""
    if data_set.name == "digits":
        folder = given or work / "images"
        if not folder.exists():
            write_digits(folder)
        return folder
    if given is None or not all((given / split).is_dir() for split in ("train", "val")):
        raise SystemExit(f"give the folder of {data_set.name}, with train/CLASS/* and val/CLASS/*")
    return given


def _known(path: Path) -> set[tuple[object, ...]]:
    return {tuple(row[key] for key in KEYS) for row in read(path)["rows"]} if path.exists() else set()


def _told(pieces: Iterable[list[Row]]) -> Iterable[list[Row]]:
    """Print a line for each finished training."""
    for piece in pieces:
        for row in piece:
            name = f"{row['contender']}, seed {row['seed']}, {row['epochs']} epochs, {row['split']}"
            print(f"{name}: {row['top1']:.2f}%, averaged {row['ema_top1']:.2f}%", file=sys.stderr, flush=True)
        yield piece


def _show(rows: Sequence[Row]) -> None:
    """Print a table for each split and number of epochs, with differences from the best-tuned KAT and ViT."""
    for (split, epochs, from_epochs), found in groups(rows).items():
        means, averages, best = scores(found), scores(found, "ema_top1"), tuned(found)
        table = []
        for name, by_seed in means.items():
            row: Row = {
                "contender": name,
                "seeds": len(by_seed),
                "top1": sum(by_seed.values()) / len(by_seed),
                "averaged": sum(averages[name].values()) / len(by_seed),
            }
            for family in ("kat", "vit"):
                base = best.get(f"{family},from=vit" if from_epochs else family)
                seen = None if base is None or base[0] == name else difference(by_seed, means[base[0]])
                row[f"less {base[0] if base else family}"] = (
                    "" if seen is None else f"{seen.mean:+.2f} [{seen.low:+.2f}, {seen.high:+.2f}]"
                )
            table.append(row)
        after = f", after {from_epochs} of a ViT" if from_epochs else ""
        show(f"{split}, {epochs} epochs{after}", sorted(table, key=lambda row: -row["top1"]))


if __name__ == "__main__":
    main()
