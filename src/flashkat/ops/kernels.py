"""Triton kernels of the group-wise rational function, forward and backward.

    F = P / Q,   P = sum_i a_i x^i,   Q = 1 + sum_j |b_j| |x|^j,   s(v) = -1 for v < 0, else +1
    dx   = g (P' / Q - s(x) T P / Q^2),   T = sum_j j |b_j| |x|^(j-1)
    da_i = sum  g x^i / Q
    db_j = sum -g P / Q^2 |x|^j s(b_j)

Legend of shapes: a tensor is seen as (outer, channels C, inner); the outer * inner *positions* share a channel.
A program covers one block of channels and one (forward) or every k-th (backward) block of positions, as tiles of
(BLOCK_POSITIONS, BLOCK_CHANNELS). M = m and N = n are the numbers of coefficients, K = M + N.

Dtypes: x, out, grad and grad_x are float64, float32, bfloat16 or float16, each its own; arithmetic is float32, or
float64 for float64 inputs. Only x is saved between the passes. The sums for da and db are taken within a tile in the
arithmetic's dtype, then over tiles in float64 in a fixed order, and leave the kernel as one partial sum per program
and channel: no atomics, the same bits every run.

Each tile takes one of two ways. Where powers cannot leave the float range, plain Horner schemes. Otherwise numbers are
kept as a mantissa and an integer exponent, so that nothing overflows before the result itself does: finite in,
finite (or correctly infinite) out.
"""

import triton
import triton.language as tl

# A tile is plain when max(1, |a|, |b|) * max(1, |x|)^degree stays below this power of two, which bounds every
# intermediate value, products with the gradient included, inside float32 (float64).
_PLAIN_F32 = tl.constexpr(2.0**36)
_PLAIN_F64 = tl.constexpr(2.0**300)
# Gradients below this (but not zero) could lose bits to underflow against a large denominator.
_SMALL_GRADIENT_F32 = tl.constexpr(2.0**-60)
_SMALL_GRADIENT_F64 = tl.constexpr(2.0**-600)
# The exponent that stands for zero: any power or product of it stays far below every true exponent, within int32.
_ZERO_EXPONENT = tl.constexpr(-(2**20))
# Terms of a float64 sum saturate here, so that opposite ones cancel instead of making a NaN.
SUM_EXPONENT = 960
_SUM_EXPONENT = tl.constexpr(SUM_EXPONENT)


@triton.jit
def _power_of_two(exponent, like):
    """2^exponent in the dtype of ``like``, for exponents of normal numbers."""
    if like.dtype == tl.float64:
        return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _split(value):
    """value = mantissa * 2^exponent with 1 <= |mantissa| < 2; zero has its own exponent; NaN and inf become NaN."""
    if value.dtype == tl.float64:
        tiny = tl.abs(value) < 2.0**-1022
        bits = tl.where(tiny, value * 2.0**64, value).to(tl.int64, bitcast=True)
        field = ((bits >> 52) & 0x7FF).to(tl.int32)
        mantissa = ((bits & ((1 << 52) - 1)) | (1023 << 52)).to(tl.float64, bitcast=True)
        exponent = field - 1023
        special = field == 0x7FF
    else:
        tiny = tl.abs(value) < 2.0**-126
        bits = tl.where(tiny, value * 2.0**64, value).to(tl.int32, bitcast=True)
        field = (bits >> 23) & 0xFF
        mantissa = ((bits & ((1 << 23) - 1)) | (127 << 23)).to(tl.float32, bitcast=True)
        exponent = field - 127
        special = field == 0xFF
    exponent = tl.where(tiny, exponent - 64, exponent)
    mantissa = tl.where(value < 0, -mantissa, mantissa)
    mantissa = tl.where(special, float("nan"), tl.where(value == 0, 0.0, mantissa))
    return mantissa.to(value.dtype), tl.where(value == 0, _ZERO_EXPONENT, exponent)


@triton.jit
def _scale(value, exponent):
    """value * 2^exponent in two exact halves, so that only the result itself can round, overflow or underflow."""
    if value.dtype == tl.float64:
        exponent = tl.minimum(tl.maximum(exponent, -2040), 2040)
    else:
        exponent = tl.minimum(tl.maximum(exponent, -250), 250)
    half = exponent >> 1
    return value * _power_of_two(half, value) * _power_of_two(exponent - half, value)


