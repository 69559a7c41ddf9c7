"""Evaluation: loss and accuracy of a model on a data set, and the ``flashkat validate`` command."""

import json
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.utils import AverageMeter, accuracy
from torch import nn

from . import checkpoints
from .arguments import DEFAULT_MODEL, resolve_device
from .data import ImageFolder, evaluation_loader, open_split
from .errors import InputError
from .models import create_model, names_weights

__all__ = ["Metrics", "autocast", "data_config", "evaluate", "model_from_checkpoint", "validate"]


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

    def metrics(self) -> Metrics:
        return Metrics(*(float(meter.avg) for meter in (self.loss, self.top1, self.top5)))


def autocast(args: Namespace, device: torch.device) -> AbstractContextManager:
    """Autocast as ``--amp`` and ``--amp-dtype`` ask for."""
    return torch.autocast(device.type, getattr(torch, args.amp_dtype)) if args.amp else nullcontext()


def data_config(model: nn.Module, args: Namespace) -> dict[str, Any]:
    """timm's resolved input size, crop, interpolation, mean and standard deviation.

    Raises:
        InputError: values that do not fit the model's channels.
    """
    for name in ("mean", "std"):
        given = getattr(args, name)
        if given is not None and len(given) not in (1, 3):
            raise InputError(f"--{name} takes 1 or 3 numbers, not {len(given)}")
    return resolve_data_config(vars(args), model=model)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Any,
    precision: AbstractContextManager,
    on_batch: Callable[[int, Meters], None] = lambda index, meters: None,
) -> Metrics:
    """Evaluate a model on all batches of a loader; ``on_batch`` sees the averages so far."""
    model.eval()
    meters = Meters()
    for index, (images, target) in enumerate(loader):
        with precision:
            output = model(images)
        meters.update(output, target, nn.functional.cross_entropy(output.float(), target))
        on_batch(index, meters)
    return meters.metrics()


def model_from_checkpoint(
    args: Namespace, say: Callable[[str], None] = lambda line: None
) -> tuple[nn.Module, dict[str, Any]]:
    """The model that ``args`` name, with the weights of ``args.checkpoint``, and what else that file says.

    What the arguments leave open (model, its arguments, image size, classes) is taken from the checkpoint. A name that
    says where its weights are (``hf_hub:OWNER/NAME``, ``local-dir:FOLDER``, or with a tag, NAME.TAG) comes with them
    unless there is a checkpoint. What ``--partial`` leaves out is told through ``say``.
    """
    if args.use_ema and not args.checkpoint:
        raise InputError("--use-ema needs a --checkpoint to take the averaged weights from")
    checkpoint = checkpoints.read(args.checkpoint) if args.checkpoint else {}
    state = checkpoints.weights(checkpoint, args.use_ema) if args.checkpoint else {}
    trained, arch = checkpoint.get("args"), checkpoint.get("arch")
    if not args.model and args.checkpoint and not arch:
        raise InputError(f"{args.checkpoint} does not say what model it is of: give --model, and --model-kwargs if any")
    args.model = args.model or arch or DEFAULT_MODEL
    if args.model == arch and trained:
        args.model_kwargs = {**trained.get("model_kwargs", {}), **args.model_kwargs}
        for name in ("img_size", "num_classes", "crop_pct", "interpolation", "mean", "std"):
            if getattr(args, name, None) is None:
                setattr(args, name, trained.get(name))
    if args.num_classes is None and "head.bias" in state:
        args.num_classes = len(state["head.bias"])
    pretrained = not args.checkpoint and names_weights(args.model)
    model = create_model(
        args.model,
        pretrained=pretrained or None,
        img_size=args.img_size,
        num_classes=args.num_classes,
        **args.model_kwargs,
    )
    if args.checkpoint:
        left = checkpoints.load_weights(model, state, args.checkpoint, partial=args.partial)
        if left:
            say(f"{args.checkpoint} fits in part: {left}")
    return model, checkpoint


def validate(args: Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Run ``flashkat validate``: report timm's lines through ``say`` and return timm's result."""
    device = resolve_device(args.device)
    dataset = open_split(args.data_dir, args.split)
    model, checkpoint = model_from_checkpoint(args, say)
    _check_classes(dataset, model, checkpoint)
    config = data_config(model, args)
    loader = evaluation_loader(dataset, config, args.batch_size, args.workers, device)

    say(f"Validating in {f'mixed precision ({args.amp_dtype})' if args.amp else 'float32'}...")
    if args.checkpoint:
        say(f"Loaded state_dict{'_ema' if args.use_ema else ''} from checkpoint '{args.checkpoint}'")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"Model {args.model} created, param count: {parameters}")
    say("Data processing configuration for current model + dataset:")
    for name, value in config.items():
        say(f"\t{name}: {value}")

    clock = _Clock()

    def report(index: int, meters: Meters) -> None:
        clock.tick()
        if index % args.log_freq == 0 or index == len(loader) - 1:
            say(_test_line(index, len(loader), clock, meters))

    metrics = evaluate(model.to(device), loader, autocast(args, device), report)
    result = {
        "model": args.model,
        "top1": round(metrics.top1, 4),
        "top1_err": round(100 - metrics.top1, 4),
        "top5": round(metrics.top5, 4),
        "top5_err": round(100 - metrics.top5, 4),
        "param_count": round(parameters / 1e6, 2),
        "img_size": config["input_size"][-1],
        "crop_pct": config["crop_pct"],
        "interpolation": config["interpolation"],
    }
    say(
        f" * Acc@1 {result['top1']:.3f} ({result['top1_err']:.3f}) "
        f"Acc@5 {result['top5']:.3f} ({result['top5_err']:.3f})"
    )
    return result


def result_text(result: dict[str, Any]) -> str:
    """A result as timm's scripts print it, for programs to find."""
    return f"--result\n{json.dumps(result, indent=4)}"


def _check_classes(dataset: ImageFolder, model: nn.Module, checkpoint: dict[str, Any]) -> None:
    trained = checkpoint.get("classes")
    if trained == dataset.classes:
        return
    if trained:
        raise InputError(
            f"{dataset.reader.root} has other classes than the checkpoint was trained on: "
            f"{len(dataset.classes)} from {dataset.classes[0]} to {dataset.classes[-1]}, "
            f"not {len(trained)} from {trained[0]} to {trained[-1]}"
        )
    if len(dataset.classes) != model.num_classes:
        raise InputError(
            f"{dataset.reader.root} has {len(dataset.classes)} classes, the model has {model.num_classes} outputs"
        )


class _Clock:
    """Seconds of the last batch, and their average."""

    def __init__(self) -> None:
        self.meter = AverageMeter()
        self._last = time.perf_counter()

    def tick(self) -> None:
        now = time.perf_counter()
        self.meter.update(now - self._last)
        self._last = now


def _test_line(index: int, batches: int, clock: _Clock, meters: Meters) -> str:
    seconds = clock.meter

    def pair(meter: AverageMeter, width: int, digits: int) -> str:
        return f"{float(meter.val):>7.{digits}f} ({float(meter.avg):>{width}.{digits}f})"

    return (
        f"Test: [{index:>4d}/{batches}]  "
        f"Time: {seconds.val:.3f}s ({seconds.avg:.3f}s, {meters.loss.count / seconds.sum:>7.2f}/s)  "
        f"Loss: {pair(meters.loss, 6, 4)}  "
        f"Acc@1: {pair(meters.top1, 7, 3)}  Acc@5: {pair(meters.top5, 7, 3)}"
    )
