"""Learning from another model's outputs beside the labels: a teacher, and its part of the loss."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ..errors import InputError
from ..evaluation.restore import model_arguments
from ..models import create_model
from ..system.device import place

__all__ = ["Distillation", "build_distillation"]


class Distillation(nn.Module):
    """What a loss becomes with a teacher: w_t loss + w_d T^2 KL(softmax(teacher / T) || softmax(output / T)).

    The divergence (Hinton et al., 2015, section 2) is the mean over the images.

    Args:
        teacher: gives logits of the same classes for the same images; it is not trained.
        scale: factors of the channels of images normalised for the student, which the teacher has otherwise.
        shift: what is added to them then.
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
        """The loss of a batch: a number, the student's logits (B, classes) and normalised images (B, C, H, W)."""
        with torch.no_grad():
            taught = self.teacher(images if self.is_normalised else images * self.scale + self.shift)
        own, theirs = (F.log_softmax(logits.float() / self.temperature, dim=-1) for logits in (output, taught))
        divergence = F.kl_div(own, theirs, reduction="batchmean", log_target=True) * self.temperature**2
        return self.task_weight * loss + self.distill_weight * divergence


def build_distillation(
    args: Namespace, config: dict[str, Any], device: torch.device, say: Callable[[str], None]
) -> Distillation | None:
    """What ``--kd-model-name`` and its like ask for; None without.

    Args:
        args: the flags; ``num_classes`` is known.
        config: timm's data configuration of the student: how its images are normalised.
        device: where it computes.
        say: told of the teacher.

    Raises:
        InputError: flags that do not go together, no such model or weights, or a teacher of other classes.
    """
    weights = args.task_loss_weight, args.distill_loss_weight
    if args.kd_model_name is None:
        if weights != (None, None):
            raise InputError("--task-loss-weight and --distill-loss-weight need a teacher: give --kd-model-name")
        return None
    task_weight, distill_weight = _weights(*weights)
    asked = {"model": args.kd_model_name, "model_kwargs": {}, "pretrained": True}
    # Its own classes and pooling, and the student's images.
    asked |= {"num_classes": None, "gp": None, "input_size": config["input_size"]}
    teacher: Any = create_model(args.kd_model_name, **model_arguments(Namespace(**{**vars(args), **asked})))
    if teacher.num_classes != args.num_classes:
        raise InputError(
            f"--kd-model-name {args.kd_model_name} tells {teacher.num_classes} classes apart, the data has "
            f"{args.num_classes}: give a teacher of these"
        )
    say(f"Learning from {args.kd_model_name} too: {sum(p.numel() for p in teacher.parameters()):,} parameters")
    (mean, std), (their_mean, their_std) = (
        [torch.tensor(each[name], dtype=torch.float64) for name in ("mean", "std")]
        for each in (config, resolve_model_data_config(teacher))
    )
    scale, shift = std / their_std, (mean - their_mean) / their_std
    distillation = Distillation(teacher, scale, shift, task_weight, distill_weight, args.kd_temperature)
    place(distillation, args, device)
    return distillation


def _weights(task: float | None, distill: float | None) -> tuple[float, float]:
    """timm's rule: both as given, 1 where not; but the labels' alone leaves the teacher the rest of 1."""
    if task is not None and distill is None:
        if task > 1:
            raise InputError("--task-loss-weight leaves the rest of 1 to the teacher: give --distill-loss-weight too")
        return task, 1 - task
    return 1.0 if task is None else task, 1.0 if distill is None else distill