@triton.jit
def _shift_down(value, exponent):
    """value * 2^exponent for exponent <= 0; what falls below the smallest normal factor does not matter to a sum."""
    if value.dtype == tl.float64:
        return value * _power_of_two(tl.maximum(exponent, -1022), value)
    else:
        return value * _power_of_two(tl.maximum(exponent, -126), value)


@triton.jit
def _to_sum(value, exponent):
    """value * 2^exponent as a float64 term of a sum, saturated."""
    value = value.to(tl.float64)
    return value * _power_of_two(tl.minimum(tl.maximum(exponent, -1022), _SUM_EXPONENT), value)


@triton.jit
def _largest_coefficient(pointer, offsets, mask, COUNT: tl.constexpr, COMPUTE: tl.constexpr):
    largest = tl.full((), 1.0, COMPUTE)
    for i in tl.static_range(COUNT):
        value = tl.load(pointer + offsets + i, mask=mask, other=0.0).to(COMPUTE)
        largest = tl.maximum(largest, tl.max(tl.abs(value)))
    return largest


@triton.jit
def _stays_plain(x, largest, DEGREE: tl.constexpr):
    """Whether plain arithmetic is safe for a tile; NaNs do not matter, either way propagates them."""
    reach = tl.maximum(tl.max(tl.abs(x)), 1.0)
    bound = largest
    for _ in tl.static_range(DEGREE):
        bound = bound * reach
    if x.dtype == tl.float64:
        return bound <= _PLAIN_F64
    else:
        return bound <= _PLAIN_F32


@triton.jit
def _gradient_stays_plain(grad):
    size = tl.abs(grad)
    if grad.dtype == tl.float64:
        wild = (size > _PLAIN_F64) | ((size < _SMALL_GRADIENT_F64) & (size > 0))
    else:
        wild = (size > _PLAIN_F32) | ((size < _SMALL_GRADIENT_F32) & (size > 0))
    return tl.max(wild.to(tl.int32)) == 0


@triton.jit
def _horner(pointer, offsets, mask, x, COUNT: tl.constexpr, ABSOLUTE: tl.constexpr):
    """sum_i c_i x^i and its derivative, with per-channel coefficients c_0 ... c_{COUNT-1}.

    With ABSOLUTE, the polynomial is 1 + sum_i |c_i| x^(i+1) instead.
    """
    value = tl.zeros_like(x)
    derivative = tl.zeros_like(x)
    for i in tl.static_range(COUNT):
        coefficient = tl.load(pointer + offsets + (COUNT - 1 - i), mask=mask, other=0.0).to(x.dtype)
        if ABSOLUTE:
            coefficient = tl.abs(coefficient)
        derivative = derivative * x + value
        value = value * x + coefficient[None, :]
    if ABSOLUTE:
        derivative = derivative * x + value
        value = value * x + 1.0
    return value, derivative


@triton.jit
def _scaled_polynomial(pointer, offsets, mask, x, e, COUNT: tl.constexpr, ABSOLUTE: tl.constexpr):
    """The same as ``_horner`` for arguments x * 2^e: each of the two results as a value and an exponent.

    Terms are added relative to the largest one's exponent.
    """
    top = e * 0 + (0 if ABSOLUTE else _ZERO_EXPONENT)
    top_derivative = e * 0 + 64 * _ZERO_EXPONENT
    for i in tl.static_range(COUNT):
        order = i + 1 if ABSOLUTE else i
        coefficient = tl.load(pointer + offsets + i, mask=mask, other=0.0).to(x.dtype)
        _, exponent = _split(coefficient)
        top = tl.maximum(top, exponent[None, :] + order * e)
        if order > 0:
            top_derivative = tl.maximum(top_derivative, exponent[None, :] + (order - 1) * e)
    value = tl.zeros_like(x)
    derivative = tl.zeros_like(x)
    power = tl.zeros_like(x) + 1.0
    if ABSOLUTE:
        value = _shift_down(power, -top)
    for i in tl.static_range(COUNT):
        order = i + 1 if ABSOLUTE else i
        coefficient = tl.load(pointer + offsets + i, mask=mask, other=0.0).to(x.dtype)
        mantissa, exponent = _split(coefficient)
        if ABSOLUTE:
            mantissa = tl.abs(mantissa)
        if order > 0:
            slope = mantissa[None, :] * (order * power)
            derivative += _shift_down(slope, exponent[None, :] + (order - 1) * e - top_derivative)
            power = power * x
        value += _shift_down(mantissa[None, :] * power, exponent[None, :] + order * e - top)
    return value, top, derivative, top_derivative


