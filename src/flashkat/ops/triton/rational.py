"""The launches of the rational's kernels: their views of tensors, tiles and grids."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import Metadata, as_three_dimensional, outer_channels_inner, vector_of
from ..reference import compute_dtype
from . import rational_kernels as kernels
from . import settings
from .launcher import (
    Coefficients,
    Launch,
    coefficients_of,
    constants_of,
    dense,
    described_coefficients,
    evenly,
    on,
    processors,
    starts_early,
)

_TRITON_DTYPE = {torch.float32: tl.float32, torch.float64: tl.float64}

Strides = tuple[int, int, int]
# The dtype and strides of a tensor.
Layout = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class View:
    """Tensors of (outer, channels, inner) as the kernels see them: (batches, positions, channels, V).

    ``strides`` holds the strides of batch, vector, position and channel for each tensor. With ``contiguous`` vectors
    their unit is V elements. Otherwise ``size`` elements are dealt out to the V elements of ``positions`` vectors. With
    ``pairs`` a thread takes two neighbouring channels. Then the unit is two elements, and that of channels is 1.
    """

    batches: int
    positions: int
    channels: int
    size: int
    width: int
    vector: int
    contiguous: bool
    pairs: bool
    batched: bool
    channels_are_fast: bool
    strides: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def choose(cls, sizes: Strides, width: int, strides: tuple[Strides, ...], vector: int) -> "View":
        """Choose vectors along channels or along the inner dimension where that is aligned, else far apart.

        Args:
            sizes: outer, channels, inner.
            width: channels of a group.
            strides: of outer, channels and inner in elements, for each tensor.
            vector: V, the number of elements that a thread takes at a time.
        """
        outer, channels, inner = sizes
        if outer == 1:  # A single batch may have any stride. It takes the same kernels as several.
            strides = tuple((max(channels * s[1], inner * s[2]), s[1], s[2]) for s in strides)

        if inner > 1 and all(s[1] == 1 and s[0] == inner * s[2] for s in strides):
            # Channels are last in memory, whatever their place in the shape.
            return cls.choose((outer * inner, channels, 1), width, tuple((s[2], s[1], 0) for s in strides), vector)
        if inner > 1 and width > 1 and all(s[2] == 1 and s[1] == inner for s in strides):
            # A group is contiguous: merge its channels into one long dimension without remainders.
            merged = width * inner
            return cls.choose((outer, channels // width, merged), 1, tuple((s[0], merged, 1) for s in strides), vector)

        def multiples(*positions: int) -> bool:
            return all(stride[p] % vector == 0 for stride in strides for p in positions)

        if inner == 1 and width % vector == 0 and all(s[1] == 1 for s in strides) and multiples(0):
            views = tuple((0, 1, s[0] // vector, 1) for s in strides)
            return cls(1, outer, channels // vector, outer, width // vector, vector, True, False, False, True, views)
        if inner % vector == 0 and all(s[2] == 1 for s in strides) and multiples(0, 1):
            views = tuple((s[0] // vector, 1, 1, s[1] // vector) for s in strides)
            return cls(outer, inner // vector, channels, inner, width, vector, True, False, True, False, views)
        # The longer of the other two dimensions gives the vectors, the shorter one the batches.
        size, batches, along, across = (inner, outer, 2, 0) if inner >= vector else (outer, inner, 0, 2)
        positions = triton.cdiv(size, vector)
        fast = all(s[1] == 1 for s in strides)
        rows = (along, across) if batches > 1 else (along,)
        pairs = fast and channels % 2 == 0 and all(s[row] % 2 == 0 for s in strides for row in rows)
        unit = 2 if pairs else 1
        views = tuple((s[across] // unit, positions * s[along] // unit, s[along] // unit, s[1]) for s in strides)
        return cls(batches, positions, channels, size, width, vector, False, pairs, inner > 1, fast, views)

    def tile(self) -> tuple[int, int]:
        """Return (positions, channels) of a tile: along contiguous memory first."""
        if self.pairs:
            return 1, 2 * settings.LANES
        if self.channels_are_fast:
            run = min(settings.RUNS, key=lambda run: max(-self.channels % run / self.channels, settings.IDLE))
            return settings.LANES // run, run
        run = min(triton.next_power_of_2(self.positions), settings.LANES)
        return run, settings.LANES // run

    def unroll(self) -> int:
        """Return how many tiles make a run. Runs must not exceed their batch by more than ``settings.IDLE``."""
        most = settings.VECTORS // 2 if self.pairs else settings.VECTORS
        if not self.batched:
            return most
        positions = self.tile()[0]
        return min(
            range(most, 0, -1),
            key=lambda tiles: max(-self.positions % (tiles * positions) / self.positions, settings.IDLE),
        )

    def numbers(self) -> tuple[int, ...]:
        """Return the view as the kernels' arguments."""
        sizes = (self.batches, self.positions, self.channels, self.size, self.width)
        return sizes + tuple(stride for strides in self.strides for stride in strides)


