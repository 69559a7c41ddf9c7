"""Whole models in turn: a KAT with our kernels, the same KAT with the published ones, and timm's ViT of the same size.

Each eager, compiled, and compiled with CUDA graphs. The published kernels are put in the place of the KAT's rationals;
the LayerNorm and the bias before these, which our kernels take in, are PyTorch's or the compiler's then. A compiler
launches our kernels itself, and calls the published ones as operators that it cannot look into, as KAT's, in CUDA C++,
is for it. That costs the host some time in each of them, which CUDA graphs leave out.
"""

import functools
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

import flashkat

from .common import Call, Measure, Row, alternate, require_gpu

__all__ = [
    "CONTENDERS",
    "LEGEND",
    "SIZES",
    "TOY",
    "USUAL",
    "WAYS",
    "Scale",
    "check_device",
    "compare",
    "make_model",
    "swap_rationals",
]

SIZES = ("tiny", "small", "base")
_PAPERS = ("flashkat paper", "kat")
CONTENDERS = ("ours", "vit", *_PAPERS)
WAYS: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "eager": lambda model: model,
    "compiled": lambda model: torch.compile(model, dynamic=False),
    "graphs": lambda model: torch.compile(model, dynamic=False, mode="reduce-overhead"),
}
"""How a model is called, by name."""

LEGEND = """\
  --ways        eager; compiled, by torch.compile; graphs, by torch.compile in mode "reduce-overhead", CUDA graphs
  --contenders  ours, a KAT; vit, timm's ViT; "flashkat paper" and kat, the KAT with these papers' kernels

Contenders take turns, so that every ratio is between times of the same minute. Compiling takes half a minute or so for
each, so that the command runs in parts: what it runs of sizes and ways takes its place in the result, with the
contenders that were picked; the rest stays, and has to be of the same code, versions and machine. KAT's kernel takes
seconds a step in training and is measured a few times only. On several GPUs parts may run at once, each with its own
CUDA_VISIBLE_DEVICES, where there are processors enough that none waits for one. For example:

  --sizes tiny --ways eager compiled
  --sizes tiny --ways graphs --contenders ours vit "flashkat paper"

With --quick, models and batches are toys. That needs no GPU, except with the papers' kernels:

  --quick --output quick.json --contenders ours vit --sizes tiny
"""
"""What the help of a command that compares models says of them."""

_PATIENCE_US = 1e7  # of a step's measurements: two or more of KAT's kernel, all of the others


@dataclass(frozen=True)
class Scale:
    """How large everything is: timm's arguments for a model, and the most images in a batch."""

    model: Mapping[str, Any]
    most_images: int


USUAL = Scale({"img_size": 224}, 2**20)
TOY = Scale({"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 2}, 2)

Operator = Callable[[Tensor, Tensor, Tensor], Tensor]


def check_device(contenders: Sequence[str], quick: bool) -> None:
    """End the program with one line where contenders cannot run here, or would not say anything about GPUs."""
    if not quick:
        require_gpu()
    elif set(contenders).intersection(_PAPERS) and not torch.cuda.is_available():
        raise SystemExit("the papers' kernels need a CUDA GPU, and torch sees none here: give --contenders ours vit")


def make_model(contender: str, size: str, device: str, **kwargs: Any) -> nn.Module:
    """A model at its random start; ``kwargs`` are timm's, the same for all contenders."""
    family = "vit" if contender == "vit" else "kat"
    # timm's own initialisation, for all: KAT's takes a CPU half a minute at size Base, and changes no time.
    with torch.device(device):
        model = timm.create_model(f"{family}_{size}_patch16_224", weight_init="", **kwargs)
    if family == "kat" and contender != "ours":
        swap_rationals(model, _published(contender))
    return model


def swap_rationals(model: nn.Module, function: Operator) -> None:
    """Let a model's rationals compute what another function of tensor, numerator and denominator does, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, flashkat.GroupRational):
            model.set_submodule(name, _Rational(module, function))


class _Rational(nn.Module):
    """The coefficients of a GroupRational, and another function."""

    def __init__(self, rational: flashkat.GroupRational, function: Operator) -> None:
        super().__init__()
        self.numerator, self.denominator = rational.numerator, rational.denominator
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.numerator, self.denominator)


@functools.cache
def _published(contender: str) -> Operator:
    from . import baselines

    name = contender.partition(" ")[0]
    direct = getattr(baselines, name)
    opaque = _registered(name, getattr(baselines, f"{name}_forward"), getattr(baselines, f"{name}_backward"))

    def function(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return direct(x, a, b)
        return opaque(x.float(), a, b).to(x.dtype)  # the casts of the published code, open to the compiler

    return function


def _registered(name: str, forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, ...]]) -> Operator:
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
        rounds: how often each is measured; one that takes seconds a step, less often.

    Returns:
        A row per contender: the case and its ``contender``, ``images_per_s``, the times of a step as of
        :func:`alternate`, what :func:`_start` says of its first steps, and its speed and memory over the ViT's,
        ``over_vit`` and ``peak_over_vit``, None where there is nothing to compare with.
    """
    torch.compiler.reset()  # otherwise what was compiled for earlier cases counts towards PyTorch's limit
    steps: dict[str, Call] = {}
    starts: dict[str, Row] = {}
    for name, make in makers.items():
        steps[name], starts[name] = _start(make)
    times = alternate(steps, measure, rounds, _PATIENCE_US)
    rows = {
        name: {
            **case,
            "batch": batch,
            "contender": name,
            "images_per_s": round(batch / times[name]["median_us"] * 1e6, 1),
            **times[name],
            **starts[name],
        }
        for name in steps
    }
    vit = rows.get("vit", {})
    ratios = {"over_vit": "images_per_s", "peak_over_vit": "peak_gib"}
    return [{**row, **{ratio: _over(row[key], vit.get(key)) for ratio, key in ratios.items()}} for row in rows.values()]


def _start(make: Callable[[], Call]) -> tuple[Call, Row]:
    """A contender after two steps, with ``first_step_s`` and ``peak_gib``.

    The first step compiles. The peak is the largest amount of memory in tensors during the second, less what other
    contenders hold, and None without a GPU. CUDA graphs are recorded in the second step; what replays of them use is
    allocated then.
    """
    gc.collect()
    torch.cuda.empty_cache()  # while a CUDA graph is recorded, unused memory cannot be given back
    held = None
    if torch.cuda.is_available():
        # cuBLAS keeps 32 MiB from its first call on.
        torch.ones(1, 1, device="cuda").mm(torch.ones(1, 1, device="cuda"))
        held = torch.cuda.memory_allocated()
    step = make()
    start = time.perf_counter()
    step()
    if held is not None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    first = {"first_step_s": round(time.perf_counter() - start, 1)}
    step()
    peak = None if held is None else round((torch.cuda.max_memory_allocated() - held) / 2**30, 4)
    return step, {**first, "peak_gib": peak}


def _over(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else round(value / other, 4)