@triton.jit
def _value_plain(x, numerator_ptr, denominator_ptr, a, b, mask, M: tl.constexpr, N: tl.constexpr):
    p, _ = _horner(numerator_ptr, a, mask, x, M, False)
    q, _ = _horner(denominator_ptr, b, mask, tl.abs(x), N, True)
    return p / q


@triton.jit
def _value_scaled(x, numerator_ptr, denominator_ptr, a, b, mask, M: tl.constexpr, N: tl.constexpr):
    f, e = _split(x)
    p, ep, _, _ = _scaled_polynomial(numerator_ptr, a, mask, f, e, M, False)
    q, eq, _, _ = _scaled_polynomial(denominator_ptr, b, mask, tl.abs(f), e, N, True)
    return _scale(p / q, ep - eq)


@triton.jit
def _sign(x):
    return tl.where(x < 0, -1.0, 1.0).to(x.dtype)


@triton.jit
def _add_row(sums, index, row, BLOCK_K: tl.constexpr):
    """Add a vector over channels to one row of the (K, channels) sums."""
    rows = tl.arange(0, BLOCK_K)[:, None]
    return tl.where(rows == index, sums + row.to(tl.float64)[None, :], sums)


@triton.jit
def _gradients_plain(
    g, x, sums, numerator_ptr, denominator_ptr, a, b, mask, M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """grad_x of a tile, and the sums with the tile's added."""
    u = tl.abs(x)
    p, dp = _horner(numerator_ptr, a, mask, x, M, False)
    q, dq = _horner(denominator_ptr, b, mask, u, N, True)
    y = p / q
    weight = g / q
    grad_x = weight * (dp - _sign(x) * dq * y)
    term = weight
    for i in tl.static_range(M):
        sums = _add_row(sums, i, tl.sum(term, axis=0), BLOCK_K)
        term = term * x
    term = -weight * y
    for j in tl.static_range(N):
        term = term * u
        sums = _add_row(sums, M + j, tl.sum(term, axis=0), BLOCK_K)
    return grad_x, sums


@triton.jit
def _gradients_scaled(
    g, x, sums, numerator_ptr, denominator_ptr, a, b, mask, M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """As ``_gradients_plain``, with mantissas and exponents."""
    f, e = _split(x)
    fg, eg = _split(g)
    p, ep, dp, edp = _scaled_polynomial(numerator_ptr, a, mask, f, e, M, False)
    q, eq, dq, edq = _scaled_polynomial(denominator_ptr, b, mask, tl.abs(f), e, N, True)
    left = dp / q
    right = _sign(x) * (dq / q) * (p / q)
    e_left = tl.where(left == 0, 128 * _ZERO_EXPONENT, edp - eq)
    e_right = tl.where(right == 0, 128 * _ZERO_EXPONENT, edq + ep - 2 * eq)
    top = tl.maximum(e_left, e_right)
    slope = _shift_down(left, e_left - top) - _shift_down(right, e_right - top)
    grad_x = _scale(fg * slope, eg + top)
    term = fg / q
    for i in tl.static_range(M):
        sums = _add_row(sums, i, tl.sum(_to_sum(term, eg + i * e - eq), axis=0), BLOCK_K)
        term = term * f
    term = -(fg / q) * (p / q)
    for j in tl.static_range(N):
        term = term * tl.abs(f)
        sums = _add_row(sums, M + j, tl.sum(_to_sum(term, eg + ep - 2 * eq + (j + 1) * e), axis=0), BLOCK_K)
    return grad_x, sums


@triton.jit
def _offsets(positions, channels, inner, stride_outer, stride_channel, stride_inner):
    """Element offsets (int64) of a tile; positions and channels are int64 vectors."""
    rows = (positions // inner) * stride_outer + (positions % inner) * stride_inner
    return rows[:, None] + (channels * stride_channel)[None, :]


@triton.jit(do_not_specialize=["positions_count", "inner"])
def rational_forward_kernel(
    x_ptr, numerator_ptr, denominator_ptr, out_ptr,
    positions_count, inner, channels_count, width,
    x_outer, x_channel, x_inner, out_outer, out_channel, out_inner,
    M: tl.constexpr, N: tl.constexpr, DEGREE: tl.constexpr,
    NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    COMPUTE: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """out = F(x). One program computes one tile; ``width`` is the number of channels in a group.

    Shapes: x and out (outer, C, inner) by strides; numerator (1 or G, M), denominator (1 or G, N), contiguous.
    """
    channel_blocks = tl.cdiv(channels_count, BLOCK_CHANNELS)
    program = tl.program_id(0).to(tl.int64)
    positions = (program // channel_blocks) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    channels = (program % channel_blocks) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_mask = channels < channels_count
    mask = (positions < positions_count)[:, None] & channel_mask[None, :]
    group = channels // width
    a = group * 0 if NUMERATOR_SHARED else group * M
    b = group * 0 if DENOMINATOR_SHARED else group * N

    x_offsets = _offsets(positions, channels, inner, x_outer, x_channel, x_inner)
    x = tl.load(x_ptr + x_offsets, mask=mask, other=0.0).to(COMPUTE)

    largest = tl.maximum(
        _largest_coefficient(numerator_ptr, a, channel_mask, M, COMPUTE),
        _largest_coefficient(denominator_ptr, b, channel_mask, N, COMPUTE),
    )
    if _stays_plain(x, largest, DEGREE):
        out = _value_plain(x, numerator_ptr, denominator_ptr, a, b, channel_mask, M, N)
    else:
        out = _value_scaled(x, numerator_ptr, denominator_ptr, a, b, channel_mask, M, N)
    out_offsets = _offsets(positions, channels, inner, out_outer, out_channel, out_inner)
    tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["positions_count", "inner"])
def rational_backward_kernel(
    grad_ptr, x_ptr, numerator_ptr, denominator_ptr, grad_x_ptr, partial_ptr,
    positions_count, inner, channels_count, width,
    grad_outer, grad_channel, grad_inner, x_outer, x_channel, x_inner, grad_x_outer, grad_x_channel, grad_x_inner,
    M: tl.constexpr, N: tl.constexpr, DEGREE: tl.constexpr,
    NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    COMPUTE: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """grad_x = g F'(x), and each program's share of the sums for da and db.

    Program (i, j) takes position blocks i, i + programs, ... of channel block j.
    Shapes: grad, x, grad_x (outer, C, inner) by strides; partial (programs, M + N, C), contiguous float64: rows
    0 ... M-1 are sums for da, the others for db without the factor s(b).
    """
    channels = tl.program_id(1).to(tl.int64) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_mask = channels < channels_count
    group = channels // width
    a = group * 0 if NUMERATOR_SHARED else group * M
    b = group * 0 if DENOMINATOR_SHARED else group * N
    largest = tl.maximum(
        _largest_coefficient(numerator_ptr, a, channel_mask, M, COMPUTE),
        _largest_coefficient(denominator_ptr, b, channel_mask, N, COMPUTE),
    )

    sums = tl.zeros((BLOCK_K, BLOCK_CHANNELS), tl.float64)
    for block in range(tl.program_id(0), tl.cdiv(positions_count, BLOCK_POSITIONS), tl.num_programs(0)):
        positions = tl.cast(block, tl.int64) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
        mask = (positions < positions_count)[:, None] & channel_mask[None, :]
        x_offsets = _offsets(positions, channels, inner, x_outer, x_channel, x_inner)
        grad_offsets = _offsets(positions, channels, inner, grad_outer, grad_channel, grad_inner)
        x = tl.load(x_ptr + x_offsets, mask=mask, other=0.0).to(COMPUTE)
        g = tl.load(grad_ptr + grad_offsets, mask=mask, other=0.0).to(COMPUTE)
        if _stays_plain(x, largest, DEGREE) & _gradient_stays_plain(g):
            grad_x, sums = _gradients_plain(
                g, x, sums, numerator_ptr, denominator_ptr, a, b, channel_mask, M, N, BLOCK_K
            )
        else:
            grad_x, sums = _gradients_scaled(
                g, x, sums, numerator_ptr, denominator_ptr, a, b, channel_mask, M, N, BLOCK_K
            )

        grad_x_offsets = _offsets(positions, channels, inner, grad_x_outer, grad_x_channel, grad_x_inner)
        tl.store(grad_x_ptr + grad_x_offsets, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)

    row = tl.arange(0, BLOCK_K)[:, None]
    partial = (tl.program_id(0).to(tl.int64) * (M + N) + row) * channels_count + channels[None, :]
    tl.store(partial_ptr + partial, sums, mask=(row < M + N) & channel_mask[None, :])
