"""The flags of ``flashkat validate``, and those that it shares with other looks at a trained model."""

import argparse

from ..evaluation.config import BATCH_SIZE
from .parser import count, number, positive, seed
from .shared_flags import add_config, add_data, add_data_dir, add_device, add_model

__all__ = ["add_evaluation", "add_validation_arguments"]


def add_validation_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of ``flashkat validate``."""
    add_config(parser)
    add_data_dir(parser, "data set with val/CLASS/*, or the folder of the classes itself, or where --dataset is")
    parser.add_argument(
        "--checkpoint",
        default="",
        metavar="FILE",
        help="weights to load: .pth, .pth.tar, .safetensors, .npz; or a folder of them",
    )
    add_evaluation(parser)
    group = parser.add_argument_group("evaluation")
    group.add_argument("--num-samples", type=positive, metavar="N", help="samples of data that does not say (wds/)")
    group.add_argument(
        "--use-train-size", action="store_true", help="the model's size in training, not the one for tests"
    )
    group.add_argument("--crop-mode", choices=["center", "squash", "border"], help="how to crop (default: the model's)")
    group.add_argument("--crop-border-pixels", type=count, metavar="N", help="pixels to cut off around an image first")
    group.add_argument(
        "--tta",
        type=number(int, 0, 10),
        default=0,
        metavar="N",
        help="evaluate the mean output for N views: the image, its mirror image, both from four corners (default: 0)",
    )
    group.add_argument(
        "--real-labels", default="", metavar="FILE", help="JSON of ImageNet's reassessed labels to count by"
    )
    group.add_argument("--valid-labels", default="", metavar="FILE", help="indices of the outputs to count, one a line")
    group.add_argument(
        "--metrics-avg",
        choices=["micro", "macro", "weighted"],
        help="precision, recall and F1 too, averaged over the classes like this (needs scikit-learn)",
    )
    group.add_argument("--seed", type=seed, default=42, metavar="S", help="random seed (default: 42)")
    group.add_argument(
        "--num-gpu", type=positive, default=1, metavar="N", help="GPUs to spread batches over (default: 1)"
    )
    group.add_argument("--retry", action="store_true", help="try smaller batches where the memory does not suffice")
    group.add_argument(
        "--results-file",
        default="",
        metavar="FILE",
        help="file to write results to (default: none; of several models, as in timm, results-all.csv)",
    )
    group.add_argument("--results-format", default="csv", choices=["csv", "json"], help="its format (default: csv)")
    group.add_argument("--log-freq", type=positive, default=10, metavar="N", help="batches between lines (default: 10)")


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """The data, the model, its weights and the device, for whatever looks at a trained model."""
    add_data(parser, BATCH_SIZE)
    parser.add_argument(
        "--split",
        default="validation",
        metavar="NAME",
        help="split to use (default: validation; val, ... are found too)",
    )
    add_model(parser, model_default=None)
    parser.add_argument("--use-ema", action="store_true", help="use the checkpoint's averaged weights")
    add_device(parser)
