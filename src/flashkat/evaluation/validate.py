"""Evaluate one model on one data set, and print timm's lines."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from timm.utils import check_batch_size_retry, decay_batch_step, random_seed
from torch import nn

from ..checkpoints.load import notes_on_average
from ..data.bad_images import bad_image_names
from ..data.config import data_config
from ..data.datasets import open_dataset
from ..data.loaders import evaluation_loader
from ..errors import InputError, require
from ..system import distributed
from ..system.compile import Compilation, compile_in_place, require_backend
from ..system.device import autocast, place, prepare_process
from ..system.heartbeat import watched
from ..system.stalls import explain_workers
from .config import Config, Evaluation, check_values
from .evaluate import evaluate, prepared
from .labels import Selected, check_classes, read_real_labels, read_valid_labels
from .metrics import Meters
from .nonfinite import refuse_outputs
from .restore import about_held_out, restore
from .results import ClassAverages, Clock, Result, progress_line

__all__ = ["PassError", "prepare", "validate"]

Say = Callable[[str], None]


class PassError(InputError):
    """A pass over the data failed in one of several processes. The others wait for it."""


def validate(config: Config, say: Say = lambda line: None) -> Result:
    """Evaluate a model on a data set.

    Under torchrun all processes call this together. Each evaluates a share, and all get the same result.

    Args:
        config: see :class:`Config`.
        say: called with each of timm's lines, in the first process only.

    Raises:
        InputError: the configuration, the checkpoint or the data cannot be used.
    """
    prepare(config)
    with distributed.joined(config.runtime.device) as device, watched(distributed.rank(), distributed.size()):
        check_processes(config.evaluation)
        return validate_on(config, device, say if distributed.is_primary() else lambda line: None)


def prepare(config: Config) -> None:
    """Check a configuration and prepare this process, before processes join."""
    check_values(config)
    prepare_process(config.runtime)
    if config.evaluation.metrics_avg:
        require("sklearn")
    if config.evaluation.real_labels and config.data.skip_bad_images:
        raise InputError("--real-labels counts every image: leave out --skip-bad-images")
    require_backend(config.compilation)
    random_seed(config.runtime.seed)


def check_processes(evaluation: Evaluation) -> None:
    """Raise InputError if several processes run, and a setting works in one process only."""
    given = {
        "--num-gpu": evaluation.num_gpu > 1,
        "--retry": evaluation.retry,
        "--real-labels": evaluation.real_labels,
        "--metrics-avg": evaluation.metrics_avg,
    }
    wrong = [flag for flag, is_given in given.items() if is_given]
    if wrong and distributed.size() > 1:
        raise InputError(f"{wrong[0]} needs a process that sees all images: start without torchrun")


def validate_on(config: Config, device: torch.device, say: Say, told: set[str] | None = None) -> Result:
    """Evaluate on a device. With ``retry``, use smaller batches until they fit in memory.

    Args:
        config: see :class:`Config`.
        device: where the model computes.
        say: called with each line.
        told: lines about the data set that were said for other models. It is extended.
    """
    size, told = config.data.batch_size, set() if told is None else told
    while True:
        try:
            return _validate(replace(config, data=replace(config.data, batch_size=size)), device, say, told)
        except InputError:
            raise
        except RuntimeError as error:
            smaller = decay_batch_step(size)
            if not config.evaluation.retry or not smaller or not check_batch_size_retry(str(error)):
                raise
            say(f"Batches of {size} failed ({str(error).splitlines()[0]}), retrying with {smaller}")
            size = smaller
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _validate(config: Config, device: torch.device, say: Say, told: set[str]) -> Result:
    settings, trained, runtime = config.evaluation, config.trained, config.runtime
    found = restore(config.model, trained, config.data, say)
    model, data = found.module, found.data
    # After the model, as the checkpoint may give the images' number of channels.
    with distributed.one_by_one(data.dataset_download):
        dataset = open_dataset(
            data,
            data.val_split,
            num_samples=data.val_num_samples,
            num_classes=config.model.num_classes,
            seed=runtime.seed,
        )
    notes = [*dataset.notes, *about_held_out(dataset, found.checkpoint, trained.checkpoint)]
    for note in notes:
        if note not in told:
            say(note)
    told.update(notes)
    valid_labels = read_valid_labels(settings.valid_labels, model)
    check_classes(dataset, model, found.checkpoint, valid_labels)
    dataset.num_classes = model.num_classes if valid_labels is None else len(valid_labels)
    real_labels = read_real_labels(settings.real_labels, dataset)
    images = data_config(
        model, data, found.name, use_test_size=not settings.use_train_size, crop_mode=settings.crop_mode
    )
    loader = evaluation_loader(dataset, images, data, runtime, device, crop_border_pixels=settings.crop_border_pixels)

    precision = f"mixed precision ({runtime.amp_dtype})" if runtime.amp else runtime.model_dtype or "float32"
    say(f"Validating in {precision}...")
    if trained.checkpoint:
        say(f"Loaded state_dict{'_ema' if trained.use_ema else ''} from checkpoint '{trained.checkpoint}'")
        for note in notes_on_average(found.checkpoint, trained.use_ema):
            say(note)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"Model {found.name} created, param count: {parameters}")
    say("Data processing configuration for current model + dataset:")
    for name, value in images.items():
        say(f"\t{name}: {value}")

    clock = Clock()

    def report(index: int, meters: Meters) -> None:
        clock.tick()
        if index % settings.log_freq == 0 or index == len(loader) - 1:
            say(progress_line(index, len(loader), clock, meters))

    parallel = _parallel(place(model, runtime, device), config.compilation, settings.num_gpu, device)
    model = prepared(parallel, bool(config.compilation.torchcompile), settings.tta)
    if valid_labels is not None:
        model = Selected(model, torch.tensor(valid_labels, device=device))
    if real_labels is not None:
        model.register_forward_hook(lambda module, images, output: real_labels.add_result(output))
    averages = ClassAverages(settings.metrics_avg, model) if settings.metrics_avg else None
    batches: Any = averages.seeing(loader) if averages else loader
    try:
        with explain_workers():
            (metrics,) = evaluate(
                {found.name: model}, batches, autocast(runtime, device), report, data.skip_bad_images
            ).values()
    except InputError as error:
        raise (PassError(str(error)) if distributed.size() > 1 else error) from error.__cause__
    refuse_outputs(trained.checkpoint or found.name, metrics.nonfinite, metrics.images)
    if bad := bad_image_names([dataset]):
        say(f"Images that cannot be read, which do not count: {len(bad)}")
    for name in bad:
        say(name)
    top1, top5 = metrics.top1, metrics.top5
    if real_labels is not None:
        top1, top5 = (real_labels.get_accuracy(k=k) for k in real_labels.topk)
    result = Result(
        model=found.name,
        loss=metrics.loss,
        top1=top1,
        top5=top5,
        parameters=parameters,
        img_size=images["input_size"][-1],
        crop_pct=images["crop_pct"],
        interpolation=images["interpolation"],
        averages=averages.result() if averages else {},
    )
    row = result.row()
    line = f" * Acc@1 {row['top1']:.3f} ({row['top1_err']:.3f}) Acc@5 {row['top5']:.3f} ({row['top5_err']:.3f})"
    say(line + (averages.line() if averages else ""))
    return result


def _parallel(model: nn.Module, compilation: Compilation, gpus: int, device: torch.device) -> nn.Module:
    compile_in_place(model, compilation)
    if gpus == 1:
        return model
    if device.type != "cuda" or gpus > torch.cuda.device_count():
        raise InputError(f"--num-gpu {gpus} is more than the {torch.cuda.device_count()} GPUs: give fewer")
    return nn.DataParallel(model, device_ids=list(range(gpus)))
