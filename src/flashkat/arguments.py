"""The flags of ``flashkat train`` and ``flashkat validate``, with timm's names, defaults and meanings.

One function per group of flags, so that commands share groups and a new flag has one place to go.
"""

import argparse
import difflib
import math
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch
from timm.utils import ParseKwargs

from .errors import InputError
from .names import FORMATS

__all__ = [
    "Parser",
    "add_export_arguments",
    "add_flops_arguments",
    "add_plot_arguments",
    "add_training_arguments",
    "add_validation_arguments",
    "resolve_device",
]

DEFAULT_MODEL = "kat_tiny_patch16_224"

_INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "box", "hamming", "lanczos")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and that takes no abbreviations."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}; {self.prog} --help lists the flags", file=sys.stderr)
        sys.exit(2)

    def parse_known_args(self, args=None, namespace=None):
        """Refuse what is not known; argparse asks subcommands for it too, which then answer for their own flags."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag != "--help"]
            nearest = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
            self.error(f"unknown argument {unknown[0]}{f', did you mean {nearest[0]}' if nearest else ''}")
        return parsed, unknown


class _ModelKwargs(ParseKwargs):
    """timm's KEY=VALUE parser, which keeps away from what has a flag of its own."""

    def __call__(self, parser, namespace, values, option_string=None):
        flags = {"num_classes": "--num-classes", "img_size": "--img-size", "drop_path_rate": "--drop-path"}
        for value in values:
            key, equals, _ = value.partition("=")
            if not equals:
                raise argparse.ArgumentError(self, f"takes KEY=VALUE, not {value!r}")
            if key in flags:
                raise argparse.ArgumentError(self, f"cannot set {key}: use {flags[key]}")
        super().__call__(parser, namespace, values, option_string)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of ``flashkat train``."""
    parser.add_argument(
        "data_dir", metavar="DIR", help="data set in the ImageNet layout: train/CLASS/* and val/CLASS/*"
    )
    _add_data_arguments(parser)
    parser.add_argument("--train-split", default="train", metavar="NAME", help="training folder (default: train)")
    parser.add_argument(
        "--val-split", default="val", metavar="NAME", help="evaluation folder (default: val, validation)"
    )
    _add_model_arguments(parser, model_default=DEFAULT_MODEL)
    _add_regularisation_arguments(parser)
    _add_optimizer_arguments(parser)
    _add_schedule_arguments(parser)
    _add_augmentation_arguments(parser)
    _add_ema_arguments(parser)
    _add_device_arguments(parser)
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=_seed, default=42, metavar="S", help="random seed (default: 42)")
    group.add_argument(
        "--output", default="output/train", metavar="DIR", help="where run folders go (default: output/train)"
    )
    group.add_argument(
        "--experiment",
        default="",
        metavar="NAME",
        help="name of the run's folder, numbered if it exists (default: date, model and size)",
    )
    group.add_argument(
        "--log-interval", type=_positive, default=50, metavar="N", help="batches between lines of the log (default: 50)"
    )


def add_validation_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of ``flashkat validate``."""
    parser.add_argument(
        "data_dir", metavar="DIR", help="data set with val/CLASS/*, or the folder of the classes itself"
    )
    parser.add_argument(
        "--checkpoint", default="", metavar="FILE", help="weights to load: .pth, .pth.tar, .safetensors, .npz"
    )
    parser.add_argument(
        "--log-freq", type=_positive, default=10, metavar="N", help="batches between lines (default: 10)"
    )
    _add_evaluation_arguments(parser)


def add_plot_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of ``flashkat plot``."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of flashkat train, or weights of the model --model")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="a .png, .svg or .pdf (default: rationals.png beside it)"
    )
    parser.add_argument("--data", metavar="DIR", help="data set to take the ranges of x from (default: -3 to 3)")
    _add_evaluation_arguments(parser)


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of ``flashkat export``."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a KAT's, of flashkat train or of other programs")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="a .pth, .pth.tar, .pt, .bin or .safetensors"
    )
    parser.add_argument(
        "--format",
        default="kat",
        choices=list(FORMATS),
        help="whose names: KAT's code, the FlashKAT paper's code, or timm with this package (default: kat)",
    )
    parser.add_argument("--use-ema", action="store_true", help="write the checkpoint's averaged weights")


