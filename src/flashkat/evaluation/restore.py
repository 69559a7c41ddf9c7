"""The model that a checkpoint holds, ready to evaluate."""

from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from torch import nn

from .. import checkpoints
from ..errors import InputError
from ..models import create_model, is_same_model
from ..models.create import DEFAULT_MODEL

__all__ = ["autocast", "data_config", "model_arguments", "model_from_checkpoint"]


def autocast(args: Namespace, device: torch.device) -> AbstractContextManager:
    """Autocast as ``--amp`` and ``--amp-dtype`` ask for."""
    return torch.autocast(device.type, getattr(torch, args.amp_dtype)) if args.amp else nullcontext()


def data_config(model: nn.Module, args: Namespace, use_test_size: bool = False) -> dict[str, Any]:
    """timm's resolved input size, crop, interpolation, mean and standard deviation.

    ``use_test_size`` takes the model's size and crop for tests, where it has such.

    Raises:
        InputError: values that do not fit the model's channels.
    """
    channels = args.input_size[0] if args.input_size else args.in_chans or 3
    for name in ("mean", "std"):
        given = getattr(args, name)
        if given is not None and len(given) not in (1, channels):
            wanted = "1 number" if channels == 1 else f"1 or {channels} numbers"
            raise InputError(f"--{name} takes {wanted}, not {len(given)}")
    config = resolve_data_config(vars(args), model=model, use_test_size=use_test_size)
    if config["input_size"][0] != channels and not (args.input_size or args.in_chans):
        raise InputError(f"{args.model} takes images of {config['input_size'][0]} channels: give --in-chans")
    for name in ("mean", "std"):
        if len(config[name]) != channels:  # the model's own are for other images
            config[name] = (sum(config[name]) / len(config[name]),) * channels
    return config


def model_arguments(args: Namespace) -> dict[str, Any]:
    """What the flags of every command say about a model, for :func:`flashkat.models.create_model`."""
    size = args.input_size[1:] if args.input_size else None
    configuration = get_pretrained_cfg(args.model)
    has_size = configuration is None or configuration.fixed_input_size  # others, such as ResNets, take any
    return {
        "img_size": ((size[0] if size[0] == size[1] else tuple(size)) if size else args.img_size) if has_size else None,
        "in_chans": args.input_size[0] if args.input_size else args.in_chans,
        "num_classes": args.num_classes,
        "global_pool": args.gp,
        "pretrained": args.pretrained or None,
        **args.model_kwargs,
    }


def model_from_checkpoint(
    args: Namespace, say: Callable[[str], None] = lambda line: None
) -> tuple[nn.Module, dict[str, Any]]:
    """The model that ``args`` name, with the weights of ``args.checkpoint``, and what else that file says.

    What the arguments leave open (model, its arguments, image size, classes) is taken from the checkpoint. Without one
    the model comes with its published weights, as in timm. What ``--partial`` leaves out is told through ``say``.
    """
    if args.use_ema and not args.checkpoint:
        raise InputError("--use-ema needs a --checkpoint to take the averaged weights from")
    checkpoint = checkpoints.read(args.checkpoint) if args.checkpoint else {}
    state = checkpoints.weights(checkpoint, args.use_ema) if args.checkpoint else {}
    trained, arch = checkpoint.get("args"), checkpoint.get("arch")
    if not args.model and args.checkpoint and not arch:
        raise InputError(f"{args.checkpoint} does not say what model it is of: give --model, and --model-kwargs if any")
    args.model = args.model or arch or DEFAULT_MODEL
    if trained and arch and is_same_model(args.model, arch):
        args.model_kwargs = {**trained.get("model_kwargs", {}), **args.model_kwargs}
        sized = args.img_size is not None or args.input_size is not None
        for name in (
            "img_size",
            "input_size",
            "in_chans",
            "num_classes",
            "gp",
            "crop_pct",
            "interpolation",
            "mean",
            "std",
        ):
            if getattr(args, name, None) in (None, "") and not (sized and name in ("img_size", "input_size")):
                setattr(args, name, trained.get(name))
    if args.num_classes is None and "head.bias" in state:
        args.num_classes = len(state["head.bias"])
    args.pretrained = not args.checkpoint
    model = create_model(args.model, **model_arguments(args))
    if args.checkpoint:
        left = checkpoints.load_weights(model, state, args.checkpoint, partial=args.partial)
        if left:
            say(f"{args.checkpoint} fits in part: {left}")
    return model, checkpoint
