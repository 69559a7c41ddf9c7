"""The formulas of the Triton kernels for one tile: plain, and scaled (overflow-safe).

    F = P / Q,   P = sum_i a_i x^i,   Q = 1 + sum_j |b_j| |x|^j,   s(v) = -1 for v < 0, else +1
    dx   = g (P' / Q - s(x) T P / Q^2),   T = sum_j j |b_j| |x|^(j-1)
    da_i = sum  g x^i / Q
    db_j = sum -g P / Q^2 |x|^j s(b_j)

A tile has shape (V, P, C): the V elements of a thread's vector, positions, channels. Coefficients are tuples of M and N
tensors (1, 1, C). Those of the denominator are absolute values. Arithmetic has the dtype of the tile, float32 or
float64. A tile's sums for da and db are over V, the plain ones in that dtype. The caller adds them up in float64, and
applies s(b_j).

Plain arithmetic is Horner's scheme, times a reciprocal. The gradients are products of h = g / Q:
dx = h (P' - s(x) T P/Q), with terms h x^i and h P/Q |x|^j. It is right while :func:`stays_plain` holds: no intermediate
value overflows unless a result or a sum does. For |g| < 2^-126 Q, h is subnormal and loses bits. For float32 inputs
PRECISE makes terms that round less, as the sums over V round too.

Scaled arithmetic keeps numbers as a mantissa and an integer exponent. Nothing overflows before the result itself does,
so finite inputs give finite or correctly infinite results.
"""

import torch
import triton
import triton.language as tl

# A constant, as compilers may run without a device.
_HAS_PTX = tl.constexpr(torch.version.hip is None and not triton.knobs.runtime.interpret)
# (M + N + 1) max(1, |a|, |b|) max(1, |x|)^degree bounds P and Q. The product of P and T is at most N times its square.
# Below these powers of two that is a float32 (float64) number.
_PLAIN_F32 = tl.constexpr(2.0**60)
_PLAIN_F64 = tl.constexpr(2.0**480)
# The exponent of zero. Powers and products of it stay far below every true exponent, within int32.
_ZERO_EXPONENT = tl.constexpr(-(2**20))
# Terms of a float64 sum saturate here, so that opposite ones cancel instead of making a NaN.
SUM_EXPONENT = tl.constexpr(960)


@triton.jit
def load_coefficients(pointer, row, mask, COUNT: tl.constexpr, ABSOLUTE: tl.constexpr, COMPUTE: tl.constexpr):
    """Load the coefficients, or their absolute values, of each channel's ``row``: COUNT tensors (1, 1, C)."""
    coefficients = ()
    for i in tl.static_range(COUNT):
        value = tl.load(pointer + row * COUNT + i, mask=mask, other=0.0).to(COMPUTE)
        if ABSOLUTE:
            value = tl.abs(value)
        coefficients = coefficients + (value[None, None, :],)
    return coefficients


@triton.jit
def largest_coefficient(a, b, M: tl.constexpr, N: tl.constexpr):
    """Return (M + N + 1) max(1, |a|, |b|), a scalar."""
    largest = tl.maximum(tl.abs(a[0]), 1.0)
    for i in tl.static_range(1, M):
        largest = tl.maximum(largest, tl.abs(a[i]))
    for j in tl.static_range(N):
        largest = tl.maximum(largest, b[j])
    return tl.max(largest) * (M + N + 1)


@triton.jit
def stays_plain(reach, largest, M: tl.constexpr, N: tl.constexpr):
    """Return whether plain arithmetic is right for all |x| <= reach. A NaN may give either, as both propagate it."""
    reach = tl.maximum(reach, 1.0)
    bound = largest
    for _ in tl.static_range(M - 1 if M > N else N):
        bound = bound * reach
    if bound.dtype == tl.float64:
        return bound <= _PLAIN_F64
    else:
        return bound <= _PLAIN_F32


# Plain


