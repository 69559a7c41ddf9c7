"""``flashkat validate``: one model, or every model of a list, with timm's lines and results."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import RealLabelsImagenet
from timm.utils import check_batch_size_retry, decay_batch_step, random_seed
from timm.utils.misc import natural_key
from torch import Tensor, nn

from ..checkpoints.load import notes_on_average
from ..data.datasets import open_dataset
from ..data.loaders import evaluation_loader
from ..errors import InputError, UnreachableError, explain, require
from ..system import distributed
from ..system.compile import choose_compilation, compile_in_place
from ..system.device import place, prepare_process
from ..system.files import check_writable
from .evaluate import evaluate, prepared
from .metrics import Meters
from .restore import autocast, data_config, model_from_checkpoint
from .results import _ClassAverages, _Clock, _test_line, write_results

__all__ = ["run_validation", "validate"]

_CHECKPOINTS = ("*.pth.tar", "*.pth", "*.safetensors", "*.npz")

# What "--model all" means.
_ALL = "*kat_*"

Say = Callable[[str], None]


def run_validation(args: Namespace, say: Say) -> dict[str, Any] | list[dict[str, Any]]:
    """Run ``flashkat validate``: one result, or for a list of models or checkpoints one each, the best first.

    Under torchrun each process evaluates a share; all return the same, and the first one says the lines and writes.
    """
    prepare_process(args)
    if args.metrics_avg:
        require("sklearn")
    random_seed(args.seed)
    with distributed.joined(args.device) as device:
        _check_processes(args)
        choose_compilation(args, device)
        is_primary = distributed.is_primary()
        say = say if is_primary else lambda line: None
        jobs = _jobs(args)
        if jobs is not None:
            args.results_file = args.results_file or "results-all.csv"
        if args.results_file:
            check_writable(Path(args.results_file))
        results: Any = (
            _validate_with_retries(args, device, say) if jobs is None else _validate_all(args, device, jobs, say)
        )
        if args.results_file and is_primary:
            write_results(args.results_file, results, args.results_format)
            say(f"Wrote {args.results_file}")
    return results


def _check_processes(args: Namespace) -> None:
    """Raise InputError for what one process alone can do."""
    given = {
        "--num-gpu": args.num_gpu > 1,
        "--retry": args.retry,
        "--real-labels": args.real_labels,
        "--metrics-avg": args.metrics_avg,
    }
    wrong = [flag for flag, is_given in given.items() if is_given]
    if wrong and distributed.size() > 1:
        raise InputError(f"{wrong[0]} needs a process that sees all images: start without torchrun")


def _jobs(args: Namespace) -> list[dict[str, str]] | None:
    """The models and checkpoints of a list, or None where the flags name one."""
    if args.checkpoint and Path(args.checkpoint).is_dir():
        paths = {str(path) for pattern in _CHECKPOINTS for path in Path(args.checkpoint).glob(pattern)}
        if not paths:
            raise InputError(f"no checkpoints ({', '.join(_CHECKPOINTS)}) in {args.checkpoint}")
        return [{"checkpoint": path} for path in sorted(paths, key=natural_key)]
    if not args.model or timm.is_model(args.model):
        return None
    if Path(args.model).is_file():
        try:
            names = [line.strip() for line in Path(args.model).read_text().splitlines()]
        except UnicodeDecodeError as error:
            raise InputError(
                f"--model {args.model} is no text with a name a line: weights go with --checkpoint"
            ) from error
        names = [name for name in names if name and not name.startswith("#")]
    elif args.model == "all" or any(sign in args.model for sign in "*?["):
        names = timm.list_models(_ALL if args.model == "all" else args.model, pretrained=not args.checkpoint)
    else:
        return None
    if not names:
        weights = "" if args.checkpoint else " that have published weights"
        raise InputError(f"--model {args.model} names no models{weights}")
    return [{"model": name} for name in names]


def _validate_all(args: Namespace, device: torch.device, jobs: list[dict[str, str]], say: Say) -> list[dict[str, Any]]:
    results, errors = [], []
    for job in jobs:
        try:
            result = _validate_with_retries(Namespace(**{**vars(args), **job}), device, say)
        except UnreachableError:
            raise  # every other download would be tried as long, in vain
        except InputError as error:
            errors.append(error)
            say(f"{job.get('checkpoint') or job['model']} is left out: {error}")
        else:
            results.append({**result, **{name: value for name, value in job.items() if name == "checkpoint"}})
    if not results:
        raise errors[0]
    return sorted(results, key=lambda result: result["top1"], reverse=True)


def _validate_with_retries(args: Namespace, device: torch.device, say: Say) -> dict[str, Any]:
    batch_size = args.batch_size
    while True:
        # What the checkpoint says is filled in; another try starts from what was typed.
        attempt = Namespace(**{**vars(args), "batch_size": batch_size})
        try:
            return validate(attempt, device, say)
        except InputError:
            raise
        except RuntimeError as error:
            smaller = decay_batch_step(batch_size)
            if not args.retry or not smaller or not check_batch_size_retry(str(error)):
                raise
            say(f"Batches of {batch_size} do not work ({str(error).splitlines()[0]}), trying {smaller}")
            batch_size = smaller
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def validate(args: Namespace, device: torch.device, say: Say) -> dict[str, Any]:
    """Evaluate one model: report timm's lines through ``say`` and return timm's result."""
    model, checkpoint = model_from_checkpoint(args, say)
    # After the model, as its checkpoint may say how many channels images have.
    with distributed.one_by_one(args.dataset_download):
        dataset = open_dataset(args, args.split, num_samples=args.num_samples)
    valid_labels = _read_labels(args.valid_labels, model)
    _check_classes(dataset, model, checkpoint, valid_labels)
    dataset.num_classes = model.num_classes if valid_labels is None else len(valid_labels)
    real_labels = _real_labels(args, dataset)
    config = data_config(model, args, use_test_size=not args.use_train_size)
    loader = evaluation_loader(dataset, config, args, device)

    precision = f"mixed precision ({args.amp_dtype})" if args.amp else args.model_dtype or "float32"
    say(f"Validating in {precision}...")
    if args.checkpoint:
        say(f"Loaded state_dict{'_ema' if args.use_ema else ''} from checkpoint '{args.checkpoint}'")
        for note in notes_on_average(checkpoint, args.use_ema):
            say(note)
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

    model = prepared(_parallel(place(model, args, device), args, device), args)
    if valid_labels is not None:
        model = _Selected(model, torch.tensor(valid_labels, device=device))
    if real_labels is not None:
        model.register_forward_hook(lambda module, images, output: real_labels.add_result(output))
    averages = _ClassAverages(args.metrics_avg, model) if args.metrics_avg else None
    batches = averages.seeing(loader) if averages else loader
    (metrics,) = evaluate({args.model: model}, batches, autocast(args, device), report).values()
    top1, top5 = metrics.top1, metrics.top5
    if real_labels is not None:
        top1, top5 = (real_labels.get_accuracy(k=k) for k in real_labels.topk)
    result = {
        "model": args.model,
        "top1": round(top1, 4),
        "top1_err": round(100 - top1, 4),
        "top5": round(top5, 4),
        "top5_err": round(100 - top5, 4),
        **(averages.result() if averages else {}),
        "param_count": round(parameters / 1e6, 2),
        "img_size": config["input_size"][-1],
        "crop_pct": config["crop_pct"],
        "interpolation": config["interpolation"],
    }
    line = (
        f" * Acc@1 {result['top1']:.3f} ({result['top1_err']:.3f}) "
        f"Acc@5 {result['top5']:.3f} ({result['top5_err']:.3f})"
    )
    say(line + (averages.line() if averages else ""))
    return result


class _Selected(nn.Module):
    """A model's outputs for some classes."""

    def __init__(self, model: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.model, self.labels = model, labels

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[:, self.labels]


def _parallel(model: nn.Module, args: Namespace, device: torch.device) -> nn.Module:
    compile_in_place(model, args)
    if args.num_gpu == 1:
        return model
    if device.type != "cuda" or args.num_gpu > torch.cuda.device_count():
        raise InputError(f"--num-gpu {args.num_gpu}, but there are {torch.cuda.device_count()} GPUs")
    return nn.DataParallel(model, device_ids=list(range(args.num_gpu)))


def _read_labels(path: str, model: Any) -> list[int] | None:
    if not path:
        return None
    with explain(f"cannot read --valid-labels {path}, the indices of outputs, one a line"):
        labels = [int(line) for line in Path(path).read_text().split()]
    outputs = model.num_classes
    wrong = [label for label in labels if not 0 <= label < outputs]
    if wrong or not labels:
        raise InputError(f"--valid-labels {path} has to name some of the outputs 0 to {outputs - 1}, not {wrong[:1]}")
    return labels


def _real_labels(args: Namespace, dataset: Any) -> RealLabelsImagenet | None:
    """The labels of ``--real-labels``, that count a model's hits among its first and its first five outputs, or all."""
    if not args.real_labels:
        return None
    if not Path(args.real_labels).is_file():
        raise InputError(f"no file of --real-labels at {args.real_labels}")
    what = "--real-labels are for the 50,000 images of ImageNet's validation split, ILSVRC2012_val_00000001.JPEG to ..."
    with explain(what):
        names = dataset.filenames(basename=True)
        labelled = len(json.loads(Path(args.real_labels).read_text()))
        if labelled != len(names):
            raise InputError(f"{what}: {args.real_labels} has labels for {labelled} images, not {len(names)}")
        labels = RealLabelsImagenet(names, real_json=args.real_labels, topk=(1, min(5, dataset.num_classes)))
        unknown = [name for name in names if name not in labels.real_labels]
        if unknown:
            raise InputError(f"{what}, not {unknown[0]}")
    return labels


def _check_classes(dataset: Any, model: Any, checkpoint: dict[str, Any], valid_labels: list[int] | None) -> None:
    trained, known = checkpoint.get("classes"), dataset.classes
    if valid_labels is not None and known and len(valid_labels) != len(known):
        raise InputError(f"{dataset.source} has {len(known)} classes, --valid-labels names {len(valid_labels)}")
    if valid_labels is not None or not known or trained == known:
        return
    if trained:
        raise InputError(
            f"{dataset.source} has other classes than the checkpoint was trained on: "
            f"{len(known)} from {known[0]} to {known[-1]}, not {len(trained)} from {trained[0]} to {trained[-1]}"
        )
    if len(known) != model.num_classes:
        raise InputError(f"{dataset.source} has {len(known)} classes, the model has {model.num_classes} outputs")
