"""Evaluation: loss and accuracy of a model on a data set."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from timm.utils import AverageMeter, accuracy
from torch import Tensor, nn

from . import checkpoints, distributed
from .arguments import DEFAULT_MODEL
from .errors import InputError
from .models import create_model, is_same_model
from .sampling import own_images

__all__ = ["Metrics", "autocast", "data_config", "evaluate", "model_arguments", "model_from_checkpoint", "prepared"]


@dataclass(frozen=True)
class Metrics:
    """Averages over all images: cross-entropy, and top-1 and top-5 accuracy in percent."""

    loss: float
    top1: float
    top5: float


class Meters:
    """Running averages of a pass over a data set, kept as tensors so that a GPU need not wait for the host."""

    def __init__(self) -> None:
        self.loss, self.top1, self.top5 = AverageMeter(), AverageMeter(), AverageMeter()

    def update(self, output: torch.Tensor, target: torch.Tensor, loss: torch.Tensor) -> None:
        top1, top5 = accuracy(output.detach(), target, topk=(1, 5))
        for meter, value in ((self.loss, loss.detach()), (self.top1, top1), (self.top5, top5)):
            # In float32 the sum over ImageNet would lose whole images.
            meter.update(value if value.device.type == "mps" else value.double(), len(target))

    def sums(self) -> list[float]:
        """The sums of this process, and over how many images."""
        return [*(float(meter.sum) for meter in (self.loss, self.top1, self.top5)), self.loss.count]

    def add(self, sums: list[float]) -> None:
        """Add the :meth:`sums` of earlier batches."""
        for meter, value in zip((self.loss, self.top1, self.top5), sums[:3], strict=True):
            meter.sum += value
            meter.count += int(sums[3])

    def metrics(self) -> Metrics:
        """The averages over the images of all processes, which call this together.

        Raises:
            InputError: none of them has seen an image.
        """
        *sums, count = distributed.total(self.sums())
        if not count:
            raise InputError(
                "a whole pass over the data gave no images: see what its files hold, and --input-key and --target-key"
            )
        return Metrics(*(value / count for value in sums))


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


class _Views(nn.Module):
    """A model's mean output for views of each image: itself, its mirror image, then both moved towards the corners."""

    def __init__(self, model: nn.Module, views: int) -> None:
        super().__init__()
        self.model, self.views = model, views

    def forward(self, images: Tensor) -> Tensor:
        return sum(self.model(view) for view in self._of(images)) / self.views

    def _of(self, images: Tensor) -> Iterator[Tensor]:
        # Every fourteenth of the side, as far as a crop of 87.5% may be from the centre.
        step = max(1, images.shape[-1] // 14)
        moves = [(0, 0), (-step, -step), (-step, step), (step, -step), (step, step)]
        for index in range(self.views):
            moved = _moved(images, *moves[index // 2])
            yield moved.flip(-1) if index % 2 else moved


def _moved(images: Tensor, down: int, right: int) -> Tensor:
    """Images moved by some pixels; what comes in at the edges repeats them."""
    if not down and not right:
        return images
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right).clamp(0, width - 1)
    return images.index_select(-2, rows).index_select(-1, columns)


class _EvenBatches(nn.Module):
    """A compiled model's outputs, for which batches smaller than one before are filled up: a new size is compiled anew.

    That is cheaper than code for any size, and leaves modes that need one size, such as reduce-overhead, to be chosen.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.size = model, 0

    def forward(self, images: Tensor) -> Tensor:
        count = len(images)
        self.size = max(self.size, count)
        if count < self.size:
            # At the end of the first dimension, which is the last that it names.
            images = nn.functional.pad(images, [0] * (2 * images.ndim - 1) + [self.size - count])
        return self.model(images)[:count]


def prepared(model: nn.Module, args: Namespace) -> nn.Module:
    """What a pass over a data set calls: the model, in even batches where compiled, over views as ``--tta`` asks."""
    if args.torchcompile:
        model = _EvenBatches(model)
    return _Views(model, args.tta) if args.tta > 1 else model


@torch.inference_mode()
def evaluate(
    models: Mapping[str, nn.Module],
    loader: Any,
    precision: AbstractContextManager,
    on_batch: Callable[[int, Meters], None] = lambda index, meters: None,
) -> dict[str, Metrics]:
    """Evaluate models, by name, in one pass over all batches of a loader.

    Several processes evaluate a share each, and get the averages over all. ``on_batch`` sees those of the share so far,
    of the first model.
    """
    meters = {name: Meters() for name in models}
    for model in models.values():
        model.eval()
    own, seen = own_images(loader), 0
    for index, (images, target) in enumerate(loader):
        count = len(target) if own is None else min(len(target), own - seen)
        target, seen = target[:count], seen + count
        for name, model in models.items():
            with precision:
                output = model(images)[:count]
            if count:
                meters[name].update(output, target, nn.functional.cross_entropy(output.float(), target))
        on_batch(index, next(iter(meters.values())))
    return {name: each.metrics() for name, each in meters.items()}


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