@triton.jit
def reciprocal(q):
    """Return 1 / q within a unit in the last place, for q >= 1 far from the largest number."""
    if _HAS_PTX and q.dtype == tl.float32:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [q], q.dtype, is_pure=True, pack=1)
    else:
        return 1.0 / q


@triton.jit
def _numerator(x, a, M: tl.constexpr):
    """Return P and P'."""
    zero = tl.zeros_like(x)
    value = a[M - 1] + zero
    derivative = zero
    for i in tl.static_range(1, M):
        derivative = value if i == 1 else derivative * x + value
        value = value * x + a[M - 1 - i]
    return value, derivative


@triton.jit
def _denominator(u, b, N: tl.constexpr):
    """Return Q, T, and the rounding error of Q's last step, for u = |x|. The error is exact while Q < 2^24."""
    zero = tl.zeros_like(u)
    value = zero + 1.0
    derivative = zero
    rest = zero
    if N > 0:
        value = b[N - 1] + zero
        derivative = value
        for j in tl.static_range(1, N):
            value = value * u + b[N - 1 - j]
            derivative = derivative * u + value
        most = value
        value = tl.fma(most, u, 1.0)
        rest = tl.fma(most, u, 1.0 - value)
    return value, derivative, rest


@triton.jit
def plain_value(x, a, b, M: tl.constexpr, N: tl.constexpr):
    """Return F(x) of a tile: the bits of ``plain_gradients``, as a value may be computed again in the backward pass."""
    p, _ = _numerator(x, a, M)
    q, _, _ = _denominator(tl.abs(x), b, N)
    return p * reciprocal(q)


@triton.jit
def plain_gradients(g, x, a, b, M: tl.constexpr, N: tl.constexpr, PRECISE: tl.constexpr):
    """Return F(x) and dx of a tile, and its sums for da and db: a tuple of M + N tensors (P, C)."""
    u = tl.abs(x)
    p, dp = _numerator(x, a, M)
    q, dq, rest = _denominator(u, b, N)
    r = reciprocal(q)
    y = p * r
    h = g * r
    if PRECISE:
        # A Newton step with the residual g - h (Q + rest). After it h has little more than its own rounding error.
        h = tl.fma(r, tl.fma(-h, rest, tl.fma(-h, q, g)), h)
    dx = h * (dp - tl.where(x < 0, -dq, dq) * y)
    z = h * y
    terms = ()
    if PRECISE:
        # Power by power: with squares, each term would also have the rounding error of the square.
        for i in tl.static_range(M):
            if i > 0:
                h = h * x
            terms = terms + (tl.sum(h, axis=0),)
        for _ in tl.static_range(N):
            z = z * u
            terms = terms + (-tl.sum(z, axis=0),)
    else:
        # With squares there are fewer products: an odd power is a fused multiply-add into the sum.
        square = x * x
        for i in tl.static_range(M):
            if i > 0 and i % 2 == 0:
                h = h * square
            terms = terms + (tl.sum(h * x if i % 2 else h, axis=0),)
        for j in tl.static_range(1, N + 1):
            if j > 2 and j % 2 == 1:
                z = z * square
            terms = terms + (-tl.sum(z * (u if j % 2 else square), axis=0),)
    return y, dx, terms


@triton.jit
def add_terms(sums, terms, COUNT: tl.constexpr):
    """Return ``sums`` plus ``terms``, in the dtype of the sums."""
    total = ()
    for k in tl.static_range(COUNT):
        total = total + (sums[k] + terms[k].to(sums[k].dtype),)
    return total


# Scaled


@triton.jit
def _power_of_two(exponent, like):
    """Return 2^exponent in the dtype of ``like``, for exponents of normal numbers."""
    if like.dtype == tl.float64:
        return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _split(value):
    """Split value = mantissa * 2^exponent with 1 <= |mantissa| < 2.

    Zero has the exponent ``_ZERO_EXPONENT``. NaN and inf become NaN.
    """
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
    """Return value * 2^exponent by two exact factors, so that only the result itself can round or overflow."""
    if value.dtype == tl.float64:
        exponent = tl.minimum(tl.maximum(exponent, -2040), 2040)
    else:
        exponent = tl.minimum(tl.maximum(exponent, -250), 250)
    half = exponent >> 1
    return value * _power_of_two(half, value) * _power_of_two(exponent - half, value)