def add_flops_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of ``flashkat flops``."""
    parser.add_argument("model", metavar="MODEL", help="a KAT or a Vision Transformer in timm's registry")
    parser.add_argument("--img-size", type=_positive, metavar="N", help="image side in pixels (default: the model's)")
    parser.add_argument("--num-classes", type=_positive, metavar="N", help="number of classes (default: the model's)")
    _add_model_kwargs(parser)
    parser.add_argument("--json", action="store_true", help="for programs, numbers in full")


def _add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    _add_data_arguments(parser)
    parser.add_argument(
        "--split", default="val", metavar="NAME", help="folder of DIR to use (default: val, validation)"
    )
    _add_model_arguments(parser, model_default=None)
    parser.add_argument("--use-ema", action="store_true", help="use the checkpoint's averaged weights")
    parser.add_argument("--partial", action="store_true", help="load what fits of a checkpoint of another model")
    _add_device_arguments(parser)


def resolve_device(name: str | None) -> torch.device:
    """The device asked for, or the GPU if there is one, or the CPU.

    Raises:
        InputError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"no device {name!r} here: leave out --device, or give cpu, cuda or cuda:N") from error
    return device


def _number(kind: type, low: float, high: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """A converter for argparse: an int or a float from ``low``, or above it, to ``high``."""

    def convert(text: str) -> float:
        value = kind(text)
        if not (low <= value <= high and math.isfinite(value)) or (above and value == low):
            least = f"more than {low:g}" if above else f"at least {low:g}"
            wanted = f"{least} and at most {high:g}" if high < math.inf else least if low > -math.inf else "finite"
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text}")
        return value

    # argparse says "invalid NAME value".
    convert.__name__ = "whole number" if kind is int else "number"
    return convert


_positive = _number(int, 1)
_count = _number(int, 0)
_seed = _number(int, 0, 2**32 - 1)
_amount = _number(float, 0)
_finite = _number(float, -math.inf)
_size = _number(float, 0, above=True)
_fraction = _number(float, 0, 1)
_share = _number(float, 0, 1, above=True)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "-b", "--batch-size", type=_positive, default=128, metavar="N", help="images per batch (default: 128)"
    )
    group.add_argument(
        "-j",
        "--workers",
        type=_count,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="loader processes (default: 4, or the number of cores where that is less)",
    )
    group.add_argument("--img-size", type=_positive, metavar="N", help="image side in pixels (default: the model's)")
    group.add_argument("--crop-pct", type=_share, metavar="F", help="share of the side that evaluation crops to")
    group.add_argument(
        "--interpolation",
        choices=_INTERPOLATIONS,
        metavar="NAME",
        help=f"resizing for evaluation: {', '.join(_INTERPOLATIONS)} (default: the model's)",
    )
    group.add_argument("--mean", type=_finite, nargs="+", metavar="F", help="mean to subtract, per channel")
    group.add_argument("--std", type=_size, nargs="+", metavar="F", help="standard deviation to divide by, per channel")


def _add_model_arguments(parser: argparse.ArgumentParser, model_default: str | None) -> None:
    group = parser.add_argument_group("model")
    shown = model_default or f"the checkpoint's, else {DEFAULT_MODEL}"
    group.add_argument(
        "--model", default=model_default, metavar="NAME", help=f"name in timm's registry (default: {shown})"
    )
    group.add_argument(
        "--num-classes", type=_positive, metavar="N", help="number of classes (default: as many as there are folders)"
    )
    _add_model_kwargs(group)


def _add_model_kwargs(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--model-kwargs",
        nargs="*",
        default={},
        action=_ModelKwargs,
        metavar="KEY=VALUE",
        help="more arguments of the model, such as m=6 n=4 num_groups=1 den_groups=8",
    )


def _add_regularisation_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("regularisation")
    group.add_argument("--drop", type=_fraction, default=0.0, metavar="P", help="dropout before the head (default: 0)")
    group.add_argument("--drop-path", type=_fraction, metavar="P", help="stochastic depth rate (default: none)")
    group.add_argument("--smoothing", type=_fraction, default=0.1, metavar="F", help="label smoothing (default: 0.1)")
    group.add_argument("--mixup", type=_amount, default=0.0, metavar="F", help="mixup alpha, 0 for none (default: 0)")
    group.add_argument("--cutmix", type=_amount, default=0.0, metavar="F", help="cutmix alpha, 0 for none (default: 0)")
    group.add_argument("--grad-checkpointing", action="store_true", help="recompute activations to save memory")