def forward(
    x: Tensor, numerator: Tensor, denominator: Tensor, dim: int, dtype: torch.dtype, bias: Tensor | None = None
) -> Tensor:
    """Return F(x) as ``dtype``. For the arguments see :func:`flashkat.rational`; they are not checked.

    With a ``bias`` (D,), return F(x + bias). Then tensors must be contiguous, with channels last, and groups must hold
    whole vectors.
    """
    out = torch.empty_like(x, dtype=dtype)
    if x.numel() == 0:
        return out
    layouts = ((x.dtype, x.stride()), (dtype, out.stride()))
    coefficients = coefficients_of(numerator, denominator)
    bias = None if bias is None else bias.contiguous()
    launch = forward_launch(x.device, x.shape, dim, layouts, coefficients, None if bias is None else bias.dtype)
    if launch is None:
        return out.copy_(forward(as_three_dimensional(x, dim), numerator, denominator, 1, dtype).view(x.shape))
    with on(x.device):
        launch(x, x if bias is None else bias, numerator.contiguous(), denominator.contiguous(), out)
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    dim: int,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients of x, numerator, denominator and bias, if any, each in the dtype of its tensor.

    With a ``bias``, fill ``out`` with F(x + bias), if it is given. It must be contiguous.
    """
    grad, x = grad.resolve_neg(), x.resolve_neg()
    if bias is not None:  # its kernels take no strides, which hooks of saved tensors may have changed
        grad, x, bias = dense(grad, x, bias)
    grad_x = torch.empty_like(x)
    if x.numel() == 0:
        return grad_x, *(torch.zeros_like(each) for each in (numerator, denominator, bias) if each is not None)
    layouts = ((x.dtype, x.stride()), (grad.dtype, grad.stride()), (x.dtype, grad_x.stride()))
    coefficients = coefficients_of(numerator, denominator)
    bias_dtype = None if bias is None else bias.dtype
    launches = backward_launches(x.device, x.shape, dim, layouts, coefficients, bias_dtype, out is not None)
    if launches is None:
        grad3, x3 = as_three_dimensional(grad, dim), as_three_dimensional(x, dim)
        grad_x3, grad_numerator, grad_denominator = backward(grad3, x3, numerator, denominator, 1)
        return grad_x.copy_(grad_x3.view(x.shape)), grad_numerator, grad_denominator
    with on(x.device):
        return launches(grad, grad_x, x, numerator.contiguous(), denominator.contiguous(), bias, out)


@dataclass(frozen=True)
class RationalBackward:
    """The kernel of the backward pass, the one that adds up its partial sums, and the numbers of these."""

    main: Launch
    add_up: Launch
    partials: int
    bias_partials: int

    def __call__(
        self,
        grad: Tensor,
        grad_x: Tensor,
        x: Tensor,
        numerator: Tensor,
        denominator: Tensor,
        bias: Tensor | None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Fill ``grad_x``, and ``out`` if the launches store it; return ``grad_x`` and the other gradients.

        Parameters are dense, on the current device.
        """
        partial = x.new_empty(self.partials, dtype=torch.float64)
        grad_numerator, grad_denominator = torch.empty_like(numerator), torch.empty_like(denominator)
        # A kernel ignores what it does not need.
        bias_partial, grad_bias = partial, grad_numerator
        out = grad_x if out is None else out
        if bias is not None:
            bias_partial = x.new_empty(self.bias_partials, dtype=torch.float32)
            grad_bias = torch.empty_like(bias)
        self.main(x, grad, grad_x, out, x if bias is None else bias, numerator, denominator, partial, bias_partial)
        self.add_up(partial, bias_partial, denominator, grad_numerator, grad_denominator, grad_bias)
        grads = grad_x, grad_numerator, grad_denominator
        return grads if bias is None else (*grads, grad_bias)


