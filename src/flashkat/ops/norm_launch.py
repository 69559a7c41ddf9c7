"""Launching the kernels that add, normalise and apply the rational function: their tiles, grids and results."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from . import norm_kernels, settings
from .launch import Coefficients, Launch, constants_of, evenly, on, processors, starts_early
from .layout import vector_of


@dataclass(frozen=True)
class Rows:
    """How the kernels see rows of channels: as ``chunks`` of ``vectors`` of ``vector`` channels, ``rows`` at a time."""

    channels: int
    vector: int
    chunks: int
    vectors: int
    rows: int
    warps: int

    @classmethod
    def choose(cls, channels: int, vector: int) -> "Rows":
        """Chunks that leave the fewest lanes idle, then the fewest of them."""
        warps = min(
            triton.next_power_of_2(triton.cdiv(channels, settings.LANES * settings.ROW_CHANNELS_PER_THREAD)),
            settings.MOST_ROW_WARPS,
        )
        lanes = settings.LANES * warps
        largest = min(lanes, triton.next_power_of_2(channels // vector))

        def chunks_of(vectors: int) -> int:
            return triton.cdiv(channels, vectors * vector)

        def idle(vectors: int) -> tuple[int, int]:
            return chunks_of(vectors) * vectors, chunks_of(vectors)

        few = [
            largest // 2**power
            for power in range(largest.bit_length())
            if chunks_of(largest >> power) <= settings.ROW_CHUNKS
        ]
        vectors = min(few or [largest], key=idle)
        chunks = chunks_of(vectors)
        rows = lanes // vectors
        while rows * chunks * vectors * vector < settings.ROW_ELEMENTS_PER_THREAD * lanes:
            rows *= 2
        return cls(channels, vector, chunks, vectors, rows, warps)

    def constants(self) -> dict[str, Any]:
        """As the kernels' arguments."""
        return {
            "CHANNELS": self.channels,
            "CHUNKS": self.chunks,
            "V": self.vector,
            "BLOCK_ROWS": self.rows,
            "BLOCK_VECTORS": self.vectors,
        }

    def programs(self, rows: int, warps: int, device: torch.device) -> int:
        """Programs that all have the same number of runs, or one less, and up to so many warps per multiprocessor."""
        runs = triton.cdiv(rows, self.rows)
        most = max(1, warps // self.warps) * processors(device)
        return evenly(runs, most)


def forward(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """total = x + branch, the mean and 1 / standard deviation of its rows, and F(LayerNorm(total)) as ``dtype``.

    Args:
        x: (..., D) float32, bfloat16 or float16.
        branch: of the same shape.
        weight: (D,).
        bias: (D,).
        numerator: (1, m) or (G, m).
        denominator: (1, n) or (G, n).
        eps: added to the variance.
        dtype: of the result.
    """
    x, branch, *parameters = _dense(x, branch, weight, bias, numerator, denominator)
    total = torch.empty_like(x, dtype=torch.promote_types(x.dtype, branch.dtype))
    out = torch.empty_like(x, dtype=dtype)
    mean = x.new_empty(x.shape[:-1], dtype=torch.float32)
    rstd = torch.empty_like(mean)
    if x.numel():
        launch = _forward_launch(
            x.device,
            mean.numel(),
            x.shape[-1],
            (x.dtype, branch.dtype, total.dtype, dtype, weight.dtype, bias.dtype),
            _coefficients(numerator, denominator),
            eps,
        )
        with on(x.device):
            launch(x, branch, *parameters, total, mean, rstd, out)
    return total, mean, rstd, out


def backward(
    grad_total: Tensor | None,
    grad_out: Tensor,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    x_dtype: torch.dtype,
    branch_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, branch, weight, bias, numerator and denominator, each in the dtype of what it belongs to.

    Those of x and branch are one tensor where their dtypes are one.
    """
    grad_out, total, mean, rstd = _dense(grad_out, total, mean, rstd)
    weight, bias, numerator, denominator = _dense(weight, bias, numerator, denominator)
    grad_total = None if grad_total is None else grad_total.contiguous()
    grad_x = torch.empty_like(total, dtype=x_dtype)
    grad_branch = grad_x if branch_dtype == x_dtype else torch.empty_like(total, dtype=branch_dtype)
    parameters = weight, bias, numerator, denominator
    if not total.numel():
        zeros = map(torch.zeros_like, parameters)
        return grad_x, grad_branch, *zeros  # type: ignore[return-value]
    grads = [torch.empty_like(parameter) for parameter in parameters]
    first = grad_out if grad_total is None else grad_total
    main, add_up, partials, channel_partials = _backward_launches(
        total.device,
        total.numel() // total.shape[-1],
        total.shape[-1],
        (first.dtype, grad_out.dtype, total.dtype, x_dtype, branch_dtype, weight.dtype, bias.dtype),
        _coefficients(numerator, denominator),
        grad_total is not None,
    )
    partial = total.new_empty(partials, dtype=torch.float64)
    channel_partial = total.new_empty(channel_partials, dtype=torch.float32)
    with on(total.device):
        main(
            first, grad_out, total, mean, rstd, *parameters, grad_x, grad_branch, partial, channel_partial
        )  # fmt: skip
        add_up(partial, channel_partial, denominator, grads[2], grads[3], grads[0], grads[1])
    return grad_x, grad_branch, grads[0], grads[1], grads[2], grads[3]


def _dense(*tensors: Tensor) -> list[Tensor]:
    """Tensors as the kernels take them, which know no strides."""
    return [tensor.contiguous() for tensor in tensors]


def _coefficients(numerator: Tensor, denominator: Tensor) -> Coefficients:
    return numerator.shape, denominator.shape, numerator.dtype, denominator.dtype


def _width(view: Rows, coefficients: Coefficients) -> int:
    """Vectors of a group."""
    return view.channels // view.vector // max(coefficients[0][0], coefficients[1][0])


@functools.lru_cache(maxsize=1024)
def _forward_launch(
    device: torch.device, rows: int, channels: int, dtypes: tuple[torch.dtype, ...], coefficients: Coefficients,
    eps: float,
) -> Launch:  # fmt: skip
    view = Rows.choose(channels, vector_of(*dtypes[:4]))
    constants = {
        **constants_of(coefficients),
        **view.constants(),
        "STAGES": settings.STAGES,
    }
    grid = view.programs(rows, settings.ROW_FORWARD_WARPS, device), 1
    kernel = norm_kernels.add_norm_forward_kernel
    return Launch(kernel, grid, (rows, _width(view, coefficients), eps), constants, view.warps)


@functools.lru_cache(maxsize=1024)
def _backward_launches(
    device: torch.device, rows: int, channels: int, dtypes: tuple[torch.dtype, ...], coefficients: Coefficients,
    has_grad_total: bool,
) -> tuple[Launch, Launch, int, tuple[int, int, int]]:  # fmt: skip
    """The kernel, the one that adds up its partial sums, and the sizes of these."""
    view = Rows.choose(channels, vector_of(*dtypes[:5]))
    programs = view.programs(rows, settings.ROW_BACKWARD_WARPS, device)
    width = _width(view, coefficients)
    (rows_a, m), (rows_b, n) = coefficients[:2]
    fold = math.gcd(width, view.vectors)
    sums_a, sums_b = (programs * (1 if each == 1 else channels // view.vector // fold) for each in (rows_a, rows_b))
    early = starts_early(device)
    main = Launch(
        norm_kernels.add_norm_backward_kernel,
        (programs, 1),
        (rows, width),
        {
            **constants_of(coefficients),
            "GRAD_TOTAL": has_grad_total,
            "GRAD_BRANCH": dtypes[3] != dtypes[4],
            **view.constants(),
            "STAGES": settings.STAGES,
            "FOLD": fold,
            "EARLY": early,
        },
        view.warps,
    )
    add_up = Launch(
        norm_kernels.sum_norm_partials_kernel,
        (rows_a * m + rows_b * n + triton.cdiv(2 * channels, settings.SUM_COLUMNS), 1),
        (sums_a, sums_b, rows_a, rows_b, programs),
        {
            "M": m,
            "N": n,
            "CHANNELS": channels,
            "BLOCK": settings.SUM_BLOCK,
            "BLOCK_PROGRAMS": settings.SUM_PROGRAMS,
            "BLOCK_COLUMNS": settings.SUM_COLUMNS,
            "EARLY": early,
        },
        settings.SUM_WARPS,
        {"launch_pdl": True} if early else {},
    )
    return main, add_up, m * sums_a + n * sums_b, (programs, 2, channels)
