"""The groups of flags that commands share: data, model, device."""

import argparse
import os

from ..defaults import CHOICES, DEFAULT_MODEL, INTERPOLATIONS
from .parser import Instead, ModelKwargs, below_one, finite, fraction, positive, processes, seconds, share, size

__all__ = [
    "add_config",
    "add_data",
    "add_data_dir",
    "add_device",
    "add_model",
    "add_model_kwargs",
]

# Data sets that timm finds by themselves, without a folder.
_ROOTLESS = ("hfds/", "hfids/", "tfds/")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the flag of a file with flags."""
    parser.add_argument(
        "-c",
        "--config",
        default="",
        metavar="FILE",
        help="YAML file of flags, such as a run's args.yaml. Flags of the command line override it",
    )


def add_data_dir(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the data set's folder, as an argument and as a flag, and a check that one is given."""
    parser.add_argument("data_dir", nargs="?", default=argparse.SUPPRESS, metavar="DIR", help=text)
    parser.add_argument("--data-dir", default=None, metavar="DIR", help="the same as DIR, as a flag")

    def check(args: argparse.Namespace) -> None:
        needs_none = getattr(args, "fake_data", False) or getattr(args, "dataset", "").lower().startswith(_ROOTLESS)
        if getattr(args, "data_dir", None) is None and not needs_none:
            raise argparse.ArgumentTypeError("the following arguments are required: DIR")

    parser.checks.append(check)  # type: ignore[attr-defined]


