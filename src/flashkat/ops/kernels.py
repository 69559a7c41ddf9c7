"""Triton kernels of the group-wise rational function: forward, backward, and the last stage of the backward's sums.

A tensor is seen with four dimensions, (batches, positions, channels, V): a thread works on vectors of V elements that
share their coefficients. Where memory allows, a vector is contiguous and takes one 16-byte access; otherwise
(CONTIGUOUS false) its elements are far apart and it is neighbouring threads that are contiguous. What counts as a
channel here may be a chunk of V channels of the same group. ``launch.py`` chooses the view.

A program keeps to one block of channels, so that it loads its coefficients once, and takes every k-th run of UNROLL
tiles (V, BLOCK_POSITIONS, BLOCK_CHANNELS) of it. It computes all of them the plain way (``arithmetic.py`` has the
formulas) and notes the largest |x|; in the seldom case that plain was not right, it does its tiles once more, in slices
of one element per thread, so that the careful way, seldom taken, costs the plain one no registers.

Dtypes: x, out, grad and grad_x are float64, float32, bfloat16 or float16, each its own; arithmetic is float32, or
float64 for float64 inputs. Only x is saved between the passes. The sums for da and db are taken over V in the
arithmetic's dtype, then in float64 in a fixed order: over a program's tiles, then over programs. No atomics, the same
bits every run.
"""

import triton
import triton.language as tl

from .arithmetic import (
    SUM_EXPONENT,
    add_terms,
    largest_coefficient,
    load_coefficients,
    plain_gradients,
    plain_value,
    scaled_gradients,
    scaled_value,
    stays_plain,
)

_SATURATED = tl.constexpr(2.0 ** (SUM_EXPONENT.value - 1))


