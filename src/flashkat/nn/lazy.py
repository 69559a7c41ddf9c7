"""A GroupRational that learns its number of channels from the first input."""

from typing import Any

from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin

from .group_rational import GroupRational

__all__ = ["LazyGroupRational"]


class LazyGroupRational(LazyModuleMixin, GroupRational):
    """A :class:`flashkat.GroupRational` for an ``act_layer``, which is not told how many channels there are.

    The first input decides, and the module becomes a GroupRational. The coefficients are there from the beginning, so
    an optimiser may be made before.

    Args:
        groups: number of groups. It must divide the channels.
        dim: the channel dimension of the input: -1 for channels last, 1 for NCHW. None takes the last dimension of
            an input with one or two, and refuses others.
        inplace: accepted and ignored, as timm passes it to an ``act_layer``.
        **kwargs: as GroupRational's.

    Raises:
        ValueError: see GroupRational; in the first forward pass, channels that the groups do not divide, or input
            whose layout is unknown.
        RuntimeError: ``torch.fx`` traces before the first input.
    """

    cls_to_become = GroupRational

    def __init__(self, groups: int = 8, *, dim: int | None = None, inplace: bool = False, **kwargs: Any) -> None:
        super().__init__(groups, groups, dim=-1 if dim is None else dim, **kwargs)
        self.channels = 0
        self._dim_is_known = dim is not None

    def initialize_parameters(self, x: Tensor) -> None:
        """Learn the number of channels. PyTorch calls this before the first forward pass."""
        if not isinstance(x, Tensor):
            raise RuntimeError("a LazyGroupRational does not know its channels yet: call the model before tracing it")
        shape = tuple(x.shape)
        if not self._dim_is_known and len(shape) > 2:
            raise ValueError(
                f"x of shape {shape} does not say where its channels are: give dim=-1 for channels last or dim=1 for "
                "NCHW, as in functools.partial(LazyGroupRational, dim=1)"
            )
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(f"dim {self.dim} is out of range for x of shape {shape}")
        if not shape[self.dim] or shape[self.dim] % self.groups:
            raise ValueError(
                f"{shape[self.dim]} channels (dim {self.dim} of x) do not divide into {self.groups} groups"
            )
        self.channels = shape[self.dim]
