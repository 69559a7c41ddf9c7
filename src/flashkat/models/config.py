"""The section of the configuration for the model and the weights it starts from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..defaults import DEFAULT_MODEL

__all__ = ["Model"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model and the weights it starts from. Fields have the names of timm's flags.

    Attributes:
        model: its name in timm's registry. None takes the name in a checkpoint.
        num_classes: number of classes; None takes as many as the data set lists.
        model_kwargs: more arguments of the model, such as ``{"m": 6, "n": 4}``.
        pretrained_path: file of the weights to start from, of a KAT or a ViT.
        initial_checkpoint: the same; loaded last if both are given.
        partial: load the tensors that fit, and leave out the others.
        no_recompute_rationals: save the rationals' values for the backward pass on a GPU, which takes more memory.
    """

    model: str | None = DEFAULT_MODEL
    pretrained: bool = False
    num_classes: int | None = None
    gp: str | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False
    pretrained_path: str | None = None
    initial_checkpoint: str = ""
    head_init_scale: float | None = None
    head_init_bias: float | None = None
    grad_checkpointing: bool = False
    no_recompute_rationals: bool = False
    drop: float = 0.0
    drop_path: float | None = None

    @property
    def name(self) -> str:
        """The model's name, or the default if none is given."""
        return self.model or DEFAULT_MODEL
