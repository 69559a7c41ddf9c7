"""Compare whole models: a KAT with our kernels, the KAT with the published kernels, and timm's ViT of its size.

Each runs eager, compiled, and compiled with CUDA graphs. The published kernels replace the KAT's rationals. Then
PyTorch or the compiler computes the LayerNorm and the bias before them, which our kernels fuse.

Compiled code launches our kernels itself. It calls the published kernels as opaque operators, as it would call KAT's
CUDA C++ kernel. Each such call costs host time, which CUDA graphs avoid.
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
    "SAVED",
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
SAVED = "ours, saved"
"""The KAT that saves its rationals' values, for comparison with the one that recomputes them."""
WAYS: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "eager": lambda model: model,
    "compiled": lambda model: torch.compile(model, dynamic=False),
    "graphs": lambda model: torch.compile(model, dynamic=False, mode="reduce-overhead"),
}
"""The ways to call a model, by name."""

LEGEND = """\
  --ways        eager; compiled (torch.compile); graphs (torch.compile with CUDA graphs, mode "reduce-overhead")
  --contenders  ours (a KAT); vit (timm's ViT); "flashkat paper" and kat (the KAT with these papers' kernels)

Contenders take turns, so that every ratio compares times of the same minute. KAT's kernel takes seconds for a training
step, and is measured only a few times.

Compiling takes about half a minute for each contender, so the command can run in parts. The cases that it runs replace
those in the result. All others stay, and must come from the same code, versions and machine. On several GPUs parts may
run at once, each with its own CUDA_VISIBLE_DEVICES and enough cores. For example:

  --sizes tiny --ways eager compiled
  --sizes tiny --ways graphs --contenders ours vit "flashkat paper"

With --quick, models and batches are toys. That needs no GPU, except with the papers' kernels:

  --quick --output quick.json --contenders ours vit --sizes tiny
"""
"""The end of the help of a command that compares models."""

_PATIENCE_US = 1e7  # enough for two or more measurements of KAT's kernel, and for all of the others


@dataclass(frozen=True)
class Scale:
    """The size of everything: timm's arguments for a model, and the most images in a batch."""

    model: Mapping[str, Any]
    most_images: int


USUAL = Scale({"img_size": 224}, 2**20)
TOY = Scale({"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 2}, 2)

Operator = Callable[[Tensor, Tensor, Tensor], Tensor]


def check_device(contenders: Sequence[str], quick: bool) -> None:
    """End the program with one line if contenders need a GPU and there is none."""
    if not quick:
        require_gpu()
    elif set(contenders).intersection(_PAPERS) and not torch.cuda.is_available():
        raise SystemExit("the papers' kernels need a CUDA GPU, and torch sees none here: give --contenders ours vit")


def make_model(contender: str, size: str, device: str, **kwargs: Any) -> nn.Module:
    """Make a contender's model with random weights.

    Args:
        contender: name of the contender.
        size: "tiny", "small" or "base".
        device: where to make it.
        **kwargs: timm's arguments, the same for all contenders.
    """
    family = "vit" if contender == "vit" else "kat"
    # timm's initialisation for all. KAT's takes half a minute on a CPU at size base, and does not change any time.
    with torch.device(device):
        model = timm.create_model(f"{family}_{size}_patch16_224", weight_init="", **kwargs)
    if contender == SAVED:
        for module in model.modules():
            if isinstance(module, flashkat.GRKAN):
                module.recompute = False
    elif family == "kat" and contender != "ours":
        swap_rationals(model, _published(contender))
    return model


def swap_rationals(model: nn.Module, function: Operator) -> None:
    """Replace a model's rationals in place by another function of x, numerator and denominator."""
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
        return opaque(x.float(), a, b).to(x.dtype)  # the compiler may fuse the casts of the published code

    return function


def _registered(name: str, forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, ...]]) -> Operator:
    """Register a forward and a backward pass on float32 tensors as opaque operators."""
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
    """Make contenders, measure the memory of each, and time them in turn.

    Args:
        case: the entries of the rows that describe the case.
        batch: images in a step.
        makers: functions by name that make a contender and return its step.
        measure: returns the microseconds of a step.
        rounds: measurements of each contender; a slow one gets fewer.

    Returns:
        A row per contender: the case, ``contender``, ``images_per_s``, the times of :func:`alternate`, and the entries
        of :func:`_start`. ``over_vit`` and ``peak_over_vit`` are speed and memory over the ViT's, None without a ViT.
    """
    torch.compiler.reset()  # otherwise compilations of earlier cases count towards PyTorch's limit
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
    """Make a contender and run two steps, and return it with ``first_step_s`` and ``peak_gib``.

    The first step compiles. The second records CUDA graphs, and allocates all that their replays use. The peak is the
    largest amount of memory in tensors during the second step, without that of other contenders. It is None without a
    GPU.
    """
    gc.collect()
    torch.cuda.empty_cache()  # unused memory cannot be released while a CUDA graph is recorded
    held = None
    if torch.cuda.is_available():
        # cuBLAS allocates 32 MiB at its first call and keeps them.
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
