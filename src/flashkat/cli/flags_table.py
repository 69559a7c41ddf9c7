"""Writes docs/flags.md, from the parsers and from what is left out; see ``make flags``."""

import argparse

from .left_out import LEFT_OUT
from .parser import Parser
from .train_flags import add_training_arguments
from .validate_flags import add_validation_arguments

__all__ = ["table"]

_BEFORE = """\
# Flags

`flashkat train` and `flashkat validate` (or `python train.py`, `python validate.py` from a checkout) take the flags of
timm's scripts, with their names, defaults and meanings. This page is made from the program: `make flags`.

What differs from timm:

- `--amp-dtype` is bfloat16 by default (timm: float16), `--model` a KAT, `--num-classes` as many as the data set lists,
  `--workers` no more than there are cores.
- An image that cannot be decoded is an error that names it; timm puts its neighbour in its place. Streamed data
  (`wds/`, `hfids/`, `tfds/`) is as timm reads it, which skips such a sample with a warning. In evaluation every process
  reads the whole stream and counts its share, where timm's shares repeat some samples; training on fewer shards than
  workers is an error.
- Mixup and cutmix work on the device, on normalised images after random erasing; timm mixes while it collates batches,
  and erases afterwards. `--mixup-mode half` draws a share per image, as `elem`.
- `--kd-distill-type` is `logit` alone. The teacher keeps its classes, which have to be as many as the data's, and sees
  images of the student's size; it is not compiled.
- `--bce-loss` is used without label smoothing and mixing too, where timm falls back to cross-entropy.
- `--epoch-repeats` repeats every kind of data set; `--tta` computes the views (timm expects a loader that makes them).
- `--initial-checkpoint` takes averaged weights where there are any, as timm, and a ViT's or a KAT's weights for another
  number of classes or image size, as `--pretrained-path`, which needs no `--pretrained` here. `--partial` takes what
  fits of others.
- `flashkat validate` takes from a checkpoint what it says of its model and its images (size, crop, interpolation, mean,
  standard deviation), where `--model` is the same or not given; timm takes the model's.
- `--log-wandb` without wandb, `--wandb-project` and the like without `--log-wandb`, and `--use-ema` of a checkpoint
  without averaged weights are errors; timm goes on without.
- Each image's augmentation is drawn from the seed, the epoch and its place in the order, so that `--workers` and
  `--worker-seeding` do not matter to it, but for streamed data.
- Progress is printed as `Epoch 1/300` and one line per epoch; checkpoints and `summary.csv` count epochs from 0, as
  timm's. `eval_top1` is of the model's own weights and `eval_ema_top1` of the averaged ones; `metric` is the better.
- `--recovery-interval` counts updates from the beginning of an epoch; the last two recovery checkpoints are kept.
- `--sync-bn` on CPUs is an error where the model has batch norms, as PyTorch has none of these for CPUs.
- On GPUs, training compiles the model, on one GPU with CUDA graphs, multiplies float32 numbers in TF32 and takes
  PyTorch's fused optimisers without being told, and every loader pins memory; `--no-compile`, `--no-tf32`,
  `--opt-kwargs fused=False` and `--no-pin-mem` bring timm's defaults back.
- `--fake-data`, `--fsdp`, `--no-compile`, `--no-pin-mem`, `--no-tf32`, `--partial`, `--rational-lr-scale`,
  `--rational-weight-decay`, and `--tta` of `flashkat validate`, are ours.
"""


def table() -> str:
    """The page, in Markdown."""
    parsers = {"train": Parser(), "validate": Parser()}
    add_training_arguments(parsers["train"])
    add_validation_arguments(parsers["validate"])
    found: dict[str, dict[str, list[str]]] = {}
    for command, parser in parsers.items():
        for action in parser._actions:
            if action.option_strings and action.dest != "help":
                key = action.option_strings[-1].replace("_", "-")
                found.setdefault(key, {}).setdefault(_row(action), []).append(command)
    lines = [_BEFORE, "## What there is", "", "| flag | command | what it does |", "| --- | --- | --- |"]
    for rows in found.values():
        for row, commands in rows.items():
            lines.append(row.format("both" if len(commands) == 2 else commands[0]))
    lines += ["", "## What is left out", "", "| flag | why |", "| --- | --- |"]
    lines += [f"| `{name}` | {why.reason} |" for name, why in LEFT_OUT.items()]
    return "\n".join(lines) + "\n"


def _row(action: argparse.Action) -> str:
    """A flag's row, with a place for the commands that have it so."""
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    values = f" {_metavar(action)}" if action.nargs != 0 else ""
    return f"| {names}{values} | {{}} | {action.help} |"


def _metavar(action: argparse.Action) -> str:
    if action.metavar:
        return str(action.metavar)
    return " \\| ".join(str(choice) or '""' for choice in action.choices) if action.choices else "VALUE"


if __name__ == "__main__":
    print(table(), end="")
