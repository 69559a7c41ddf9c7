"""The flags of ``flashkat validate``, and those that it shares with the tools for trained models."""

import argparse

from ..defaults import CHOICES, EVALUATION_BATCH_SIZE, RANGES, RESULT_FORMATS
from .parser import Parser, count, number, positive, seed
from .shared_flags import add_config, add_data, add_data_dir, add_device, add_model

__all__ = ["add_evaluation", "add_validation_arguments"]


def add_validation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of ``flashkat validate``."""
    add_config(parser)
    add_data_dir(parser, "folder with val/CLASS/*, or with CLASS/*, or the place of the --dataset")
    parser.add_argument(
        "--checkpoint",
        default="",
        metavar="FILE",
        help="weights to evaluate (.pth, .pth.tar, .safetensors, .npz), or a folder of them",
    )
    add_evaluation(parser)
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--num-samples", type=positive, metavar="N", help="samples of data that does not give their number (wds/)"
    )
    group.add_argument(
        "--use-train-size", action="store_true", help="use the model's image size of training, not the one for tests"
    )
    group.add_argument("--crop-mode", choices=CHOICES["crop_mode"], help="how to crop (default: the model's)")
    group.add_argument(
        "--crop-border-pixels", type=count, metavar="N", help="pixels to cut off each edge of an image before resizing"
    )
    group.add_argument(
        "--tta",
        type=number(*RANGES["tta"]),
        default=0,
        metavar="N",
        help="average the outputs of N views: the image, its mirror image, both shifted to each corner (default: 0)",
    )
    group.add_argument(
        "--real-labels", default="", metavar="FILE", help="JSON file of ImageNet's reassessed labels to evaluate with"
    )
    group.add_argument(
        "--valid-labels",
        default="",
        metavar="FILE",
        help="file with the indices of the outputs to evaluate, one a line",
    )
    group.add_argument(
        "--metrics-avg",
        choices=CHOICES["metrics_avg"],
        help="report precision, recall and F1 too, averaged over classes in this way (needs scikit-learn)",
    )
    group.add_argument("--seed", type=seed, default=42, metavar="S", help="random seed (default: 42)")
    group.add_argument(
        "--num-gpu", type=positive, default=1, metavar="N", help="GPUs that share each batch (default: 1)"
    )
    group.add_argument("--retry", action="store_true", help="retry with smaller batches if memory runs out")
    group.add_argument(
        "--results-file",
        default="",
        metavar="FILE",
        help="file of the results (default: none, or results-all.csv for several models, as in timm)",
    )
    group.add_argument(
        "--results-format", default="csv", choices=RESULT_FORMATS, help="format of the results (default: csv)"
    )
    group.add_argument(
        "--log-freq", type=positive, default=10, metavar="N", help="batches between two lines of progress (default: 10)"
    )
    if isinstance(parser, Parser):
        parser.introduce(
            "[DIR] [--checkpoint FILE] [FLAGS]",
            "examples:",
            "  flashkat validate /data/imagenet --checkpoint output/train/RUN/model_best.pth.tar",
            "  flashkat validate /data/imagenet --checkpoint output/train/RUN/last.pth.tar --use-ema --amp",
            "  flashkat validate /data/imagenet --model kat_small_patch16_224",
        )


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that loads a trained model: data, model, weights and device."""
    add_data(parser, EVALUATION_BATCH_SIZE)
    parser.add_argument(
        "--split",
        default="validation",
        metavar="NAME",
        help="split to use (default: validation, which also finds val and similar names)",
    )
    add_model(parser, model_default=None)
    parser.add_argument("--use-ema", action="store_true", help="use the checkpoint's averaged weights")
    add_device(parser)
