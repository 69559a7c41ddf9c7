"""Write docs/reference/flags.md from the parsers and the list of missing flags: ``make flags``."""

import argparse

from .left_out import LEFT_OUT
from .parser import Parser
from .train_flags import add_training_arguments
from .validate_flags import add_validation_arguments

__all__ = ["table"]

_BEFORE = """\
# Flags

`flashkat train` and `flashkat validate` take the flags of timm's scripts, with the same names, defaults and meanings.
`make flags` writes this page from the program.

## What differs from timm

**Defaults.**

| flag | here | in timm |
| --- | --- | --- |
| `--amp-dtype` | bfloat16 | float16 |
| `--model` | a KAT | a CNN |
| `--num-classes` | as many as the data set lists | the model's |
| `--workers` | at most the number of cores | 4 |

On GPUs, training compiles the model and takes PyTorch's fused optimisers.
Each whole step is a CUDA graph, on one GPU and on several. Every loader pins memory. These flags bring timm's
defaults back: `--no-compile`, `--opt-kwargs fused=False`, `--no-pin-mem`.
Float32 products are in TF32, as in timm's `train.py`. `--no-tf32` computes them in float32.

**Data.**

- An image that cannot be decoded is an error that names it. timm puts its neighbour in its place.
  `--skip-bad-images` does so too, and lists the image. Evaluation does not count it.
- Classes are the first folders below a split. timm takes the last folder of a path.
- Every format that Pillow decodes by itself is read. timm reads `.png`, `.jpg` and `.jpeg`.
- 16-bit and float images are scaled to 8 bits. timm clips them at 255.
- `--val-split ''` trains without evaluation, as in timm. Other splits need a name.
- Streamed data (`wds/`, `hfids/`, `tfds/`) is as timm reads it, and skips such a sample with a warning.
  With `--data-backend dali` or `dali-cpu`, damage of `wds/` that only decoding shows is an error that names the image.
- In the evaluation of streamed data, every process reads all and counts its share. timm's shares repeat some samples.
- Training on fewer shards than workers is an error.
- `--epoch-repeats` repeats every kind of data set. Each epoch draws its own images for a partial pass.
- Each image's augmentation depends on the seed, the epoch and its place in the order. So `--workers` and
  `--worker-seeding` do not change it, except for streamed data.
- Mixup and cutmix work on the device, on normalised images after random erasing. timm mixes while it collates batches,
  and erases afterwards. `--mixup-mode half` draws a share per image, as `elem` does.

**Losses and teachers.**

- `--bce-loss` is used without label smoothing and mixing too. timm falls back to cross-entropy there.
- `--kd-distill-type` is `logit` alone. The teacher is not compiled, and sees images of the student's size.
  It must have as many classes as the data.

**Weights.**

- `--initial-checkpoint` takes averaged weights if there are any, as in timm.
- `--initial-checkpoint` and `--pretrained-path` take the weights of a ViT or a KAT for another number of classes or
  image size. `--pretrained-path` needs no `--pretrained`.
- `--partial` loads what fits of other weights.
- `flashkat validate` takes model, image size and mode, crop, interpolation, mean and standard deviation from the
  checkpoint. It does so if `--model` is the same or not given. timm takes the model's.
- `--tta` computes the views. timm expects a loader that makes them.

**Errors where timm continues.**

- `--wandb-project` and the like without `--log-wandb`.
- `--use-ema` with a checkpoint that has no averaged weights.
- `--sync-bn` on CPUs with a model that has batch norms. PyTorch has no such norms for CPUs.

**Output.**

- The screen counts epochs from 1. Checkpoints and `summary.csv` count from 0, as timm's do.
- `eval_top1` is of the model's own weights, and `eval_ema_top1` of the averaged ones. `metric` is the better one.
- `--recovery-interval` counts updates from the beginning of an epoch. The last two recovery checkpoints are kept.

**Our own flags**: `--data-backend`, `--fake-data`, `--find-nonfinite`, `--fsdp`, `--loader-timeout`,
`--log-functions`, `--log-tensorboard`, `--max-bad-images`, `--max-bad-steps`, `--no-compile`, `--no-pin-mem`,
`--no-recompute-rationals`, `--no-tf32`, `--partial`, `--rational-lr-scale`, `--rational-weight-decay`,
`--skip-bad-images`, `--val-fraction`, and `--tta` of `flashkat validate`.
"""


def table() -> str:
    """Return the page, in Markdown."""
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
    """Return a flag's row, with a placeholder for the commands that have it."""
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    values = f" {_metavar(action)}" if action.nargs != 0 else ""
    return f"| {names}{values} | {{}} | {action.help} |"


def _metavar(action: argparse.Action) -> str:
    if action.metavar:
        return str(action.metavar)
    return " \\| ".join(str(choice) or '""' for choice in action.choices) if action.choices else "VALUE"


if __name__ == "__main__":
    print(table(), end="")
