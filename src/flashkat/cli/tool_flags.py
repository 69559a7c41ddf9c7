"""The flags of the smaller commands."""

import argparse
from collections.abc import Callable

from ..defaults import FIT_METHODS, FORMATS
from .parser import Parser, amount, as_sentence, finite, inner, number, positive, size
from .shared_flags import MODEL_KWARGS_HELP, add_model_kwargs
from .train_flags import add_training_arguments
from .validate_flags import add_evaluation

__all__ = [
    "add_data_commands",
    "add_export_arguments",
    "add_finetune_arguments",
    "add_fit_arguments",
    "add_flops_arguments",
    "add_inspect_arguments",
    "add_plot_arguments",
    "add_predict_arguments",
]

# The flags of an evaluation that these tools show. Their help leaves out the others.
_RESTORING = {"img_size", "model", "num_classes", "model_kwargs", "use_ema", "device"}
_PLOTTED = _RESTORING | {"split", "batch_size", "workers"}
_EXPORTED = _RESTORING | {"model_dtype"}
_PREDICTED = _RESTORING | {"batch_size"}

# These commands always have a file, and some no data set.
_OF_A_CHECKPOINT = {
    "model": "name in timm's registry (default: the file's; weights alone do not say it)",
    "num_classes": "number of classes (default: the file's)",
    "model_kwargs": f"{MODEL_KWARGS_HELP}. They are added to the file's",
}

_PREDICTED_BATCH = 32

Command = Callable[[argparse.Namespace], int | None]


def add_data_commands(
    parser: argparse.ArgumentParser, write: Command, check: Command, unpack: Command, split: Command
) -> None:
    """Add the commands of ``flashkat data``, and the functions that run them."""
    # The name of the outer command is what errors begin with.
    commands = parser.add_subparsers(dest="name", metavar="digits|check|split|imagenet", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=as_sentence(text))

    digits = add("digits", "write 1,797 handwritten digits, 8 x 8 pixels, as image files")
    digits.add_argument("folder", metavar="DIR", help="folder to make")
    digits.set_defaults(run=write)
    checked = add("check", "read every image of a data set, and list what is broken")
    checked.add_argument("folder", metavar="DIR", help="data set with SPLIT/CLASS/*, one split, or an archive of one")
    checked.set_defaults(run=check)
    divided = add("split", "divide class folders into training and evaluation images, by links")
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
    unpacked = add("imagenet", "unpack ImageNet's archives into train/CLASS/* and val/CLASS/*")
    unpacked.add_argument("folder", metavar="DIR", help="folder to make, or to complete if the command was stopped")
    unpacked.add_argument("--train", default="", metavar="FILE", help="ILSVRC2012_img_train.tar")
    unpacked.add_argument("--val", default="", metavar="FILE", help="ILSVRC2012_img_val.tar")
    unpacked.add_argument("--devkit", default="", metavar="FILE", help="ILSVRC2012_devkit_t12.tar.gz, for --val")
    unpacked.set_defaults(run=unpack)


def add_plot_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of ``flashkat plot``."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of flashkat train, or weights of the model --model")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="a .png, .svg or .pdf; with --animate a .gif or .mp4 (default: rationals.png or .gif beside it)",
    )
    parser.add_argument(
        "--data", metavar="DIR", help="take the ranges of x from four batches of this data set (default: -3 to 3)"
    )
    parser.add_argument(
        "--animate",
        action="store_true",
        help="show the run's checkpoints, one after the other (an .mp4 needs ffmpeg)",
    )
    _add_some_of_evaluation(parser, _PLOTTED)
    if isinstance(parser, Parser):
        parser.introduce(
            "CHECKPOINT [-o FILE] [--data DIR] [--animate] [FLAGS]",
            "examples:",
            "  flashkat plot output/train/RUN/last.pth.tar",
            "  flashkat plot output/train/RUN/last.pth.tar --data /data/imagenet -o functions.svg",
            "  flashkat plot output/train/RUN/last.pth.tar --animate",
            "  flashkat plot weights.pth --model kat_small_patch16_224",
            "",
            "The flags of flashkat validate for data, model and device work here too.",
        )