def _add_optimizer_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimiser")
    group.add_argument("--opt", default="sgd", metavar="NAME", help="any of timm's optimisers (default: sgd)")
    group.add_argument("--momentum", type=_amount, default=0.9, metavar="F", help="momentum, where used (default: 0.9)")
    group.add_argument("--weight-decay", type=_amount, default=2e-5, metavar="F", help="weight decay (default: 2e-5)")
    group.add_argument("--clip-grad", type=_size, metavar="NORM", help="clip gradients to this norm (default: no)")
    group.add_argument("--lr", type=_size, metavar="LR", help="learning rate, overrides --lr-base")
    group.add_argument(
        "--lr-base",
        type=_size,
        default=0.1,
        metavar="LR",
        help="learning rate for batch 256, scaled with the batch, or its root for adaptive optimisers (default: 0.1)",
    )


def _add_schedule_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("schedule")
    group.add_argument("--epochs", type=_positive, default=300, metavar="N", help="epochs to train (default: 300)")
    group.add_argument("--sched", default="cosine", metavar="NAME", help="any of timm's schedules (default: cosine)")
    group.add_argument("--warmup-epochs", type=_count, default=5, metavar="N", help="epochs to warm up (default: 5)")
    group.add_argument(
        "--warmup-lr", type=_amount, default=1e-5, metavar="LR", help="where warm-up starts (default: 1e-5)"
    )
    group.add_argument("--min-lr", type=_amount, default=0.0, metavar="LR", help="where the schedule ends (default: 0)")
    group.add_argument("--sched-on-updates", action="store_true", help="step the schedule with every update")


def _add_augmentation_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("augmentation")
    group.add_argument("--no-aug", action="store_true", help="none of it")
    group.add_argument(
        "--scale", type=_share, nargs=2, default=[0.08, 1.0], metavar="F", help="area of random crops (default: 0.08 1)"
    )
    group.add_argument(
        "--ratio", type=_size, nargs=2, default=[3 / 4, 4 / 3], metavar="F", help="aspect of crops (default: 0.75 1.33)"
    )
    group.add_argument("--hflip", type=_fraction, default=0.5, metavar="P", help="horizontal flips (default: 0.5)")
    group.add_argument("--vflip", type=_fraction, default=0.0, metavar="P", help="vertical flips (default: 0)")
    group.add_argument("--color-jitter", type=_amount, default=0.4, metavar="F", help="colour jitter (default: 0.4)")
    group.add_argument("--aa", metavar="POLICY", help="AutoAugment policy, such as rand-m9-mstd0.5 (default: none)")
    group.add_argument("--reprob", type=_fraction, default=0.0, metavar="P", help="random erasing (default: 0)")
    group.add_argument(
        "--remode",
        default="pixel",
        choices=["pixel", "rand", "const"],
        help="erased areas hold noise, a random colour or black (default: pixel)",
    )
    group.add_argument(
        "--train-interpolation",
        default="random",
        choices=["random", *_INTERPOLATIONS],
        metavar="NAME",
        help=f"resizing: {', '.join(_INTERPOLATIONS)}, or random for bilinear and bicubic by turns (default: random)",
    )


def _add_ema_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("averaged weights")
    group.add_argument("--model-ema", action="store_true", help="keep and evaluate an exponential moving average")
    group.add_argument(
        "--model-ema-decay", type=_fraction, default=0.9998, metavar="F", help="its decay (default: 0.9998)"
    )
    group.add_argument(
        "--model-ema-warmup", action="store_true", help="let the decay rise from 0 over the first updates"
    )


def _add_device_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("device")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    group.add_argument("--amp", action="store_true", help="automatic mixed precision")
    group.add_argument(
        "--amp-dtype",
        default="bfloat16",
        choices=["bfloat16", "float16"],
        help="its dtype; float16 scales the loss (default: bfloat16, where timm's is float16)",
    )