def add_dataset(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the kind of data set, and of how it is read."""
    group.add_argument(
        "--dataset",
        default="",
        metavar="NAME",
        help="kind and name: torch/cifar10, hfds/..., hfids/... (streamed), wds/, tfds/... (default: a folder or .tar)",
    )
    group.add_argument(
        "--dataset-download", action="store_true", help="download the data set where its kind allows it (torch/, tfds/)"
    )
    group.add_argument(
        "--dataset-trust-remote-code", action="store_true", help="let a Hugging Face data set run code of its own"
    )
    group.add_argument(
        "--class-map", default="", metavar="FILE", help="class names in the order of their indices, a line each"
    )
    group.add_argument(
        "--val-fraction",
        type=below_one,
        metavar="F",
        help="evaluate this share of each class of the training images, which is held out, in place of a split. DIR "
        "may hold the class folders (default: none; validate and plot take the run's on the same images)",
    )
    group.add_argument(
        "--input-img-mode",
        metavar="MODE",
        help="Pillow mode of images (default: RGB, or L for one channel; validate and plot take the checkpoint's)",
    )
    group.add_argument("--input-key", metavar="KEY", help="where samples of hfds/ and wds/ data hold the image")
    group.add_argument("--target-key", metavar="KEY", help="where samples of hfds/ and wds/ data hold the class")
    group.add_argument(
        "--skip-bad-images",
        action="store_true",
        help="put other images in place of those that cannot be read, and list these (default: stop at the first)",
    )
    group.add_argument(
        "--max-bad-images",
        type=fraction,
        default=0.01,
        metavar="F",
        help="largest share of a split's images that --skip-bad-images may skip (default: 0.01)",
    )


def add_data(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Add the flags of image size, normalisation, batches and loader."""
    group = parser.add_argument_group("data")
    add_dataset(group)
    group.add_argument(
        "-b",
        "--batch-size",
        type=positive,
        default=batch_size,
        metavar="N",
        help=f"images per batch and process (default: {batch_size})",
    )
    group.add_argument(
        "-j",
        "--workers",
        type=processes,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="loader processes (default: 4, or the number of cores where that is less)",
    )
    group.add_argument(
        "--loader-timeout",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="stop if workers give no batch for so long, or without workers an image; 0 waits for ever (default: 600)",
    )
    group.add_argument(
        "--pin-mem",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="load batches for GPUs into pinned memory, from which copying waits for nothing (default: on)",
    )
    group.add_argument(
        "--data-backend",
        choices=CHOICES["data_backend"],
        help="where images are decoded. timm: by Pillow in the loader's processes. memory: once, for small images, "
        "which stay in the GPU's memory. dali, dali-cpu: by NVIDIA DALI on the GPU or on the CPU, with pixels a few "
        "grey levels from Pillow's. auto: memory, then dali, where it can (default: auto in training, else timm)",
    )
    group.add_argument(
        "--no-prefetcher", action="store_true", help="normalise images in the loader's processes, not on the device"
    )
    group.add_argument("--img-size", type=positive, metavar="N", help="image side in pixels (default: the model's)")
    group.add_argument("--in-chans", type=positive, metavar="N", help="channels of images (default: 3)")
    group.add_argument(
        "--input-size",
        type=positive,
        nargs=3,
        metavar="N",
        help="channels, height and width, in place of --in-chans and --img-size",
    )
    group.add_argument("--crop-pct", type=share, metavar="F", help="share of the side that evaluation crops to")
    group.add_argument(
        "--interpolation",
        choices=CHOICES["interpolation"],
        metavar="NAME",
        help=f"resizing for evaluation: {', '.join(INTERPOLATIONS)} (default: the model's)",
    )
    group.add_argument("--mean", type=finite, nargs="+", metavar="F", help="mean to subtract, per channel")
    group.add_argument("--std", type=size, nargs="+", metavar="F", help="standard deviation to divide by, per channel")


MODEL_KWARGS_HELP = "more arguments of the model, such as m=6 n=4 num_groups=1 den_groups=8"


def add_model(parser: argparse.ArgumentParser, model_default: str | None) -> argparse._ArgumentGroup:
    """Add the flags of the model and its weights, and return their group for a command's own flags."""
    group = parser.add_argument_group("model")
    shown = model_default or f"the checkpoint's, or {DEFAULT_MODEL} without a checkpoint"
    group.add_argument(
        "-m", "--model", default=model_default, metavar="NAME", help=f"name in timm's registry (default: {shown})"
    )
    group.add_argument(
        "--pretrained",
        action="store_true",
        help="take published weights, which validate does by default without --checkpoint",
    )
    group.add_argument(
        "--num-classes", type=positive, metavar="N", help="number of classes (default: as many as the data set lists)"
    )
    group.add_argument(
        "--gp", metavar="POOL", help="global pooling before the head: token, avg, max (default: the model's)"
    )
    add_model_kwargs(group, ". They replace all of a --config, and are added to a checkpoint's")
    group.add_argument("--partial", action="store_true", help="load the tensors that fit, and leave out the others")
    group.add_argument(
        "--fast-norm", action="store_true", help="compute layer norms in the autocast dtype, not in float32"
    )
    return group


def add_model_kwargs(parser: argparse._ActionsContainer, others: str = "") -> None:
    """Add the flag of more arguments of the model. ``others`` ends its help: what becomes of those from elsewhere."""
    parser.add_argument(
        "--model-kwargs",
        nargs="*",
        default={},
        action=ModelKwargs,
        metavar="KEY=VALUE",
        help=f"{MODEL_KWARGS_HELP}{others}",
    )


def add_device(parser: argparse.ArgumentParser, compiles: bool = False) -> argparse._ArgumentGroup:
    """Add the flags of device, precision and compilation, and return their group for a command's own flags.

    Args:
        parser: the parser.
        compiles: whether the command compiles by default, so that it has ``--no-compile``.
    """
    group = parser.add_argument_group("device")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    group.add_argument(
        "--device-modules", nargs="+", default=None, metavar="MODULE", help="Python modules to import for the device"
    )
    group.add_argument("--amp", action="store_true", help="automatic mixed precision")
    group.add_argument(
        "--amp-dtype",
        default="bfloat16",
        choices=CHOICES["amp_dtype"],
        help="dtype of --amp; float16 scales the loss (default: bfloat16, where timm's is float16)",
    )
    group.add_argument(
        "--amp-impl", default="native", choices=["native"], help="PyTorch's own; timm's other choice, apex, is gone"
    )
    group.add_argument(
        "--model-dtype",
        choices=CHOICES["model_dtype"],
        metavar="DTYPE",
        help="dtype of weights and images: float32, bfloat16 or float16, without --amp (default: float32)",
    )
    group.add_argument("--channels-last", action="store_true", help="channels-last layout for model and images")
    compilation = group.add_mutually_exclusive_group()
    compilation.add_argument(
        "--torchcompile",
        nargs="?",
        const="inductor",
        action=Instead,
        of={"no_compile": False} if compiles else {},
        metavar="BACKEND",
        help="compile the model, with inductor or the backend named"
        + (" (default: with inductor on GPUs)" if compiles else ""),
    )
    if compiles:
        compilation.add_argument(
            "--no-compile",
            nargs=0,
            const=True,
            default=False,
            action=Instead,
            of={"torchcompile": None},
            help="do not compile the model, not on GPUs either",
        )
    group.add_argument(
        "--torchcompile-mode",
        metavar="MODE",
        help="torch.compile's mode, such as max-autotune"
        + (" (default on GPUs: none, and whole steps are CUDA graphs)" if compiles else ""),
    )
    return group