def add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of ``flashkat fit``."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a function that has a name, such as gelu")
    parser.add_argument("--expr", metavar="EXPR", help="a function of x, such as 'x*sin(x)'; --expr=-x for a minus")
    parser.add_argument("--points", metavar="FILE", help="a CSV with lines of x,y or x,y,weight")
    parser.add_argument(
        "-m", type=number(int, 1, 16), default=6, metavar="N", help="numerator coefficients (default: 6)"
    )
    parser.add_argument(
        "-n", type=number(int, 0, 16), default=4, metavar="N", help="denominator coefficients (default: 4)"
    )
    parser.add_argument(
        "--interval",
        nargs=2,
        type=finite,
        metavar=("LOW", "HIGH"),
        help="where the fit matters (default: -3 3, or all points)",
    )
    parser.add_argument(
        "--method",
        default=FIT_METHODS[0],
        choices=FIT_METHODS,
        help="smallest sum of squares, or smallest largest error (default: least-squares)",
    )
    parser.add_argument(
        "--tail-weight", type=amount, default=0.0, metavar="W", help="weight of errors beyond the interval (default: 0)"
    )
    parser.add_argument("--max-error", type=size, metavar="E", help="fail if the largest error is larger")
    parser.add_argument("--json", action="store_true", help="print everything for programs, numbers in full")
    parser.add_argument("-o", "--output", metavar="FILE", help="write that to a file, for flashkat.nn.Fit.read")
    parser.add_argument(
        "--plot", nargs="?", const="fit.png", metavar="FILE", help="draw it, as .png, .svg or .pdf (default: fit.png)"
    )
    if isinstance(parser, Parser):
        parser.introduce(
            "NAME | --expr EXPR | --points FILE [FLAGS]",
            "examples:",
            "  flashkat fit gelu --plot",
            "  flashkat fit --expr 'x*sin(x)' -m 8 -n 4 --interval -5 5",
            "  flashkat fit --points measured.csv --method minimax --output measured.json",
        )


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of ``flashkat inspect``."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of flashkat train, or weights of the model --model")
    parser.add_argument(
        "--data", metavar="DIR", help="take the inputs of the functions from four batches of this data set"
    )
    parser.add_argument("--html", metavar="FILE", help="write a report too, one page that needs no network")
    parser.add_argument("--json", action="store_true", help="for programs, with formulas, in place of the table")
    _add_some_of_evaluation(parser, _PLOTTED)
    if isinstance(parser, Parser):
        parser.introduce(
            "CHECKPOINT [--data DIR] [--html FILE] [FLAGS]",
            "examples:",
            "  flashkat inspect output/train/RUN/last.pth.tar",
            "  flashkat inspect output/train/RUN/last.pth.tar --data /data/imagenet --html report.html",
            "  flashkat inspect weights.pth --model kat_small_patch16_224 --json",
            "",
            "The flags of flashkat validate for data, model and device work here too.",
        )


def _add_some_of_evaluation(parser: argparse.ArgumentParser, shown: set[str]) -> None:
    """Add the flags of an evaluation. The help shows those in ``shown`` alone."""
    own = {action.dest for action in parser._actions}
    add_evaluation(parser)
    for action in parser._actions:
        if action.dest not in own | shown:
            action.help = argparse.SUPPRESS
        else:
            action.help = _OF_A_CHECKPOINT.get(action.dest, action.help)


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of ``flashkat export``."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="of flashkat train or of other programs, or a folder with config.json"
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="a program (.onnx, .pt2, or _aoti.pt2 for AOTInductor), weights (.pth, .pth.tar, .pt, .bin, .safetensors) "
        "or the folder of --to hf",
    )
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        help="names of weights: of KAT's code, the FlashKAT paper's code, or timm with this package (default: kat)",
    )
    parser.add_argument("--to", choices=["hf"], help="write a folder that timm and the Hugging Face Hub load")
    parser.add_argument("--license", default="unknown", metavar="ID", help="licence for the model card of --to hf")
    parser.add_argument("--push-to-hub", metavar="NAME", help="upload the folder of --to hf to this repository")
    _add_some_of_evaluation(parser, _EXPORTED)
    if isinstance(parser, Parser):
        parser.introduce(
            "CHECKPOINT -o FILE [FLAGS]",
            "examples:",
            "  flashkat export output/train/RUN/last.pth.tar -o model.onnx",
            "  flashkat export output/train/RUN/last.pth.tar -o model.onnx --model-dtype float16",
            "  flashkat export output/train/RUN/last.pth.tar -o model.pt2",
            "  flashkat export output/train/RUN/last.pth.tar -o model_aoti.pt2",
            "  flashkat export output/train/RUN/last.pth.tar -o FOLDER --to hf",
            "  flashkat export output/train/RUN/last.pth.tar -o theirs.pth --format kat",
        )


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of ``flashkat predict``."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="of flashkat train or of other programs, a folder with config.json, an .onnx or a .pt2",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, patterns, or - for names on stdin")
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="classes of each image (default: 5)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs, a line of JSON for each image")
    form.add_argument("--csv", action="store_true", help="for tables, a row for each image and class")
    parser.add_argument(
        "--trust", action="store_true", help="load a .pt2, which may run code of its author (never needed for .onnx)"
    )
    _add_some_of_evaluation(parser, _PREDICTED)
    parser.set_defaults(batch_size=_PREDICTED_BATCH)
    for action in parser._actions:
        if action.dest == "batch_size":
            action.help = f"images that run together (default: {_PREDICTED_BATCH})"
    if isinstance(parser, Parser):
        parser.introduce(
            "CHECKPOINT IMAGE... [FLAGS]",
            "examples:",
            "  flashkat predict output/train/RUN/last.pth.tar cat.jpg",
            "  flashkat predict model.onnx photos --top 1 --csv",
            "  find photos -name '*.jpg' | flashkat predict model.onnx - --json",
        )


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