@dataclass(frozen=True)
class RationalPlan:
    """The launches of both passes for x of one layout. They are found once, to save host time."""

    dim: int
    dtype: torch.dtype
    x_strides: tuple[int, ...]
    out_strides: tuple[int, ...]
    forward_launch: Launch
    backward_launches: RationalBackward
    changes_dtype: bool

    def forward(self, x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
        out = torch.empty_like(x, dtype=self.dtype) if self.changes_dtype else torch.empty_like(x)
        with on(x.device):
            self.forward_launch(x, x, numerator.contiguous(), denominator.contiguous(), out)
        return out

    def backward(self, grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, ...]:
        # Hooks of saved tensors may have changed the strides of x.
        if grad.dtype != self.dtype or grad.stride() != self.out_strides or x.stride() != self.x_strides:
            return backward(grad, x, numerator, denominator, self.dim)
        with on(x.device):
            return self.backward_launches(
                grad, torch.empty_like(x), x, numerator.contiguous(), denominator.contiguous(), None
            )


def plan(
    x: Metadata, strides: tuple[int, ...], numerator: Metadata, denominator: Metadata, dim: int, dtype: torch.dtype
) -> RationalPlan | None:
    """Return the launches for x with these strides and a gradient like the result, or None without any."""
    shape, x_dtype, device, _ = x
    if not shape.numel():
        return None
    out = torch.empty_like(torch.empty_strided(shape, strides, device="meta")).stride()
    layouts = (x_dtype, strides), (dtype, out)
    coefficients = described_coefficients(numerator, denominator)
    forward = forward_launch(device, shape, dim, layouts, coefficients, None)
    # The gradient of x has the strides of the result.
    backward = backward_launches(device, shape, dim, (*layouts, (x_dtype, out)), coefficients, None)
    if forward is None or backward is None:
        return None
    return RationalPlan(dim, dtype, strides, out, forward, backward, dtype != x_dtype)


@functools.lru_cache(maxsize=1024)
def forward_launch(
    device: torch.device, shape: torch.Size, dim: int, layouts: tuple[Layout, ...], coefficients: Coefficients,
    bias: torch.dtype | None,
) -> Launch | None:  # fmt: skip
    """Return the launch for x and its result of these layouts, or None if the kernels cannot view them.

    Args:
        device: the GPU.
        shape: shape of x.
        dim: dimension of the channels.
        layouts: dtype and strides of x and of the result.
        coefficients: shapes and dtypes of the coefficients.
        bias: dtype of the bias, if any.
    """
    view = _view(shape, dim, layouts, max(coefficients[0][0], coefficients[1][0]))
    if view is None:
        return None
    grid = _grid(view, settings.FORWARD_PROGRAMS, device)
    return Launch(
        kernels.forward_kernel,
        grid,
        view.numbers(),
        {**_constants(view, layouts[0][0], coefficients), "BIAS": bias is not None},
    )


@functools.lru_cache(maxsize=1024)
def backward_launches(
    device: torch.device, shape: torch.Size, dim: int, layouts: tuple[Layout, ...], coefficients: Coefficients,
    bias: torch.dtype | None, stores_out: bool = False,
) -> RationalBackward | None:  # fmt: skip
    """Return the launches for x, the gradient and grad_x of these layouts, or None if the kernels cannot view them.

    With ``stores_out`` they also store F(x + bias).
    """
    view = _view(shape, dim, layouts, max(coefficients[0][0], coefficients[1][0]))
    if view is None:
        return None
    per_processor = settings.BACKWARD_PROGRAMS_WITH_PAIRS if view.pairs else settings.BACKWARD_PROGRAMS
    _, programs = grid = _grid(view, per_processor, device)
    (rows_a, m), (rows_b, n) = coefficients[:2]
    channels = view.tile()[1]
    folds = [channels if rows == 1 else math.gcd(view.width, channels) for rows in (rows_a, rows_b)]
    per_program = [triton.cdiv(view.channels, fold) for fold in folds]
    sums_a, sums_b = (count * programs for count in per_program)
    # For the most programs possible, so that another batch size does not compile another kernel.
    longest = max(per_program[0] // rows_a, per_program[1] // rows_b) * _most_programs(view, per_processor, device)
    block = min(settings.SUM_BLOCK, triton.next_power_of_2(longest))
    constants = _constants(view, layouts[0][0], coefficients)
    early = starts_early(device)
    main = Launch(
        kernels.backward_kernel,
        grid,
        view.numbers(),
        {
            **constants,
            "NUMERATOR_FOLD": folds[0],
            "DENOMINATOR_FOLD": folds[1],
            "PRECISE": layouts[0][0].itemsize > 2,
            "EARLY": early,
            "BIAS": bias is not None,
            "OUT": stores_out,
        },
    )
    columns = 0 if bias is None else view.channels * view.vector
    add_up = Launch(
        kernels.sum_partials_kernel,
        (rows_a * m + rows_b * n + triton.cdiv(columns, settings.SUM_COLUMNS), 1),
        (sums_a, sums_b, rows_a, rows_b, programs, columns),
        {
            "M": m,
            "N": n,
            "BLOCK": block,
            "BLOCK_PROGRAMS": settings.SUM_PROGRAMS,
            "BLOCK_COLUMNS": settings.SUM_COLUMNS,
            "EARLY": early,
            "BIAS": bias is not None,
        },
        warps=settings.SUM_WARPS if columns else max(1, block * settings.SUM_WARPS // settings.SUM_BLOCK),
        options={"launch_pdl": True} if early else {},
        small=shape.numel() <= settings.SMALL_ELEMENTS,
    )
    return RationalBackward(main, add_up, m * sums_a + n * sums_b, programs * columns)


def _view(shape: torch.Size, dim: int, layouts: tuple[Layout, ...], groups: int) -> View | None:
    """Return the kernels' view of tensors of these strides, or None if one does not fit (outer, channels, inner)."""
    sizes = outer_channels_inner(shape, dim)
    strides: list[Any] = []
    for _, stride in layouts:
        try:
            strides.append(torch.empty_strided(shape, stride, device="meta").view(sizes).stride())
        except RuntimeError:
            return None
    vector = vector_of(*(dtype for dtype, _ in layouts))
    return View.choose(sizes, sizes[1] // groups, tuple(strides), vector)


def _grid(view: View, per_processor: int, device: torch.device) -> tuple[int, int]:
    """Return the numbers of blocks of channels and of programs for each.

    The runs of tiles are spread evenly: all programs have the same number, or one less.
    """
    runs = view.batches * triton.cdiv(view.positions, view.tile()[0] * view.unroll())
    return _blocks(view), evenly(runs, _most_programs(view, per_processor, device))


def _blocks(view: View) -> int:
    return triton.cdiv(view.channels, view.tile()[1])


def _most_programs(view: View, per_processor: int, device: torch.device) -> int:
    """Return the most programs for each block of channels, for any batch size."""
    return max(1, per_processor * processors(device) // _blocks(view))


def _constants(view: View, dtype: torch.dtype, coefficients: Coefficients) -> dict[str, Any]:
    positions, channels = view.tile()
    return {
        **constants_of(coefficients),
        "COMPUTE": _TRITON_DTYPE[compute_dtype(dtype)],
        "V": view.vector,
        "CONTIGUOUS": view.contiguous,
        "PAIRS": view.pairs,
        "BATCHED": view.batched,
        "BLOCK_POSITIONS": positions,
        "BLOCK_CHANNELS": channels,
        "UNROLL": view.unroll(),
        "STAGES": settings.STAGES,
    }
