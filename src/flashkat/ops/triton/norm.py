"""The launches of the kernels that add, normalise and apply the rational: their tiles, grids and results."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ..layout import vector_of
from . import norm_kernels, settings
from .launcher import Coefficients, Launch, coefficients_of, constants_of, dense, evenly, on, processors, starts_early


@dataclass(frozen=True)
class Rows:
    """Rows as the kernels see them: ``chunks`` of ``vectors`` of ``vector`` channels, ``rows`` at a time."""

    channels: int
    vector: int
    chunks: int
    vectors: int
    rows: int
    warps: int

    @classmethod
    def choose(cls, channels: int, vector: int) -> "Rows":
        """Choose chunks that leave the fewest lanes idle; among these, the fewest chunks."""
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
        """Return the kernels' constants."""
        return {
            "CHANNELS": self.channels,
            "CHUNKS": self.chunks,
            "V": self.vector,
            "BLOCK_ROWS": self.rows,
            "BLOCK_VECTORS": self.vectors,
        }

    def programs(self, rows: int, warps: int, device: torch.device) -> int:
        """Return how many programs share the rows evenly, with at most ``warps`` warps per multiprocessor."""
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
    """Return total = x + branch, the mean and 1 / standard deviation of its rows, and F(LayerNorm(total)).

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
    x, branch, *parameters = dense(x, branch, weight, bias, numerator, denominator)
    if not x.numel():
        return _results(x, torch.promote_types(x.dtype, branch.dtype), dtype)
    launch = forward_launch(
        x.device,
        x.numel() // x.shape[-1],
        x.shape[-1],
        (x.dtype, branch.dtype, dtype, weight.dtype, bias.dtype),
        coefficients_of(numerator, denominator),
        eps,
    )
    with on(x.device):
        return launch(x, branch, *parameters)


@dataclass(frozen=True)
class NormForward:
    """The kernel of the forward pass, and the dtypes of the sum and of the result."""

    main: Launch
    total: torch.dtype
    out: torch.dtype

    def __call__(
        self, x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, numerator: Tensor, denominator: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Launch the kernel on dense tensors of the current device, see :func:`forward`."""
        results = _results(x, self.total, self.out)
        self.main(x, branch, weight, bias, numerator, denominator, *results)
        return results


def _results(x: Tensor, total_dtype: torch.dtype, out_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[:-1], dtype=torch.float32)
    out = torch.empty_like(x, dtype=out_dtype)
    return torch.empty_like(x, dtype=total_dtype), mean, torch.empty_like(mean), out


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
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, branch, weight, bias, numerator and denominator, each in the dtype of its tensor.

    Those of x and branch are the same tensor if their dtypes are equal. Fill ``out`` with F(LayerNorm(total)), if it is
    given. It must be contiguous, of the dtype of ``grad_out``.
    """
    grad_out, total, mean, rstd = dense(grad_out, total, mean, rstd)
    weight, bias, numerator, denominator = dense(weight, bias, numerator, denominator)
    if not total.numel():
        zeros = map(torch.zeros_like, (weight, bias, numerator, denominator))
        return *_gradients(total, x_dtype, branch_dtype), *zeros  # type: ignore[return-value]
    grad_total = None if grad_total is None else dense(grad_total)[0]
    first = grad_out if grad_total is None else grad_total
    launches = backward_launches(
        total.device,
        total.numel() // total.shape[-1],
        total.shape[-1],
        (first.dtype, grad_out.dtype, total.dtype, x_dtype, branch_dtype, weight.dtype, bias.dtype),
        coefficients_of(numerator, denominator),
        grad_total is not None,
        out is not None,
    )
    with on(total.device):
        return launches(first, grad_out, total, mean, rstd, weight, bias, numerator, denominator, out)


@dataclass(frozen=True)
class NormBackward:
    """The kernel of the backward pass, the one that adds up its partial sums, the sizes of these, and dtypes."""

    main: Launch
    add_up: Launch
    partials: int
    channel_partials: tuple[int, int, int]
    x: torch.dtype
    branch: torch.dtype

    def __call__(
        self,
        grad_total: Tensor,
        grad_out: Tensor,
        total: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor,
        bias: Tensor,
        numerator: Tensor,
        denominator: Tensor,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Launch the kernels on dense tensors of the current device, see :func:`backward`.

        Without a gradient of the sum, ``grad_total`` is any tensor. ``out`` is filled if the launches store it.
        """
        grad_x, grad_branch = _gradients(total, self.x, self.branch)
        parameters = weight, bias, numerator, denominator
        grads = tuple(map(torch.empty_like, parameters))
        partial = total.new_empty(self.partials, dtype=torch.float64)
        channel_partial = total.new_empty(self.channel_partials, dtype=torch.float32)
        out = grad_x if out is None else out  # which the kernel then ignores
        self.main(
            grad_total, grad_out, total, mean, rstd, *parameters, grad_x, grad_branch, out, partial, channel_partial
        )
        self.add_up(partial, channel_partial, denominator, grads[2], grads[3], grads[0], grads[1])
        return grad_x, grad_branch, *grads  # type: ignore[return-value]


def _gradients(total: Tensor, x_dtype: torch.dtype, branch_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty_like(total, dtype=x_dtype)
    return grad_x, grad_x if branch_dtype == x_dtype else torch.empty_like(total, dtype=branch_dtype)


def _width(view: Rows, coefficients: Coefficients) -> int:
    """Return the number of vectors of a group."""
    return view.channels // view.vector // max(coefficients[0][0], coefficients[1][0])


@functools.lru_cache(maxsize=1024)
def forward_launch(
    device: torch.device, rows: int, channels: int, dtypes: tuple[torch.dtype, ...], coefficients: Coefficients,
    eps: float,
) -> NormForward:  # fmt: skip
    """Return the launch for x, branch, result, weight and bias of these ``dtypes``."""
    total = torch.promote_types(dtypes[0], dtypes[1])
    view = Rows.choose(channels, vector_of(total, *dtypes[:3]))
    constants = {
        **constants_of(coefficients),
        **view.constants(),
        "STAGES": settings.STAGES,
    }
    grid = view.programs(rows, settings.ROW_FORWARD_WARPS, device), 1
    kernel = norm_kernels.add_norm_forward_kernel
    main = Launch(kernel, grid, (rows, _width(view, coefficients), eps), constants, view.warps)
    return NormForward(main, total, dtypes[2])


@functools.lru_cache(maxsize=1024)
def backward_launches(
    device: torch.device, rows: int, channels: int, dtypes: tuple[torch.dtype, ...], coefficients: Coefficients,
    has_grad_total: bool, stores_out: bool = False,
) -> NormBackward:  # fmt: skip
    """Return the launches for these ``dtypes`` of both gradients, the sum, x, branch, weight and bias.

    With ``stores_out`` they also store F(LayerNorm(sum)).
    """
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
            "OUT": stores_out,
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
        rows * channels <= settings.SMALL_ELEMENTS,
    )
    partials = m * sums_a + n * sums_b
    return NormBackward(main, add_up, partials, (programs, 2, channels), dtypes[3], dtypes[4])