@triton.jit
def _find(tile, positions, BATCHED: tl.constexpr, LENGTH: tl.constexpr):
    """The batch and the first position of a run of LENGTH positions, int64 and int32."""
    if BATCHED:
        runs = tl.cdiv(positions, LENGTH)
        return tl.cast(tile // runs, tl.int64), (tile % runs) * LENGTH
    else:
        return tl.cast(0, tl.int64), tile * LENGTH


@triton.jit
def _inside(start, vector, position, channel_mask, positions, size, CONTIGUOUS: tl.constexpr):
    """The mask (V or 1, P, C) of a tile that begins at position ``start``."""
    mask = (position < positions - start)[None, :, None] & channel_mask[None, None, :]
    if not CONTIGUOUS:
        # Vectors deal ``size`` elements out to V runs of ``positions``; the last runs may be short.
        mask = mask & (vector.to(tl.int64)[:, None] * positions + position[None, :] < size - start)[:, :, None]
    return mask


@triton.jit
def _pattern(strides, vector, position, channel, V: tl.constexpr, CONTIGUOUS: tl.constexpr):
    """Offsets (V, P, C) within a tile. Strides are in vectors where vectors are contiguous, else in elements."""
    _, by_vector, by_position, by_channel = strides
    plane = (position.to(tl.int64) * by_position)[:, None] + (channel.to(tl.int64) * by_channel)[None, :]
    if CONTIGUOUS:
        # That the compiler sees the multiples of V makes one 16-byte access of a vector.
        return plane[None, :, :] * V + vector[:, None, None]
    else:
        return plane[None, :, :] + (vector.to(tl.int64) * by_vector)[:, None, None]


@triton.jit
def _begin(pointer, strides, batch, start, V: tl.constexpr, CONTIGUOUS: tl.constexpr):
    """The pointer at which a tile begins."""
    by_batch, _, by_position, _ = strides
    offset = batch * by_batch + tl.cast(start, tl.int64) * by_position
    return pointer + (offset * V if CONTIGUOUS else offset)


# A new batch size compiles nothing. And where vectors are not contiguous, the compiler must not see that channels are
# aligned: it would give a thread several of them, hence several sets of coefficients.
_SIZES = ["batches", "positions", "channels", "size", "width"]
_AXES = ("batch", "vector", "position", "channel")
_STRIDES = [f"{name}_{axis}" for name in ("grad", "x", "grad_x", "out") for axis in _AXES]


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_STRIDES)
def forward_kernel(
    x_ptr, numerator_ptr, denominator_ptr, out_ptr,
    batches, positions, channels, size, width,
    x_batch, x_vector, x_position, x_channel, out_batch, out_vector, out_position, out_channel,
    M: tl.constexpr, N: tl.constexpr, NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    COMPUTE: tl.constexpr, V: tl.constexpr, CONTIGUOUS: tl.constexpr, BATCHED: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, UNROLL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out = F(x). Numerator (1 or G, M) and denominator (1 or G, N) are contiguous; ``width`` channels are a group."""
    c = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_mask = c < channels
    group = c // width
    a = load_coefficients(numerator_ptr, group * 0 if NUMERATOR_SHARED else group, channel_mask, M, False, COMPUTE)
    b = load_coefficients(denominator_ptr, group * 0 if DENOMINATOR_SHARED else group, channel_mask, N, True, COMPUTE)
    x_strides = (x_batch, x_vector, x_position, x_channel)
    out_strides = (out_batch, out_vector, out_position, out_channel)
    first, step = tl.program_id(1), tl.num_programs(1)
    tiles = batches * tl.cdiv(positions, BLOCK_POSITIONS * UNROLL)

    v = tl.arange(0, V)
    p = tl.arange(0, BLOCK_POSITIONS)
    x_pattern = _pattern(x_strides, v, p, c, V, CONTIGUOUS)
    out_pattern = _pattern(out_strides, v, p, c, V, CONTIGUOUS)
    reach = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), COMPUTE)
    for tile in tl.range(first, tiles, step, num_stages=STAGES):
        batch, start = _find(tile, positions, BATCHED, BLOCK_POSITIONS * UNROLL)
        for _ in tl.static_range(UNROLL):
            inside = _inside(start, v, p, channel_mask, positions, size, CONTIGUOUS)
            x = tl.load(_begin(x_ptr, x_strides, batch, start, V, CONTIGUOUS) + x_pattern, mask=inside, other=0.0)
            x = x.to(COMPUTE)
            out = plain_value(x, a, b, M, N)
            reach = tl.maximum(reach, tl.max(tl.abs(x), axis=0))
            pointers = _begin(out_ptr, out_strides, batch, start, V, CONTIGUOUS) + out_pattern
            tl.store(pointers, out.to(out_ptr.dtype.element_ty), mask=inside)
            start += BLOCK_POSITIONS

    largest = largest_coefficient(a, b, M, N)
    if not stays_plain(tl.max(reach), largest, M, N):
        for tile in tl.range(first, tiles, step):
            batch, start = _find(tile, positions, BATCHED, BLOCK_POSITIONS * UNROLL)
            for i in tl.range(UNROLL * V):
                one, here = i % V + tl.arange(0, 1), start + i // V * BLOCK_POSITIONS
                inside_slice = _inside(here, one, p, channel_mask, positions, size, CONTIGUOUS)
                pointers = _begin(x_ptr, x_strides, batch, here, V, CONTIGUOUS)
                pointers = pointers + _pattern(x_strides, one, p, c, V, CONTIGUOUS)
                x = tl.load(pointers, mask=inside_slice, other=0.0).to(COMPUTE)
                if stays_plain(tl.max(tl.abs(x)), largest, M, N):
                    out = plain_value(x, a, b, M, N)
                else:
                    out = scaled_value(x, a, b, M, N)
                pointers = _begin(out_ptr, out_strides, batch, here, V, CONTIGUOUS)
                pointers = pointers + _pattern(out_strides, one, p, c, V, CONTIGUOUS)
                tl.store(pointers, out.to(out_ptr.dtype.element_ty), mask=inside_slice)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_STRIDES)
def backward_kernel(
    x_ptr, grad_ptr, grad_x_ptr, numerator_ptr, denominator_ptr, partial_ptr,
    batches, positions, channels, size, width,
    x_batch, x_vector, x_position, x_channel,
    grad_batch, grad_vector, grad_position, grad_channel,
    grad_x_batch, grad_x_vector, grad_x_position, grad_x_channel,
    M: tl.constexpr, N: tl.constexpr, NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    COMPUTE: tl.constexpr, V: tl.constexpr, CONTIGUOUS: tl.constexpr, BATCHED: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, UNROLL: tl.constexpr, STAGES: tl.constexpr,
    ONE_GROUP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """grad_x = g F'(x), and each program's share of the sums for da and db.

    ``partial`` is (M + N, channels, programs of a block of channels), contiguous float64, with blocks for channels
    where a block has ONE_GROUP: rows 0 ... M-1 are sums for da, the others for db without the factor s(b). EARLY lets
    the kernel that adds them up come onto the device before this one ends.
    """
    c = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_mask = c < channels
    group = c // width
    a = load_coefficients(numerator_ptr, group * 0 if NUMERATOR_SHARED else group, channel_mask, M, False, COMPUTE)
    b = load_coefficients(denominator_ptr, group * 0 if DENOMINATOR_SHARED else group, channel_mask, N, True, COMPUTE)
    grad_strides = (grad_batch, grad_vector, grad_position, grad_channel)
    x_strides = (x_batch, x_vector, x_position, x_channel)
    grad_x_strides = (grad_x_batch, grad_x_vector, grad_x_position, grad_x_channel)
    first, step = tl.program_id(1), tl.num_programs(1)
    tiles = batches * tl.cdiv(positions, BLOCK_POSITIONS * UNROLL)

    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    v = tl.arange(0, V)
    p = tl.arange(0, BLOCK_POSITIONS)
    grad_pattern = _pattern(grad_strides, v, p, c, V, CONTIGUOUS)
    x_pattern = _pattern(x_strides, v, p, c, V, CONTIGUOUS)
    grad_x_pattern = _pattern(grad_x_strides, v, p, c, V, CONTIGUOUS)
    reach = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), COMPUTE)
    zero = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), tl.float64)
    sums = (zero,) * (M + N)
    for tile in tl.range(first, tiles, step, num_stages=STAGES):
        batch, start = _find(tile, positions, BATCHED, BLOCK_POSITIONS * UNROLL)
        for i in tl.static_range(UNROLL):
            inside = _inside(start, v, p, channel_mask, positions, size, CONTIGUOUS)
            x = tl.load(_begin(x_ptr, x_strides, batch, start, V, CONTIGUOUS) + x_pattern, mask=inside, other=0.0)
            g = tl.load(
                _begin(grad_ptr, grad_strides, batch, start, V, CONTIGUOUS) + grad_pattern, mask=inside, other=0.0
            )
            x, g = x.to(COMPUTE), g.to(COMPUTE)
            grad_x, more = plain_gradients(g, x, a, b, M, N)
            terms = more if i == 0 else add_terms(terms, more, M + N)  # noqa: F821
            reach = tl.maximum(reach, tl.max(tl.abs(x), axis=0))
            pointers = _begin(grad_x_ptr, grad_x_strides, batch, start, V, CONTIGUOUS) + grad_x_pattern
            tl.store(pointers, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
            start += BLOCK_POSITIONS
        sums = add_terms(sums, terms, M + N)

    # A large gradient shows in the sums: they overflow, or are no numbers.
    overflow = zero
    for k in tl.static_range(M + N):
        overflow += sums[k] - sums[k]
    largest = largest_coefficient(a, b, M, N)
    if (not stays_plain(tl.max(reach), largest, M, N)) | (tl.sum(tl.sum(overflow, axis=1), axis=0) != 0):
        sums = (zero,) * (M + N)
        for tile in tl.range(first, tiles, step):
            batch, start = _find(tile, positions, BATCHED, BLOCK_POSITIONS * UNROLL)
            for i in tl.range(UNROLL * V):
                one, here = i % V + tl.arange(0, 1), start + i // V * BLOCK_POSITIONS
                inside_slice = _inside(here, one, p, channel_mask, positions, size, CONTIGUOUS)
                pointers = _begin(x_ptr, x_strides, batch, here, V, CONTIGUOUS)
                pointers = pointers + _pattern(x_strides, one, p, c, V, CONTIGUOUS)
                x = tl.load(pointers, mask=inside_slice, other=0.0).to(COMPUTE)
                pointers = _begin(grad_ptr, grad_strides, batch, here, V, CONTIGUOUS)
                pointers = pointers + _pattern(grad_strides, one, p, c, V, CONTIGUOUS)
                g = tl.load(pointers, mask=inside_slice, other=0.0).to(COMPUTE)
                grad_x, terms = scaled_gradients(g, x, a, b, M, N)
                sums = add_terms(sums, terms, M + N)
                pointers = _begin(grad_x_ptr, grad_x_strides, batch, here, V, CONTIGUOUS)
                pointers = pointers + _pattern(grad_x_strides, one, p, c, V, CONTIGUOUS)
                tl.store(pointers, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside_slice)

    for k in tl.static_range(M + N):
        share = tl.sum(sums[k], axis=0)
        if ONE_GROUP:
            block = tl.cast(k * tl.num_programs(0) + tl.program_id(0), tl.int64)
            tl.store(partial_ptr + block * step + first, tl.sum(share, axis=0))
        else:
            tl.store(partial_ptr + (k * channels + c) * step + first, share, mask=channel_mask)


@triton.jit(do_not_specialize=["channels_and_programs", "numerator_rows", "denominator_rows"])
def sum_partials_kernel(
    partial_ptr, denominator_ptr, grad_numerator_ptr, grad_denominator_ptr,
    channels_and_programs, numerator_rows, denominator_rows,
    M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """da and db from the partial sums (M + N, channels * programs): a program per coefficient, which adds up a run.

    EARLY if it may be on the device before the sums are there.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
    index = tl.program_id(0)
    for_b = index - numerator_rows * M
    if for_b < 0:
        row, k, rows = index // M, index % M, numerator_rows
    else:
        row, k, rows = for_b // max(N, 1), M + for_b % max(N, 1), denominator_rows
    length = channels_and_programs // rows
    start = k.to(tl.int64) * channels_and_programs + row.to(tl.int64) * length
    total = tl.zeros((BLOCK,), tl.float64)
    for begin in tl.range(0, length, BLOCK):
        offset = begin + tl.arange(0, BLOCK)
        total += tl.load(partial_ptr + start + offset, mask=offset < length, other=0.0)
    total = tl.sum(total, axis=0)
    total = tl.where(tl.abs(total) >= _SATURATED, total * float("inf"), total)
    if for_b < 0:
        tl.store(grad_numerator_ptr + index, total.to(grad_numerator_ptr.dtype.element_ty))
    else:
        negative = tl.load(denominator_ptr + for_b) < 0
        total = tl.where(negative, -total, total)
        tl.store(grad_denominator_ptr + for_b, total.to(grad_denominator_ptr.dtype.element_ty))
