"""Knowledge distillation: a teacher, and its term in the loss."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ..data.config import Data
from ..errors import InputError
from ..evaluation.restore import model_arguments
from ..models import create_model
from ..models.config import Model
from ..system.device import Runtime, place
from . import config

__all__ = ["Distillation", "build_distillation"]


class Distillation(nn.Module):
    """The loss with a teacher: w_t loss + w_d T^2 KL(softmax(teacher / T) || softmax(output / T)).

    The divergence is the mean over the images. Source: Hinton et al., 2015, section 2.

    Args:
        teacher: gives logits (B, classes) of the student's classes; it is frozen.
        scale: factors (C,) that turn images normalised for the student into the teacher's.
        shift: offsets (C,) that are added after them.
        task_weight: w_t.
        distill_weight: w_d.
        temperature: T.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        teacher: nn.Module,
        scale: Tensor,
        shift: Tensor,
        task_weight: float,
        distill_weight: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.task_weight, self.distill_weight, self.temperature = task_weight, distill_weight, temperature
        for name, values in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, values.view(-1, 1, 1))
        self.is_normalised = bool((scale == 1).all() and (shift == 0).all())

    def forward(self, loss: Tensor, output: Tensor, images: Tensor) -> Tensor:
        """Return the loss of a batch, with the teacher's term.

        Args:
            loss: the loss without a teacher, a number.
            output: the student's logits (B, classes).
            images: normalised for the student, (B, C, H, W).
        """
        with torch.no_grad():
            taught = self.teacher(images if self.is_normalised else images * self.scale + self.shift)
        own, theirs = (F.log_softmax(logits.float() / self.temperature, dim=-1) for logits in (output, taught))
        divergence = F.kl_div(own, theirs, reduction="batchmean", log_target=True) * self.temperature**2
        return self.task_weight * loss + self.distill_weight * divergence


def build_distillation(
    settings: config.Distillation,
    student: Model,
    data: Data,
    images: dict[str, Any],
    runtime: Runtime,
    device: torch.device,
    say: Callable[[str], None],
) -> Distillation | None:
    """Build the teacher's part of the loss; None without a teacher.

    Args:
        settings: the section of the configuration.
        student: the student's section; its ``num_classes`` is not None.
        data: the section of the configuration.
        images: timm's data configuration of the student, with the mean and standard deviation of its images.
        runtime: has the dtype and layout of the teacher.
        device: where the teacher computes.
        say: called with a line about the teacher.

    Raises:
        InputError: the flags contradict each other, the teacher cannot be made, or it has other classes.
    """
    weights, name = (settings.task_loss_weight, settings.distill_loss_weight), settings.kd_model_name
    if name is None:
        if weights != (None, None):
            raise InputError("--task-loss-weight and --distill-loss-weight need a teacher: give --kd-model-name")
        return None
    task_weight, distill_weight = _weights(*weights)
    # The teacher keeps its own classes and pooling, but sees the student's images.
    arguments = model_arguments(Model(model=name, pretrained=True), replace(data, input_size=images["input_size"]))
    teacher: Any = create_model(name, **arguments)
    if teacher.num_classes != student.num_classes:
        raise InputError(
            f"--kd-model-name {name} has {teacher.num_classes} classes, the data has {student.num_classes}: "
            "give a teacher of the same classes"
        )
    say(f"Distilling from {name}: {sum(p.numel() for p in teacher.parameters()):,} parameters")
    (mean, std), (their_mean, their_std) = (
        [torch.tensor(each[name], dtype=torch.float64) for name in ("mean", "std")]
        for each in (images, resolve_model_data_config(teacher))
    )
    scale, shift = std / their_std, (mean - their_mean) / their_std
    distillation = Distillation(teacher, scale, shift, task_weight, distill_weight, settings.kd_temperature)
    place(distillation, runtime, device)
    return distillation


def _weights(task: float | None, distill: float | None) -> tuple[float, float]:
    """Return the weights of the task and of the distillation by timm's rule.

    A weight that is not given is 1. If only the task's is given, the teacher's is the rest of 1.
    """
    if task is not None and distill is None:
        if task > 1:
            raise InputError("--task-loss-weight leaves the rest of 1 to the teacher: give --distill-loss-weight too")
        return task, 1 - task
    return 1.0 if task is None else task, 1.0 if distill is None else distill
