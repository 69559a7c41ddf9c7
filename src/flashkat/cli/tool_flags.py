"""The flags of ``flashkat plot``, ``export``, ``flops``, ``data`` and ``finetune``."""

import argparse
from collections.abc import Callable

from ..defaults import FORMATS
from .parser import Parser, inner, positive
from .shared_flags import add_model_kwargs
from .train_flags import add_training_arguments
from .validate_flags import add_evaluation

__all__ = [
    "add_data_commands",
    "add_export_arguments",
    "add_finetune_arguments",
    "add_flops_arguments",
    "add_plot_arguments",
]

# The flags that plotting needs. Its help leaves out the others of an evaluation.
_PLOTTED = {
    "help",
    "checkpoint",
    "output",
    "data",
    "split",
    "batch_size",
    "workers",
    "img_size",
    "model",
    "num_classes",
}
_PLOTTED |= {"model_kwargs", "use_ema", "device"}

Command = Callable[[argparse.Namespace], int | None]


def add_data_commands(
    parser: argparse.ArgumentParser, write: Command, check: Command, unpack: Command, split: Command
) -> None:
    """Add the commands of ``flashkat data``, and the functions that run them."""
    # The name of the outer command is what errors begin with.
    commands = parser.add_subparsers(dest="name", metavar="digits|check|imagenet|split", required=True)
    digits = commands.add_parser("digits", help="write 1,797 handwritten digits, 8 x 8 pixels, as image files")
    digits.add_argument("folder", metavar="DIR", help="folder to make")
    digits.set_defaults(run=write)
    checked = commands.add_parser("check", help="read every image of a data set, and list what is broken")
    checked.add_argument("folder", metavar="DIR", help="data set with SPLIT/CLASS/*, one split, or an archive of one")
    checked.set_defaults(run=check)
    divided = commands.add_parser("split", help="divide class folders into training and evaluation images, by links")
    divided.add_argument("folder", metavar="DIR", help="data set with CLASS/*, or with train/CLASS/* alone")
    divided.add_argument("output", metavar="NEW", help="folder to make, with train/CLASS/* and val/CLASS/*")
    divided.add_argument(
        "--val-fraction",
        type=inner,
        default=0.2,
        metavar="F",
        help="share of each class to hold out, as flashkat train --val-fraction does (default: 0.2)",
    )
    divided.set_defaults(run=split)
    unpacked = commands.add_parser("imagenet", help="unpack ImageNet's archives into train/CLASS/* and val/CLASS/*")
    unpacked.add_argument("folder", metavar="DIR", help="folder to make, or to complete if the command was stopped")
    unpacked.add_argument("--train", default="", metavar="FILE", help="ILSVRC2012_img_train.tar")
    unpacked.add_argument("--val", default="", metavar="FILE", help="ILSVRC2012_img_val.tar")
    unpacked.add_argument("--devkit", default="", metavar="FILE", help="ILSVRC2012_devkit_t12.tar.gz, for --val")
    unpacked.set_defaults(run=unpack)


def add_plot_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of ``flashkat plot``."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of flashkat train, or weights of the model --model")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="a .png, .svg or .pdf (default: rationals.png beside it)"
    )
    parser.add_argument("--data", metavar="DIR", help="data set to take the ranges of x from (default: -3 to 3)")
    add_evaluation(parser)
    for action in parser._actions:
        if action.dest not in _PLOTTED:
            action.help = argparse.SUPPRESS
    if isinstance(parser, Parser):
        parser.introduce(
            "CHECKPOINT [-o FILE] [--data DIR] [FLAGS]",
            "examples:",
            "  flashkat plot output/train/RUN/last.pth.tar",
            "  flashkat plot output/train/RUN/last.pth.tar --data /data/imagenet -o functions.svg",
            "  flashkat plot weights.pth --model kat_small_patch16_224",
            "",
            "The flags of flashkat validate for data, model and device work here too.",
        )


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of ``flashkat export``."""
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
    """Add all flags of ``flashkat flops``."""
    parser.add_argument("model", metavar="MODEL", help="a KAT or a Vision Transformer in timm's registry")
    parser.add_argument("--img-size", type=positive, metavar="N", help="image side in pixels (default: the model's)")
    parser.add_argument("--num-classes", type=positive, metavar="N", help="number of classes (default: the model's)")
    add_model_kwargs(parser)
    parser.add_argument("--json", action="store_true", help="for programs, numbers in full")


def add_finetune_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of ``flashkat finetune``: its own, and those of ``flashkat train`` without defaults."""
    add_training_arguments(parser)
    for action in parser._actions:
        if action.dest != "help":
            action.default = argparse.SUPPRESS
            action.help = action.help if action.dest == "data_dir" and not action.option_strings else argparse.SUPPRESS
    parser.add_argument(
        "--from",
        dest="initial_checkpoint",
        default=argparse.SUPPRESS,
        metavar="CHECKPOINT",
        help="weights of a KAT or a ViT to start from (default: a published KAT, else a ViT that timm has downloaded)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the command, and do not run it")
    if isinstance(parser, Parser):
        parser.introduce(
            "DIR [--from CHECKPOINT] [--dry-run] [FLAGS OF flashkat train]",
            "examples:",
            "  flashkat finetune /data/flowers",
            "  flashkat finetune /data/flowers --dry-run",
            "  flashkat finetune /data/flowers --from output/train/RUN/last.pth.tar --epochs 20 --hflip 0",
            "",
            "It looks at the images, chooses the flags of flashkat train, and prints and runs that command.",
            "All flags of flashkat train work here too, and take the place of what it would choose.",
        )
