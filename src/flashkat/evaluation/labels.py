"""Labels in place of the data set's own: ImageNet's reassessed labels, or a selection of a model's outputs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from timm.data import RealLabelsImagenet
from torch import Tensor, nn

from ..errors import InputError, explain
from ..system.terminal import printable_name

__all__ = ["Selected", "check_classes", "read_real_labels", "read_valid_labels"]


class Selected(nn.Module):
    """A model with a selection of its outputs.

    Args:
        model: gives logits (B, classes).
        labels: indices (selected,) of the outputs to keep.
    """

    def __init__(self, model: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.model, self.labels = model, labels

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[:, self.labels]


def read_valid_labels(path: str, model: Any) -> list[int] | None:
    """Read the indices of the outputs to evaluate, one a line.

    Args:
        path: the file; "" returns None.
        model: has ``num_classes`` outputs.

    Raises:
        InputError: the file cannot be read, or names an output twice, or one that the model does not have.
    """
    if not path:
        return None
    if not Path(path).is_file():
        raise InputError(f"no file of --valid-labels at {path}")
    with explain(f"cannot read --valid-labels {path}, the indices of outputs, one a line"):
        labels = [int(line) for line in Path(path).read_text().split()]
    outputs = model.num_classes
    wrong = [label for label in labels if not 0 <= label < outputs]
    if wrong or not labels:
        raise InputError(f"--valid-labels {path} must list outputs from 0 to {outputs - 1}, not {wrong[:1]}")
    if twice := [label for label, times in Counter(labels).items() if times > 1]:
        raise InputError(f"--valid-labels {path} lists output {twice[0]} again: list each once")
    return labels


def read_real_labels(path: str, dataset: Any) -> RealLabelsImagenet | None:
    """Read ImageNet's reassessed labels, which measure top-1 and top-5 accuracy.

    Args:
        path: the JSON file; "" returns None.
        dataset: its images have the names of ImageNet's validation split.

    Raises:
        InputError: the file cannot be read, or the data set has other images.
    """
    if not path:
        return None
    if not Path(path).is_file():
        raise InputError(f"no file of --real-labels at {path}")
    what = "--real-labels are for the 50,000 images of ImageNet's validation split, ILSVRC2012_val_00000001.JPEG to ..."
    with explain(what):
        names = dataset.filenames(basename=True)
        labelled = len(json.loads(Path(path).read_text()))
        if labelled != len(names):
            raise InputError(f"{what}: {path} has labels for {labelled} images, not {len(names)}")
        labels = RealLabelsImagenet(names, real_json=path, topk=(1, min(5, dataset.num_classes)))
        unknown = [name for name in names if name not in labels.real_labels]
        if unknown:
            raise InputError(f"{what}, not {unknown[0]}")
    return labels


def check_classes(dataset: Any, model: Any, checkpoint: dict[str, Any], valid_labels: list[int] | None) -> None:
    """Raise InputError if a data set has other classes than a model was trained on, or in another order.

    Args:
        dataset: its ``classes`` are names in the order of their labels, or empty if it does not list them.
        model: has ``num_classes`` outputs.
        checkpoint: may list the ``classes`` that the model was trained on.
        valid_labels: the outputs to evaluate; None for all.
    """
    trained, known = checkpoint.get("classes"), dataset.classes
    if valid_labels is not None and known and len(valid_labels) != len(known):
        raise InputError(f"{dataset.source} has {len(known)} classes, --valid-labels names {len(valid_labels)}")
    if valid_labels is not None and known and trained:
        _check_order(dict(zip(known, valid_labels, strict=True)), trained)
    if valid_labels is not None or not known or trained == known:
        return
    if trained:
        raise InputError(
            f"{dataset.source} has other classes than the checkpoint was trained on: "
            f"{len(known)} from {known[0]} to {known[-1]}, not {len(trained)} from {trained[0]} to {trained[-1]}"
        )
    if len(known) != model.num_classes:
        raise InputError(f"{dataset.source} has {len(known)} classes, the model has {model.num_classes} outputs")


def _check_order(chosen: dict[str, int], trained: list[str]) -> None:
    """Raise InputError if a class is measured at the output of another class.

    Args:
        chosen: the output for each of the data's classes. Those that ``trained`` lacks are not checked.
        trained: the names of the outputs.
    """
    outputs = {name: output for output, name in enumerate(trained)}
    for name, output in chosen.items():
        if outputs.get(name, output) != output:
            raise InputError(
                f"--valid-labels has output {output} for the class {printable_name(name)}, which is output "
                f"{outputs[name]} of the checkpoint: list the outputs in the order of the data's classes"
            )