@triton.jit
def _shift_down(value, exponent):
    """Return value * 2^exponent for exponent <= 0. Factors below the smallest normal one do not matter in a sum."""
    if value.dtype == tl.float64:
        return value * _power_of_two(tl.maximum(exponent, -1022), value)
    else:
        return value * _power_of_two(tl.maximum(exponent, -126), value)


@triton.jit
def _to_sum(value, exponent):
    """Sum value * 2^exponent over V in float64, saturated."""
    value = value.to(tl.float64)
    return tl.sum(value * _power_of_two(tl.minimum(tl.maximum(exponent, -1022), SUM_EXPONENT), value), axis=0)


@triton.jit
def _scaled_polynomial(x, e, coefficients, COUNT: tl.constexpr, FIRST: tl.constexpr):
    """Return sum_i c_i (x 2^e)^i and its derivative, each as a value and an exponent.

    Sums are relative to the largest term. With FIRST = 1 the coefficients are c_1, c_2, ... and c_0 is 1.
    """
    zero = tl.zeros_like(x)
    top = e * 0 + (0 if FIRST == 1 else _ZERO_EXPONENT)
    top_derivative = e * 0 + 64 * _ZERO_EXPONENT
    for i in tl.static_range(COUNT):
        _, exponent = _split(coefficients[i])
        top = tl.maximum(top, exponent + (i + FIRST) * e)
        if i + FIRST > 0:
            top_derivative = tl.maximum(top_derivative, exponent + (i + FIRST - 1) * e)
    power = zero + 1.0
    value = _shift_down(power, -top) if FIRST == 1 else zero
    derivative = zero
    for i in tl.static_range(COUNT):
        mantissa, exponent = _split(coefficients[i])
        if i + FIRST > 0:
            slope = mantissa * ((i + FIRST) * power)
            derivative += _shift_down(slope, exponent + (i + FIRST - 1) * e - top_derivative)
            power = power * x
        value += _shift_down(mantissa * power, exponent + (i + FIRST) * e - top)
    return value, top, derivative, top_derivative


@triton.jit
def scaled_value(x, a, b, M: tl.constexpr, N: tl.constexpr):
    """Return F(x) of a tile on the overflow-safe path."""
    f, e = _split(x)
    p, ep, _, _ = _scaled_polynomial(f, e, a, M, 0)
    q, eq, _, _ = _scaled_polynomial(tl.abs(f), e, b, N, 1)
    return _scale(p / q, ep - eq)


@triton.jit
def scaled_gradients(g, x, a, b, M: tl.constexpr, N: tl.constexpr):
    """Return dx and the sums of ``plain_gradients`` on the overflow-safe path, the sums in float64."""
    f, e = _split(x)
    fg, eg = _split(g)
    u = tl.abs(f)
    p, ep, dp, edp = _scaled_polynomial(f, e, a, M, 0)
    q, eq, dq, edq = _scaled_polynomial(u, e, b, N, 1)
    left = dp / q
    right = (dq / q) * (p / q)
    right = tl.where(x < 0, -right, right)
    e_left = tl.where(left == 0, 128 * _ZERO_EXPONENT, edp - eq)
    e_right = tl.where(right == 0, 128 * _ZERO_EXPONENT, edq + ep - 2 * eq)
    top = tl.maximum(e_left, e_right)
    slope = _shift_down(left, e_left - top) - _shift_down(right, e_right - top)
    dx = _scale(fg * slope, eg + top)
    terms = ()
    term = fg / q
    for i in tl.static_range(M):
        terms = terms + (_to_sum(term, eg + i * e - eq),)
        term = term * f
    term = (fg / q) * (p / q)
    for j in tl.static_range(N):
        term = term * u
        terms = terms + (-_to_sum(term, eg + ep - 2 * eq + (j + 1) * e),)
    return dx, terms
