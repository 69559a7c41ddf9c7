"""Count the operations and parameters of a Vision Transformer or a KAT, part by part: ``flashkat flops``.

The counts are of one forward pass on one image. A multiply-add counts as one operation, as in the papers' tables.

- Linear layers and convolutions take inputs times outputs for each token.
- Attention multiplies queries with keys, and weights with values.
- A rational takes 2 (m - 1) + 2 n + 3 for each element (Yang & Wang, ICLR 2025). Horner's scheme takes two for each
  of the degrees m - 1 and n. The absolute values and the division take three.
- A norm takes 5 for each element.

Fixed activations, softmax and residual additions are not counted. The KAT paper's tables leave out the products in
attention too, so the report gives a second total without them.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..errors import InputError, explain
from ..models import create_model
from ..nn.grkan import GRKAN
from ..nn.group_rational import GroupRational

__all__ = ["Cost", "count", "flops", "rational_flops"]

_NORM_FLOPS = 5

PATCHES, TOKENS, ATTENTION, PRODUCTS = (
    "patch embedding",
    "tokens, positions",
    "attention, linear",
    "attention, products",
)
GRKANS, MLPS, RATIONALS, NORMS = "GR-KANs, linear", "MLPs, linear", "rationals", "norms"
HEAD, OTHER = "head", "other"
_ORDER = (PATCHES, TOKENS, ATTENTION, PRODUCTS, GRKANS, MLPS, RATIONALS, NORMS, HEAD, OTHER)


@dataclass(frozen=True)
class Cost:
    """The operations for one image, and the number of parameters."""

    flops: int
    parameters: int


def rational_flops(elements: int, m: int = 6, n: int = 4) -> int:
    """Return the operations of a rational with m numerator and n denominator coefficients on ``elements`` elements."""
    return elements * (2 * (m - 1) + 2 * n + 3)


def flops(
    name: str,
    img_size: int | None = None,
    num_classes: int | None = None,
    model_kwargs: Mapping[str, Any] = MappingProxyType({}),
    *,
    as_json: bool = False,
) -> str:
    """Return the report that ``flashkat flops`` prints.

    Args:
        name: a Vision Transformer or KAT in timm's registry.
        img_size: side of the image in pixels; None takes the model's.
        num_classes: number of classes; None takes the model's.
        model_kwargs: more arguments of the model.
        as_json: return JSON with exact numbers in place of a table.

    Returns:
        The table or the JSON text.

    Raises:
        InputError: the model cannot be made, or is no Vision Transformer.
    """
    arguments = {"img_size": img_size, "num_classes": num_classes, **model_kwargs}
    try:
        model = create_model(name, **{"weight_init": "skip", "device": "meta", **arguments})
    except InputError:
        # Models of other kinds do not take these two. If the user's arguments are wrong, this raises again.
        model = create_model(name, **arguments)
    if not isinstance(model, VisionTransformer):
        raise InputError(f"{name} is not a Vision Transformer: give the name of a ViT or a KAT")
    size = model.patch_embed.img_size
    # The patches of a hybrid are cut from the features of a convolutional backbone, which sees the image.
    first = next(module for module in model.patch_embed.modules() if isinstance(module, nn.Conv2d))
    parts = count(model, (first.in_channels, *size))
    total = Cost(sum(part.flops for part in parts.values()), sum(part.parameters for part in parts.values()))
    as_papers = total.flops - parts.get(PRODUCTS, Cost(0, 0)).flops
    if as_json:
        return json.dumps(
            {
                "model": name,
                "img_size": list(size),
                "parts": {key: asdict(part) for key, part in parts.items()},
                "total": asdict(total),
                "flops_without_attention_products": as_papers,
            },
            indent=4,
        )
    rows = [(part_name, f"{part.flops / 1e9:.4f}", f"{part.parameters:,}") for part_name, part in parts.items()]
    rows += [("total", f"{total.flops / 1e9:.4f}", f"{total.parameters:,}")]
    rows += [("as in KAT's paper, without attention's products", f"{as_papers / 1e9:.4f}", "")]
    heading = (f"{name}, {size[0]} x {size[1]}", "GFLOPs", "parameters")
    widths = [max(len(row[column]) for row in (heading, *rows)) for column in range(3)]
    lines = [
        f"{label:<{widths[0]}}  {operations:>{widths[1]}}  {parameters:>{widths[2]}}".rstrip()
        for label, operations, parameters in (heading, *rows)
    ]
    rule = "-" * (sum(widths) + 4)
    return "\n".join([lines[0], rule, *lines[1:-2], rule, *lines[-2:]])


def count(model: nn.Module, shape: tuple[int, ...]) -> dict[str, Cost]:
    """Count the cost of each part of a Vision Transformer on one image.

    Args:
        model: the model, on any device; "meta" computes nothing.
        shape: shape of the image, (channels, height, width).

    Returns:
        The cost by the part's name, without parts that cost nothing.
    """
    operations: Counter[str] = Counter()
    parameters: Counter[str] = Counter()

    def norm_hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        operations[NORMS] += _NORM_FLOPS * output.numel()

    hooks = [module.register_forward_hook(norm_hook) for module in model.modules() if _is_norm(module)]
    device = next(model.parameters()).device
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.flashkat.rational: _count_rational})
    training = model.training
    try:
        # PyTorch's counter does not know the CPU's operator of flash attention.
        with explain("cannot run the model"), sdpa_kernel(SDPBackend.MATH), counter:
            model.eval()(torch.empty(1, *shape, device=device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()

    for path, module, own in _own_counts(model, counter.get_flop_counts()):
        for operator, number in own.items():
            rational = operator is torch.ops.flashkat.rational
            # PyTorch counts a multiply-add as two.
            operations[RATIONALS if rational else _part(path, module, model)] += number if rational else number // 2
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            part = _part(path, module, model)
            parameters[ATTENTION if part == PRODUCTS else part] += parameter.numel()
    return {part: Cost(operations[part], parameters[part]) for part in _ORDER if operations[part] or parameters[part]}


def _count_rational(
    x: tuple[int, ...], numerator: tuple[int, ...], denominator: tuple[int, ...], *args, **kwargs
) -> int:
    return rational_flops(math.prod(x), numerator[1], denominator[1])


def _own_counts(
    model: nn.Module, counts: dict[str, dict[Any, int]]
) -> Iterator[tuple[str, nn.Module, Counter[Callable]]]:
    """Yield the operations of each module without those of its children."""
    root = type(model).__name__

    def counted(path: str) -> Counter[Callable]:
        return Counter(counts.get(f"{root}.{path}" if path else root, {}))

    for path, module in model.named_modules():
        own = counted(path)
        for name, _ in module.named_children():
            own.subtract(counted(f"{path}.{name}" if path else name))
        yield path, module, own


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _part(path: str, module: nn.Module, model: nn.Module) -> str:
    steps = path.split(".")
    if not path:
        return TOKENS
    if isinstance(module, GroupRational):
        return RATIONALS
    if _is_norm(module):
        return NORMS
    if steps[0] == "patch_embed":
        return PATCHES
    if steps[0] == "head":
        return HEAD
    if "mlp" in steps:
        owner = model.get_submodule(".".join(steps[: steps.index("mlp") + 1]))
        return GRKANS if isinstance(owner, GRKAN) else MLPS
    if "attn" in steps or "attn_pool" in steps:
        return ATTENTION if isinstance(module, nn.Linear) else PRODUCTS
    return OTHER
