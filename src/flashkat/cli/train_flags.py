"""The flags of ``flashkat train``, a function per group."""

import argparse
import textwrap

from ..defaults import CHOICES, DEFAULT_MODEL, DEFAULT_OUTPUT, INTERPOLATIONS, RANGES
from .parser import KeyValues, Parser, amount, below_one, count, finite, fraction, number, positive, seed, share, size
from .shared_flags import add_config, add_data, add_data_dir, add_device, add_model

__all__ = ["add_training_arguments"]


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of ``flashkat train``."""
    add_config(parser)
    add_data_dir(parser, "folder with train/CLASS/* and val/CLASS/*, or the place of the --dataset")
    add_data(parser, batch_size=128)
    _add_splits(parser)
    _add_model(parser)
    _add_device(parser)
    _add_optimizer(parser)
    _add_rationals(parser)
    _add_learning_rate(parser)
    _add_schedule(parser)
    _add_augmentation(parser)
    _add_loss(parser)
    _add_distillation(parser)
    _add_mixing(parser)
    _add_regularisation(parser)
    _add_norms(parser)
    _add_ema(parser)
    _add_nonfinite(parser)
    _add_run(parser)
    if isinstance(parser, Parser):
        parser.introduce(
            "DIR [FLAGS]",
            "examples:",
            "  flashkat train digits --img-size 16 --model-kwargs patch_size=4 depth=2 "
            "--opt adamw --lr 1e-3 --epochs 20",
            "  flashkat train /data/imagenet --model kat_small_patch16_224 --opt adamw --lr 1e-3 --amp --model-ema",
            "  flashkat train /data/flowers --pretrained --opt adamw --lr 1e-4 --epochs 20",
            "",
            "groups of flags, in this order:",
            *textwrap.wrap(", ".join(parser.themes), 98, initial_indent="  ", subsequent_indent="  "),
        )


def _add_splits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("splits")
    group.add_argument("--train-split", default="train", metavar="NAME", help="training split (default: train)")
    group.add_argument(
        "--val-split",
        default="validation",
        metavar="NAME",
        help="evaluation split, '' for none (default: validation; folders may be val, valid or eval too)",
    )
    group.add_argument(
        "--train-num-samples",
        type=positive,
        metavar="N",
        help="training samples of data that does not give their number (wds/)",
    )
    group.add_argument(
        "--val-num-samples",
        type=positive,
        metavar="N",
        help="evaluation samples of data that does not give their number (wds/)",
    )
    group.add_argument(
        "-vb",
        "--validation-batch-size",
        type=positive,
        metavar="N",
        help="images per batch of evaluation (default: as in training)",
    )
    group.add_argument("--epoch-repeats", type=amount, default=0.0, metavar="F", help="times an epoch sees the data")
    group.add_argument(
        "--worker-seeding",
        default="all",
        choices=CHOICES["worker_seeding"],
        help="loader processes seed NumPy too, or all but it (default: all)",
    )
    group.add_argument(
        "--use-multi-epochs-loader",
        action="store_true",
        help="load the next epoch's first batches while an epoch ends (needs workers, and data that is not streamed)",
    )
    group.add_argument(
        "--fake-data",
        action="store_true",
        help="train on one random batch held on the device, to measure speed without the loader (needs no DIR)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = add_model(parser, DEFAULT_MODEL)
    group.add_argument(
        "--pretrained-path",
        metavar="FILE",
        help="weights to start from, of a KAT or a ViT. Head, position and patch embeddings are adapted",
    )
    group.add_argument(
        "--initial-checkpoint", default="", metavar="FILE", help="the same, loaded last if both are given"
    )
    group.add_argument(
        "--resume",
        default="",
        metavar="FILE",
        help="resume the run of this checkpoint, in its folder unless --output or --experiment name another. auto "
        "takes the newest good checkpoint of --output/--experiment, or starts anew",
    )
    group.add_argument(
        "--no-resume-opt", action="store_true", help="resume without the state of the optimiser and loss scaler"
    )
    group.add_argument("--head-init-scale", type=finite, metavar="F", help="factor for the head's first weights")
    group.add_argument("--head-init-bias", type=finite, metavar="F", help="the head's first bias")
    group.add_argument("--grad-checkpointing", action="store_true", help="recompute activations to save memory")
    group.add_argument(
        "--no-recompute-rationals",
        action="store_true",
        help="save the values of a KAT's rationals for the backward pass, which takes more memory and less time "
        "(default on GPUs: compute them again, except with --grad-checkpointing)",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    group = add_device(parser, compiles=True)
    group.add_argument(
        "--no-tf32", action="store_true", help="compute float32 products on GPUs in float32 (default: in TF32)"
    )
    group.add_argument(
        "--grad-accum-steps", type=positive, default=1, metavar="N", help="batches per update (default: 1)"
    )
    group.add_argument(
        "--synchronize-step", action="store_true", help="wait for the device after every update, for exact timings"
    )
    group.add_argument(
        "--fsdp", action="store_true", help="shard weights, gradients and optimiser over the processes (FSDP2)"
    )
    group.add_argument("--no-ddp-bb", action="store_true", help="do not broadcast buffers between processes")
    group.add_argument(
        "--local-rank",
        "--local_rank",
        type=count,
        metavar="N",
        help="index of this process on its node, which torchrun sets itself",
    )


def _add_optimizer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimiser")
    group.add_argument("--opt", default="sgd", metavar="NAME", help="name of an optimiser of timm (default: sgd)")
    group.add_argument(
        "--opt-eps", type=size, metavar="F", help="the optimiser's epsilon (default: the optimiser's own)"
    )
    group.add_argument(
        "--opt-betas", type=amount, nargs="+", metavar="F", help="the optimiser's betas (default: the optimiser's own)"
    )
    group.add_argument(
        "--opt-kwargs",
        nargs="*",
        default={},
        action=KeyValues,
        metavar="KEY=VALUE",
        help="more arguments of the optimiser",
    )
    group.add_argument("--momentum", type=amount, default=0.9, metavar="F", help="momentum, where used (default: 0.9)")
    group.add_argument("--weight-decay", type=amount, default=2e-5, metavar="F", help="weight decay (default: 2e-5)")
    group.add_argument("--clip-grad", type=size, metavar="F", help="clip gradients to this norm (default: no)")
    group.add_argument(
        "--clip-mode",
        default="norm",
        choices=CHOICES["clip_mode"],
        help="clip the norm of all, each value, or each weight's gradient by the weight's norm (default: norm)",
    )
    group.add_argument(
        "--layer-decay", type=share, metavar="F", help="factor for the learning rate of each layer below the head"
    )
    group.add_argument(
        "--layer-decay-min-scale", type=fraction, default=0.0, metavar="F", help="least of these factors (default: 0)"
    )
    group.add_argument(
        "--layer-decay-no-opt-scale", type=fraction, metavar="F", help="do not train layers whose factor is less"
    )


def _add_rationals(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("coefficients of the rationals")
    group.add_argument(
        "--rational-lr-scale",
        type=amount,
        default=1.0,
        metavar="F",
        help="learning rate of the rationals' coefficients, as a multiple of the others' (default: 1, as published)",
    )
    group.add_argument(
        "--rational-weight-decay",
        type=amount,
        metavar="F",
        help="weight decay of the rationals' coefficients (default: the other weights', as published)",
    )


def _add_learning_rate(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("learning rate")
    group.add_argument("--lr", type=size, metavar="LR", help="learning rate, overrides --lr-base")
    group.add_argument(
        "--lr-base",
        type=size,
        default=0.1,
        metavar="LR",
        help="learning rate for --lr-base-size images an update, over all processes, scaled to theirs (default: 0.1)",
    )
    group.add_argument(
        "--lr-base-size", type=positive, default=256, metavar="N", help="images that --lr-base is for (default: 256)"
    )
    group.add_argument(
        "--lr-base-scale",
        default="",
        choices=CHOICES["lr_base_scale"],
        metavar="NAME",
        help="linear, or sqrt (default: sqrt for adaptive optimisers, else linear)",
    )
    group.add_argument(
        "--lr-noise",
        type=amount,
        nargs="+",
        metavar="F",
        help="noise on the learning rate from this share of the epochs on, or between two shares",
    )
    group.add_argument("--lr-noise-pct", type=amount, default=0.67, metavar="F", help="limit of noise (default: 0.67)")
    group.add_argument("--lr-noise-std", type=amount, default=1.0, metavar="F", help="deviation of noise (default: 1)")
    group.add_argument(
        "--lr-cycle-mul", type=size, default=1.0, metavar="F", help="factor for each cycle's length (default: 1)"
    )
    group.add_argument(
        "--lr-cycle-decay", type=amount, default=0.5, metavar="F", help="factor for each cycle's peak (default: 0.5)"
    )
    group.add_argument("--lr-cycle-limit", type=positive, default=1, metavar="N", help="number of cycles (default: 1)")
    group.add_argument("--lr-k-decay", type=size, default=1.0, metavar="F", help="k of cosine and poly (default: 1)")


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("schedule")
    group.add_argument("--sched", default="cosine", metavar="NAME", help="name of a schedule of timm (default: cosine)")
    group.add_argument("--sched-on-updates", action="store_true", help="step the schedule with every update")
    group.add_argument("--epochs", type=positive, default=300, metavar="N", help="epochs to train (default: 300)")
    group.add_argument(
        "--start-epoch", type=count, metavar="N", help="number of the first epoch (default: 0, or where --resume left)"
    )
    group.add_argument("--warmup-epochs", type=count, default=5, metavar="N", help="epochs to warm up (default: 5)")
    group.add_argument(
        "--warmup-lr", type=amount, default=1e-5, metavar="LR", help="where warm-up starts (default: 1e-5)"
    )
    group.add_argument("--warmup-prefix", action="store_true", help="warm up before the epochs, not within them")
    group.add_argument(
        "--cooldown-epochs", type=count, default=0, metavar="N", help="more epochs, at the least rate (default: 0)"
    )
    group.add_argument("--min-lr", type=amount, default=0.0, metavar="LR", help="where the schedule ends (default: 0)")
    group.add_argument(
        "--decay-milestones",
        type=count,
        nargs="+",
        default=[90, 180, 270],
        metavar="N",
        help="epochs, counted from 1, at which multistep decays (default: 90 180 270)",
    )
    group.add_argument("--decay-epochs", type=size, metavar="N", help="epochs between decays of step (default: 90)")
    group.add_argument(
        "--decay-rate",
        "--dr",
        type=size,
        default=0.1,
        metavar="F",
        help="factor of step, multistep and plateau, or power of poly (default: 0.1)",
    )
    group.add_argument(
        "--patience-epochs",
        type=count,
        default=10,
        metavar="N",
        help="epochs that plateau waits; with --val-interval, evaluations (default: 10)",
    )


def _add_augmentation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("augmentation")
    group.add_argument("--no-aug", action="store_true", help="no augmentation")
    group.add_argument(
        "--train-crop-mode",
        choices=CHOICES["train_crop_mode"],
        help="random resized crops; or keep the aspect, with a crop or not (default: rrc)",
    )
    group.add_argument(
        "--scale", type=size, nargs=2, default=[0.08, 1.0], metavar="F", help="area of random crops (default: 0.08 1)"
    )
    group.add_argument(
        "--ratio", type=size, nargs=2, default=[3 / 4, 4 / 3], metavar="F", help="aspect of crops (default: 0.75 1.33)"
    )
    group.add_argument("--hflip", type=fraction, default=0.5, metavar="P", help="horizontal flips (default: 0.5)")
    group.add_argument("--vflip", type=fraction, default=0.0, metavar="P", help="vertical flips (default: 0)")
    group.add_argument("--color-jitter", type=amount, default=0.4, metavar="F", help="colour jitter (default: 0.4)")
    group.add_argument(
        "--color-jitter-prob", type=fraction, metavar="P", help="share of images with colour jitter (default: all)"
    )
    group.add_argument("--grayscale-prob", type=fraction, metavar="P", help="share of images made grey (default: 0)")
    group.add_argument(
        "--gaussian-blur-prob", type=fraction, metavar="P", help="share of images that are blurred (default: 0)"
    )
    group.add_argument("--aa", metavar="POLICY", help="AutoAugment policy, such as rand-m9-mstd0.5 (default: none)")
    group.add_argument(
        "--aug-repeats",
        type=count,
        default=0,
        metavar="N",
        help="views of each image, spread over the processes (default: 0)",
    )
    group.add_argument(
        "--aug-splits",
        type=count,
        default=0,
        metavar="N",
        help="views of an image in a batch, the first plain (default: 0)",
    )
    group.add_argument("--reprob", type=fraction, default=0.0, metavar="P", help="random erasing (default: 0)")
    group.add_argument(
        "--remode",
        default="pixel",
        choices=CHOICES["remode"],
        help="erased areas hold noise, a random colour or black (default: pixel)",
    )
    group.add_argument("--recount", type=positive, default=1, metavar="N", help="most areas to erase (default: 1)")
    group.add_argument("--resplit", action="store_true", help="erase nothing in the first, plain part of a batch")
    group.add_argument(
        "--train-interpolation",
        default="random",
        choices=CHOICES["train_interpolation"],
        metavar="NAME",
        help=f"resizing: {', '.join(INTERPOLATIONS)}, or random for bilinear and bicubic by turns (default: random)",
    )


def _add_loss(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loss")
    group.add_argument("--smoothing", type=below_one, default=0.1, metavar="F", help="label smoothing (default: 0.1)")
    group.add_argument("--jsd-loss", action="store_true", help="Jensen-Shannon divergence between --aug-splits views")
    group.add_argument("--bce-loss", action="store_true", help="binary cross-entropy of each class")
    group.add_argument("--bce-sum", action="store_true", help="sum --bce-loss over the classes, instead of their mean")
    group.add_argument(
        "--bce-target-thresh",
        type=fraction,
        metavar="F",
        help="targets above this count as 1, others as 0 (default: as is)",
    )
    group.add_argument("--bce-pos-weight", type=size, metavar="F", help="weight of the classes that an image has")


def _add_distillation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--kd-model-name",
        metavar="NAME",
        help="learn from the outputs of this model too, with its published weights or those of local-dir:FOLDER",
    )
    group.add_argument(
        "--kd-distill-type",
        default="logit",
        choices=CHOICES["kd_distill_type"],
        help="what is compared with the other model: logits (default: logit)",
    )
    group.add_argument(
        "--kd-loss-type",
        default="kl",
        choices=CHOICES["kd_loss_type"],
        help="how it is compared: Kullback-Leibler divergence (default: kl)",
    )
    group.add_argument(
        "--distill-loss-weight",
        type=amount,
        metavar="F",
        help="weight of the teacher's loss (default: 1, or what a --task-loss-weight leaves of 1)",
    )
    group.add_argument("--task-loss-weight", type=amount, metavar="F", help="weight of the labels' loss (default: 1)")
    group.add_argument(
        "--kd-temperature", type=size, default=4.0, metavar="F", help="softens both outputs (default: 4)"
    )


def _add_mixing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("mixing")
    group.add_argument("--mixup", type=amount, default=0.0, metavar="F", help="mixup alpha, 0 for none (default: 0)")
    group.add_argument("--cutmix", type=amount, default=0.0, metavar="F", help="cutmix alpha, 0 for none (default: 0)")
    group.add_argument(
        "--cutmix-minmax",
        type=fraction,
        nargs=2,
        metavar="F",
        help="least and greatest side of cutmix, in place of alpha",
    )
    group.add_argument(
        "--mixup-prob",
        type=fraction,
        default=1.0,
        metavar="P",
        help="share of batches, pairs or images that are mixed (default: 1)",
    )
    group.add_argument(
        "--mixup-switch-prob",
        type=fraction,
        default=0.5,
        metavar="P",
        help="share of cutmix if both are on (default: 0.5)",
    )
    group.add_argument(
        "--mixup-mode",
        default="batch",
        choices=CHOICES["mixup_mode"],
        help="draw shares per batch, pair or image (elem); half makes a batch of half the size (default: batch)",
    )
    group.add_argument(
        "--mixup-off-epoch",
        type=count,
        default=0,
        metavar="N",
        help="no mixing from this epoch on, 0 for never (default: 0)",
    )


def _add_regularisation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("regularisation")
    group.add_argument("--drop", type=fraction, default=0.0, metavar="P", help="dropout before the head (default: 0)")
    group.add_argument("--drop-path", type=fraction, metavar="P", help="stochastic depth rate (default: none)")


def _add_norms(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("batch norms, in models that have them")
    group.add_argument("--sync-bn", action="store_true", help="take statistics of batch norms over all processes")
    group.add_argument(
        "--dist-bn",
        default="reduce",
        choices=CHOICES["dist_bn"],
        help="after an epoch, take the running statistics of the first process, or average all (default: reduce)",
    )


def _add_ema(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("averaged weights")
    group.add_argument("--model-ema", action="store_true", help="keep and evaluate an exponential moving average")
    group.add_argument(
        "--model-ema-force-cpu", action="store_true", help="keep the average on the CPU, and do not evaluate it"
    )
    group.add_argument(
        "--model-ema-decay", type=fraction, default=0.9998, metavar="F", help="decay of the average (default: 0.9998)"
    )
    group.add_argument(
        "--model-ema-warmup", action="store_true", help="let the decay rise from 0 over the first updates"
    )


def _add_nonfinite(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("numbers that are not finite")
    group.add_argument(
        "--max-bad-steps",
        type=count,
        default=0,
        metavar="N",
        help="leave out updates whose loss or gradients are not finite, and stop after N in a row. 0 leaves out none, "
        "and stops at a loss that is not finite (default: 0)",
    )
    group.add_argument(
        "--find-nonfinite",
        action="store_true",
        help="look at every update, and name the layer where a bad one began: its batches run again, with hooks",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=seed, default=42, metavar="S", help="random seed (default: 42)")
    group.add_argument(
        "--output", default=DEFAULT_OUTPUT, metavar="DIR", help=f"where run folders go (default: {DEFAULT_OUTPUT})"
    )
    group.add_argument(
        "--experiment",
        default="",
        metavar="NAME",
        help="name of the run's folder, numbered if it exists (default: date, model and size)",
    )
    group.add_argument(
        "--log-interval", type=positive, default=50, metavar="N", help="batches between lines of the log (default: 50)"
    )
    group.add_argument(
        "--recovery-interval",
        type=count,
        default=0,
        metavar="N",
        help="updates of an epoch between recovery checkpoints, 0 for none (default: 0)",
    )
    group.add_argument(
        "--checkpoint-hist",
        type=positive,
        default=10,
        metavar="N",
        help="epochs' checkpoints to keep, the best (default: 10)",
    )
    group.add_argument(
        "--val-interval", type=positive, default=1, metavar="N", help="epochs between evaluations (default: 1)"
    )
    group.add_argument("--save-images", action="store_true", help="save the batches that the log shows, as pictures")
    group.add_argument(
        "--eval-metric",
        default="top1",
        choices=CHOICES["eval_metric"],
        help="what the best checkpoint and the plateau schedule go by (default: top1)",
    )
    group.add_argument(
        "--tta",
        type=number(*RANGES["tta"]),
        default=0,
        metavar="N",
        help="average the outputs of N views: the image, its mirror image, both shifted to each corner (default: 0)",
    )
    group.add_argument(
        "--log-tensorboard", action="store_true", help="log to TensorBoard too, in the folder tensorboard of the run"
    )
    group.add_argument(
        "--log-functions",
        type=count,
        default=10,
        metavar="N",
        help="epochs between pictures of the learned functions in TensorBoard or Weights & Biases, 0 for none "
        "(default: 10)",
    )
    group.add_argument("--log-wandb", action="store_true", help="log to Weights & Biases too, if wandb is installed")
    group.add_argument(
        "--wandb-project", metavar="NAME", help="project in Weights & Biases (default: KAT's, scale-kan)"
    )
    group.add_argument("--wandb-tags", nargs="+", default=[], metavar="TAG", help="tags in Weights & Biases")
    group.add_argument("--wandb-resume-id", default="", metavar="ID", help="run in Weights & Biases to continue")
