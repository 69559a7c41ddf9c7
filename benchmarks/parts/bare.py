"""Time two bare parts of training: a captured step on one GPU, and an all-reduce over several.

``python -m benchmarks.parts.bare step MODEL SIDE BATCH STEPS`` prints the images/s of a compiled step in one CUDA
graph, the median over runs of so many steps. A step is forward, loss, backward, clipping, fused AdamW and the average
of the weights. Loader, mixing and meters are left out.

``python -m benchmarks.parts.bare all_reduce BYTES``, started by torchrun, prints milliseconds.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable

import timm
import torch
import torch.distributed as dist
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2

import flashkat  # noqa: F401  registers the models
from flashkat.training.average import MovingAverage

_WARM_UP, _ROUNDS, _CALLS = 5, 5, 20


def step(model_name: str, side: int, batch: int, steps: int) -> float:
    """Return the images/s of a captured training step.

    Args:
        model_name: name in timm's registry.
        side: side of the images in pixels.
        batch: images of a step.
        steps: steps of a run. A short one may find the GPU's clock higher than training does.
    """
    torch.set_float32_matmul_precision("high")
    with torch.device("cuda"):
        model = timm.create_model(model_name, weight_init="", img_size=side, drop_path_rate=0.1).train()
        images, target = torch.randn(batch, 3, side, side), torch.rand(batch, model.num_classes).softmax(1)
        weight = torch.tensor(1e-4)
    average = MovingAverage(model)
    model.compile(dynamic=False)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, fused=True, capturable=True)
    loss_function, parameters = SoftTargetCrossEntropy(), list(model.parameters())

    def one() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_function(model(images), target)
        with torch.autograd.set_multithreading_enabled(False):
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.approach(model, weight)

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            one()
    with torch.cuda.graph(graph, stream=stream):
        one()
    return batch / _seconds(graph.replay, steps)


def all_reduce(size: int) -> float:
    """Return the milliseconds that NCCL takes to sum ``size`` bytes of float32 over the processes."""
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    summed = torch.ones(size // 4, device="cuda")
    milliseconds = 1e3 * _seconds(lambda: dist.all_reduce(summed), _CALLS)
    dist.destroy_process_group()
    return milliseconds


def _seconds(call: Callable[[], object], calls: int) -> float:
    times = []
    for _ in range(_ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    found = step(given[0], *map(int, given[1:])) if name == "step" else all_reduce(int(given[0]))
    if int(os.environ.get("RANK", 0)) == 0:
        print(found)
