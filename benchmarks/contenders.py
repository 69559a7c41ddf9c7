"""Whole models in turn: a KAT with our kernels, the same KAT with the published ones, and timm's ViT of the same size.

Each eager, compiled, and compiled with CUDA graphs. The published kernels are put in the place of the KAT's rationals,
so that nothing else differs. A compiler sees them as it sees ours, as operators that it cannot look into; eager mode
calls them directly.
"""

import functools
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

import flashkat

from .common import Call, Measure, Row, alternate

__all__ = ["CONTENDERS", "SIZES", "WAYS", "compare", "make_model", "pairs"]

SIZES = ("tiny", "small", "base")
CONTENDERS = ("ours", "vit", "flashkat paper", "kat")
WAYS: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "eager": lambda model: model,
    "compiled": lambda model: torch.compile(model, dynamic=False),
    "graphs": lambda model: torch.compile(model, dynamic=False, mode="reduce-overhead"),
}
"""How a model is called, by name."""

_LATER_CALLS = 2  # of CUDA graphs the second call records and the third replays

_Operator = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_model(contender: str, size: str, device: str, **kwargs: Any) -> nn.Module:
    """A model at its random start; ``kwargs`` are timm's, the same for all contenders."""
    family = "vit" if contender == "vit" else "kat"
    # timm's own initialisation, for all: KAT's takes a CPU half a minute at size Base, and changes no time.
    with torch.device(device):
        model = timm.create_model(f"{family}_{size}_patch16_224", weight_init="", **kwargs)
    if family == "kat" and contender != "ours":
        _swap(model, _published(contender))
    return model


def _swap(model: nn.Module, function: _Operator) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, flashkat.GroupRational):
            model.set_submodule(name, _Rational(module, function))


class _Rational(nn.Module):
    """The coefficients of a GroupRational, and another function."""

    def __init__(self, rational: flashkat.GroupRational, function: _Operator) -> None:
        super().__init__()
        self.numerator, self.denominator = rational.numerator, rational.denominator
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.numerator, self.denominator)


@functools.cache
def _published(contender: str) -> _Operator:
    from . import baselines  # Triton is imported only by what needs it

    name = contender.partition(" ")[0]
    direct = getattr(baselines, name)
    opaque = _registered(name, getattr(baselines, f"{name}_forward"), getattr(baselines, f"{name}_backward"))

    def function(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return direct(x, a, b)
        return opaque(x.float(), a, b).to(x.dtype)  # the casts of the published code, open to the compiler

    return function


def _registered(name: str, forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, ...]]) -> _Operator:
    """A forward and a backward pass on float32 tensors as operators that compilers take as they are."""
    ours = "Tensor x, Tensor a, Tensor b"
    schemas = {"forward": f"({ours}) -> Tensor", "backward": f"(Tensor grad, {ours}) -> (Tensor, Tensor, Tensor)"}

    def operator(which: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
        made = torch.library.custom_op(
            f"flashkat_benchmarks::{name}_{which}", function, mutates_args=(), schema=schemas[which]
        )
        made.register_fake(fake)
        return made

    forward_op = operator("forward", forward, lambda x, a, b: torch.empty_like(x))
    backward_op = operator(
        "backward",
        lambda grad, x, a, b: backward(grad.contiguous(), x, a, b),
        lambda grad, x, a, b: tuple(map(torch.empty_like, (x, a, b))),
    )
    forward_op.register_autograd(
        lambda ctx, grad: backward_op(grad, *ctx.saved_tensors),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    return forward_op


def compare(
    case: Row, batch: int, makers: Mapping[str, Callable[[], Call]], measure: Measure, rounds: int
) -> list[Row]:
    """Make contenders, take each one's memory while it alone computes, and time them in turn.

    Args:
        case: what the rows say of the case.
        batch: images in a step.
        makers: by name, what makes a contender; what it returns does one step.
        measure: microseconds of a step.
        rounds: how often each is measured.

    Returns:
        A row per contender: the case and its ``contender``, ``images_per_s``, the times of a step as of
        :func:`alternate`, ``first_step_s``, the seconds of the first step, which compiles, ``peak_gib`` and ``run``,
        the same for contenders that took turns. ``peak_gib`` is the largest amount of memory in tensors from the
        second step on, less what contenders made before hold. That includes the recording of CUDA graphs, since
        their replays allocate nothing that is counted. Without a GPU it is None.
    """
    torch.compiler.reset()  # otherwise what was compiled for earlier cases counts towards PyTorch's limit
    run = time.strftime("%Y-%m-%dT%H:%M:%S")
    steps: dict[str, Call] = {}
    first: dict[str, Row] = {}
    for name, make in makers.items():
        gc.collect()
        held = torch.cuda.memory_allocated() if torch.cuda.is_available() else None
        steps[name] = make()
        start = time.perf_counter()
        steps[name]()
        if held is not None:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        first[name] = {"first_step_s": round(time.perf_counter() - start, 1)}
        for _ in range(_LATER_CALLS):
            steps[name]()
        peak = None if held is None else round((torch.cuda.max_memory_allocated() - held) / 2**30, 4)
        first[name] |= {"peak_gib": peak, "run": run}
    rows = []
    for name, row in alternate(steps, measure, rounds).items():
        speed = {"images_per_s": round(batch / row["median_us"] * 1e6, 1)}
        rows.append({**case, "batch": batch, "contender": name, **speed, **row, **first[name]})
    return rows


def pairs(rows: Sequence[Row], keys: Sequence[str]) -> Iterator[tuple[Row, Row]]:
    """Each row of our KAT with that of the ViT that took turns with it; ``keys`` tell cases apart."""
    same = (*keys, "run")
    for ours, vit in itertools.product(rows, rows):
        if (ours["contender"], vit["contender"]) == ("ours", "vit") and all(ours[key] == vit[key] for key in same):
            yield ours, vit
