"""Triton kernels of the group-wise rational function: forward, backward, and the last stage of the backward's sums.

The kernels view a tensor as (batches, positions, channels, V). A thread works on vectors of V elements that share
their coefficients. ``rational.py`` chooses the view:

- With CONTIGUOUS, a vector is contiguous in memory and takes one 16-byte access. A channel may then stand for a chunk
  of V channels of one group. Strides are in units of V elements.
- Otherwise the elements of a vector are far apart, and neighbouring threads access neighbouring channels.
- With PAIRS each thread has two channels. Strides are in units of two elements, and that of channels is 1.

A program keeps to one block of channels, so that it loads its coefficients once. It takes every k-th run of UNROLL
tiles (V, BLOCK_POSITIONS, BLOCK_CHANNELS). It computes them the plain way (formulas: ``arithmetic.py``), and records
the largest |x|. If plain arithmetic may have overflowed, it repeats its tiles on the overflow-safe path. That path
takes slices of one element per thread, so that it costs the plain one no registers.

x, out, grad and grad_x are float64, float32, bfloat16 or float16, each on its own. Arithmetic is float32, or float64
for float64 inputs. Only x is saved between the passes: the backward kernel can store F(x) again, with the same bits.

The sums for da and db start in the dtype of the arithmetic: over V, and for 16-bit inputs over UNROLL tiles. From there
on they are float64, over a program's runs, then over programs. The order is fixed and there are no atomics, so every
run gives the same bits.
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
def _find(run, positions, BATCHED: tl.constexpr, LENGTH: tl.constexpr):
    """Return the batch (int64) and the first position (int32) of a run of LENGTH positions."""
    if BATCHED:
        runs = tl.cdiv(positions, LENGTH)
        return tl.cast(run // runs, tl.int64), (run % runs) * LENGTH
    else:
        return tl.cast(0, tl.int64), run * LENGTH


@triton.jit
def _inside(start, vector, position, channel_mask, positions, size, CONTIGUOUS: tl.constexpr):
    """Return the mask (V or 1, P, C) of a tile that begins at position ``start``."""
    mask = (position < positions - start)[None, :, None] & channel_mask[None, None, :]
    if not CONTIGUOUS:
        # ``size`` elements are split into V runs of ``positions``. The last runs may be short.
        mask = mask & (vector.to(tl.int64)[:, None] * positions + position[None, :] < size - start)[:, :, None]
    return mask


@triton.jit
def _pattern(strides, vector, position, channel, V: tl.constexpr, CONTIGUOUS: tl.constexpr, PAIRS: tl.constexpr):
    """Return the offsets (V, P, C) within a tile."""
    _, by_vector, by_position, by_channel = strides
    by_channel = channel.to(tl.int64) * by_channel
    by_position = position.to(tl.int64) * by_position
    # The factors tell the compiler that vectors are aligned, so that it makes one access of each.
    if CONTIGUOUS:
        return (by_position[:, None] + by_channel[None, :])[None, :, :] * V + vector[:, None, None]
    else:
        rows = by_position[None, :, None] + (vector.to(tl.int64) * by_vector)[:, None, None]
        return rows * (2 if PAIRS else 1) + by_channel[None, None, :]


@triton.jit
def _begin(pointer, strides, batch, start, V: tl.constexpr, CONTIGUOUS: tl.constexpr, PAIRS: tl.constexpr):
    """Return the pointer at which a tile begins."""
    by_batch, _, by_position, _ = strides
    offset = batch * by_batch + tl.cast(start, tl.int64) * by_position
    return pointer + offset * (V if CONTIGUOUS else 2 if PAIRS else 1)


@triton.jit
def _channels_of_block(channels, BLOCK_CHANNELS: tl.constexpr, PAIRS: tl.constexpr):
    """Return the channels of a program, and the mask of those that exist."""
    c = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    return c, c < (channels // 2 * 2 if PAIRS else channels)


@triton.jit
def _load_bias(pointer, vector, channel, channel_mask, V: tl.constexpr, COMPUTE: tl.constexpr):
    """Load the bias of each channel's vectors, (V or 1, 1, C)."""
    offsets = (channel * V)[None, None, :] + vector[:, None, None]
    return tl.load(pointer + offsets, mask=channel_mask[None, None, :], other=0.0).to(COMPUTE)


@triton.jit
def add_in_memory(pointers, values, mask, before):
    """Store values, or add them to those that another thread stored before."""
    tl.debug_barrier()
    values += tl.where(before > 0, tl.load(pointers, mask=mask, other=0.0), 0.0)
    tl.debug_barrier()
    tl.store(pointers, values, mask=mask)


@triton.jit
def careful_value(x, a, b, largest, M: tl.constexpr, N: tl.constexpr):
    """Return F(x) of a slice, on the overflow-safe path where it is needed: the same bits in both passes."""
    if stays_plain(tl.max(tl.abs(x)), largest, M, N):  # noqa: SIM108
        out = plain_value(x, a, b, M, N)
    else:
        out = scaled_value(x, a, b, M, N)
    return out


# A new batch size compiles nothing. And where vectors are not contiguous, the compiler must not see that channels are
# aligned: it would give a thread several of them, hence several sets of coefficients.
_SIZES = ["batches", "positions", "channels", "size", "width"]
_AXES = ("batch", "vector", "position", "channel")
_STRIDES = [f"{name}_{axis}" for name in ("grad", "x", "grad_x", "out") for axis in _AXES]


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_STRIDES)
def forward_kernel(
    x_ptr, bias_ptr, numerator_ptr, denominator_ptr, out_ptr,
    batches, positions, channels, size, width,
    x_batch, x_vector, x_position, x_channel, out_batch, out_vector, out_position, out_channel,
    M: tl.constexpr, N: tl.constexpr, NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    COMPUTE: tl.constexpr, V: tl.constexpr, CONTIGUOUS: tl.constexpr, PAIRS: tl.constexpr, BATCHED: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, UNROLL: tl.constexpr, STAGES: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    """Store out = F(x), or with BIAS out = F(x + bias).

    Numerator (1 or G, M) and denominator (1 or G, N) are contiguous. A group has ``width`` channels. With BIAS vectors
    are contiguous, and the bias has V numbers for each channel.
    """
    c, channel_mask = _channels_of_block(channels, BLOCK_CHANNELS, PAIRS)
    group = c // width
    a = load_coefficients(numerator_ptr, group * 0 if NUMERATOR_SHARED else group, channel_mask, M, False, COMPUTE)
    b = load_coefficients(denominator_ptr, group * 0 if DENOMINATOR_SHARED else group, channel_mask, N, True, COMPUTE)
    x_strides = (x_batch, x_vector, x_position, x_channel)
    out_strides = (out_batch, out_vector, out_position, out_channel)
    first, step = tl.program_id(1), tl.num_programs(1)
    runs = batches * tl.cdiv(positions, BLOCK_POSITIONS * UNROLL)

    v = tl.arange(0, V)
    p = tl.arange(0, BLOCK_POSITIONS)
    x_pattern = _pattern(x_strides, v, p, c, V, CONTIGUOUS, PAIRS)
    out_pattern = _pattern(out_strides, v, p, c, V, CONTIGUOUS, PAIRS)
    if BIAS:
        bias = _load_bias(bias_ptr, v, c, channel_mask, V, COMPUTE)
    reach = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), COMPUTE)
    for run in tl.range(first, runs, step, num_stages=STAGES):
        batch, start = _find(run, positions, BATCHED, BLOCK_POSITIONS * UNROLL)
        for _ in tl.static_range(UNROLL):
            inside = _inside(start, v, p, channel_mask, positions, size, CONTIGUOUS)
            x = tl.load(
                _begin(x_ptr, x_strides, batch, start, V, CONTIGUOUS, PAIRS) + x_pattern, mask=inside, other=0.0
            )
            x = x.to(COMPUTE)
            if BIAS:
                x += bias
            out = plain_value(x, a, b, M, N)
            reach = tl.maximum(reach, tl.max(tl.abs(x), axis=0))
            pointers = _begin(out_ptr, out_strides, batch, start, V, CONTIGUOUS, PAIRS) + out_pattern
            tl.store(pointers, out.to(out_ptr.dtype.element_ty), mask=inside)
            start += BLOCK_POSITIONS

    largest = largest_coefficient(a, b, M, N)
    if not stays_plain(tl.max(reach), largest, M, N):
        for run in tl.range(first, runs, step):
            batch, start = _find(run, positions, BATCHED, BLOCK_POSITIONS * UNROLL)
            for i in tl.range(UNROLL * V):
                one, here = i % V + tl.arange(0, 1), start + i // V * BLOCK_POSITIONS
                inside_slice = _inside(here, one, p, channel_mask, positions, size, CONTIGUOUS)
                pointers = _begin(x_ptr, x_strides, batch, here, V, CONTIGUOUS, PAIRS)
                pointers = pointers + _pattern(x_strides, one, p, c, V, CONTIGUOUS, PAIRS)
                x = tl.load(pointers, mask=inside_slice, other=0.0).to(COMPUTE)
                if BIAS:
                    x += _load_bias(bias_ptr, one, c, channel_mask, V, COMPUTE)
                out = careful_value(x, a, b, largest, M, N)
                pointers = _begin(out_ptr, out_strides, batch, here, V, CONTIGUOUS, PAIRS)
                pointers = pointers + _pattern(out_strides, one, p, c, V, CONTIGUOUS, PAIRS)
                tl.store(pointers, out.to(out_ptr.dtype.element_ty), mask=inside_slice)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_STRIDES)
def backward_kernel(
    x_ptr, grad_ptr, grad_x_ptr, out_ptr, bias_ptr, numerator_ptr, denominator_ptr, partial_ptr, bias_partial_ptr,
    batches, positions, channels, size, width,
    x_batch, x_vector, x_position, x_channel,
    grad_batch, grad_vector, grad_position, grad_channel,
    grad_x_batch, grad_x_vector, grad_x_position, grad_x_channel,
    M: tl.constexpr, N: tl.constexpr, NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    COMPUTE: tl.constexpr, V: tl.constexpr, CONTIGUOUS: tl.constexpr, PAIRS: tl.constexpr, BATCHED: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, UNROLL: tl.constexpr, STAGES: tl.constexpr,
    NUMERATOR_FOLD: tl.constexpr, DENOMINATOR_FOLD: tl.constexpr, PRECISE: tl.constexpr, EARLY: tl.constexpr,
    BIAS: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """Store grad_x = g F'(x), or g F'(x + bias), and each program's share of the sums for da, db and dbias.

    With OUT store F(x), or F(x + bias), with the strides of grad_x: the bits that the forward kernel stored.

    ``partial`` is contiguous float64. Its da is (M, channels / NUMERATOR_FOLD, programs of a block of channels), and
    its db is alike, without the factor s(b). A sum is over FOLD channels that share their coefficients.
    ``bias_partial`` is float32, (programs of a block, V channels).

    PRECISE is for inputs of more than 16 bits. Terms then round less, and each tile is added to the float64 sums, not
    each run. EARLY lets the kernel that adds up the sums start on the device before this one ends.
    """
    c, channel_mask = _channels_of_block(channels, BLOCK_CHANNELS, PAIRS)
    group = c // width
    a = load_coefficients(numerator_ptr, group * 0 if NUMERATOR_SHARED else group, channel_mask, M, False, COMPUTE)
    b = load_coefficients(denominator_ptr, group * 0 if DENOMINATOR_SHARED else group, channel_mask, N, True, COMPUTE)
    grad_strides = (grad_batch, grad_vector, grad_position, grad_channel)
    x_strides = (x_batch, x_vector, x_position, x_channel)
    grad_x_strides = (grad_x_batch, grad_x_vector, grad_x_position, grad_x_channel)
    first, step = tl.program_id(1), tl.num_programs(1)
    runs = batches * tl.cdiv(positions, BLOCK_POSITIONS * UNROLL)

    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    v = tl.arange(0, V)
    p = tl.arange(0, BLOCK_POSITIONS)
    grad_pattern = _pattern(grad_strides, v, p, c, V, CONTIGUOUS, PAIRS)
    x_pattern = _pattern(x_strides, v, p, c, V, CONTIGUOUS, PAIRS)
    grad_x_pattern = _pattern(grad_x_strides, v, p, c, V, CONTIGUOUS, PAIRS)
    reach = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), COMPUTE)
    zero = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), tl.float64)
    sums = (zero,) * (M + N)
    if BIAS:
        bias = _load_bias(bias_ptr, v, c, channel_mask, V, COMPUTE)
        bias_partial_ptr += first.to(tl.int64) * channels * V
        bias_sums = tl.zeros((V, BLOCK_POSITIONS, BLOCK_CHANNELS), COMPUTE)
    for run in tl.range(first, runs, step, num_stages=STAGES):
        batch, start = _find(run, positions, BATCHED, BLOCK_POSITIONS * UNROLL)
        for i in tl.static_range(UNROLL):
            inside = _inside(start, v, p, channel_mask, positions, size, CONTIGUOUS)
            x = tl.load(
                _begin(x_ptr, x_strides, batch, start, V, CONTIGUOUS, PAIRS) + x_pattern, mask=inside, other=0.0
            )
            g = tl.load(
                _begin(grad_ptr, grad_strides, batch, start, V, CONTIGUOUS, PAIRS) + grad_pattern,
                mask=inside,
                other=0.0,
            )
            x, g = x.to(COMPUTE), g.to(COMPUTE)
            if BIAS:
                x += bias
            out, grad_x, more = plain_gradients(g, x, a, b, M, N, PRECISE)
            if OUT:
                pointers = _begin(out_ptr, grad_x_strides, batch, start, V, CONTIGUOUS, PAIRS) + grad_x_pattern
                tl.store(pointers, out.to(out_ptr.dtype.element_ty), mask=inside)
            if PRECISE:
                sums = add_terms(sums, more, M + N)
            else:
                terms = more if i == 0 else add_terms(terms, more, M + N)  # noqa: F821
            if BIAS:
                bias_sums += grad_x
            reach = tl.maximum(reach, tl.max(tl.abs(x), axis=0))
            pointers = _begin(grad_x_ptr, grad_x_strides, batch, start, V, CONTIGUOUS, PAIRS) + grad_x_pattern
            tl.store(pointers, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
            start += BLOCK_POSITIONS
        if not PRECISE:
            sums = add_terms(sums, terms, M + N)

    # A large gradient shows in the sums: they overflow, or are no numbers.
    overflow = zero
    for k in tl.static_range(M + N):
        overflow += sums[k] - sums[k]
    if BIAS:
        places = bias_partial_ptr + (c * V)[None, :] + v[:, None]
        tl.store(places, tl.sum(bias_sums, axis=1), mask=channel_mask[None, :])
    largest = largest_coefficient(a, b, M, N)
    if (not stays_plain(tl.max(reach), largest, M, N)) | (tl.sum(tl.sum(overflow, axis=1), axis=0) != 0):
        sums = (zero,) * (M + N)
        for run in tl.range(first, runs, step):
            batch, start = _find(run, positions, BATCHED, BLOCK_POSITIONS * UNROLL)
            for i in tl.range(UNROLL * V):
                one, here = i % V + tl.arange(0, 1), start + i // V * BLOCK_POSITIONS
                inside_slice = _inside(here, one, p, channel_mask, positions, size, CONTIGUOUS)
                pointers = _begin(x_ptr, x_strides, batch, here, V, CONTIGUOUS, PAIRS)
                pointers = pointers + _pattern(x_strides, one, p, c, V, CONTIGUOUS, PAIRS)
                x = tl.load(pointers, mask=inside_slice, other=0.0).to(COMPUTE)
                pointers = _begin(grad_ptr, grad_strides, batch, here, V, CONTIGUOUS, PAIRS)
                pointers = pointers + _pattern(grad_strides, one, p, c, V, CONTIGUOUS, PAIRS)
                g = tl.load(pointers, mask=inside_slice, other=0.0).to(COMPUTE)
                if BIAS:
                    x += _load_bias(bias_ptr, one, c, channel_mask, V, COMPUTE)
                grad_x, terms = scaled_gradients(g, x, a, b, M, N)
                if BIAS:
                    share = tl.sum(tl.sum(grad_x, axis=0), axis=0)
                    add_in_memory(bias_partial_ptr + c * V + i % V, share, channel_mask, run - first + i // V)
                sums = add_terms(sums, terms, M + N)
                pointers = _begin(grad_x_ptr, grad_x_strides, batch, here, V, CONTIGUOUS, PAIRS)
                pointers = pointers + _pattern(grad_x_strides, one, p, c, V, CONTIGUOUS, PAIRS)
                tl.store(pointers, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside_slice)
                if OUT:
                    out = careful_value(x, a, b, largest, M, N)
                    pointers = _begin(out_ptr, grad_x_strides, batch, here, V, CONTIGUOUS, PAIRS)
                    pointers = pointers + _pattern(grad_x_strides, one, p, c, V, CONTIGUOUS, PAIRS)
                    tl.store(pointers, out.to(out_ptr.dtype.element_ty), mask=inside_slice)

    for k in tl.static_range(M):
        _store_sums(partial_ptr, sums[k], k, channels, BLOCK_CHANNELS, NUMERATOR_FOLD)
    partial_ptr += M * tl.cdiv(channels, NUMERATOR_FOLD).to(tl.int64) * step
    for j in tl.static_range(N):
        _store_sums(partial_ptr, sums[M + j], j, channels, BLOCK_CHANNELS, DENOMINATOR_FOLD)


@triton.jit
def _store_sums(partial_ptr, sums, k, channels, BLOCK_CHANNELS: tl.constexpr, FOLD: tl.constexpr):
    """Fold (P, C) sums for coefficient ``k`` and store them in (coefficients, folds, programs)."""
    folds: tl.constexpr = BLOCK_CHANNELS // FOLD
    fold = tl.program_id(0) * folds + tl.arange(0, folds)
    row = (k * tl.cdiv(channels, FOLD) + fold).to(tl.int64)
    share = tl.sum(tl.reshape(tl.sum(sums, axis=0), (folds, FOLD)), axis=1)
    tl.store(partial_ptr + row * tl.num_programs(1) + tl.program_id(1), share, mask=fold * FOLD < channels)


@triton.jit(
    do_not_specialize=[
        "numerator_sums",
        "denominator_sums",
        "numerator_rows",
        "denominator_rows",
        "programs",
        "columns",
    ]
)
def sum_partials_kernel(
    partial_ptr, bias_partial_ptr, denominator_ptr, grad_numerator_ptr, grad_denominator_ptr, grad_bias_ptr,
    numerator_sums, denominator_sums, numerator_rows, denominator_rows, programs, columns,
    M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, BLOCK_PROGRAMS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    EARLY: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Store da and db, a program for each number, then with BIAS dbias, a program for BLOCK_COLUMNS numbers.

    With EARLY this kernel may start before the partial sums are written, and waits for them.
    """
    index = tl.program_id(0)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    coefficients = numerator_rows * M + denominator_rows * N
    if (not BIAS) or index < coefficients:
        add_up_coefficients(
            index, partial_ptr, denominator_ptr, grad_numerator_ptr, grad_denominator_ptr,
            numerator_sums, denominator_sums, numerator_rows, denominator_rows, M, N, BLOCK,
        )  # fmt: skip
    else:
        column = (index - coefficients) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        total = add_up_columns(bias_partial_ptr, column, programs, columns, BLOCK_PROGRAMS, BLOCK_COLUMNS)
        tl.store(grad_bias_ptr + column, total.to(grad_bias_ptr.dtype.element_ty), mask=column < columns)


@triton.jit
def add_up_columns(
    partial_ptr, column, programs, columns, BLOCK_PROGRAMS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):  # fmt: skip
    """Return the sums over programs of a block of columns of (programs, columns), in float64."""
    total = tl.zeros((BLOCK_PROGRAMS, BLOCK_COLUMNS), tl.float64)
    for begin in tl.range(0, programs, BLOCK_PROGRAMS, num_stages=1):
        program = begin + tl.arange(0, BLOCK_PROGRAMS)
        mask = (program < programs)[:, None] & (column < columns)[None, :]
        pointers = partial_ptr + program[:, None] * columns + column[None, :]
        total += tl.load(pointers, mask=mask, other=0.0).to(tl.float64)
    return tl.sum(total, axis=0)


@triton.jit
def add_up_coefficients(
    index, partial_ptr, denominator_ptr, grad_numerator_ptr, grad_denominator_ptr,
    numerator_sums, denominator_sums, numerator_rows, denominator_rows,
    M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store number ``index`` of da and db, from the partial sums.

    These are M rows of ``numerator_sums`` numbers, then N rows of ``denominator_sums`` numbers.
    """
    for_b = index - numerator_rows * M
    if for_b < 0:
        length = numerator_sums // numerator_rows
        start = (index % M).to(tl.int64) * numerator_sums + (index // M).to(tl.int64) * length
    else:
        length = denominator_sums // denominator_rows
        start = M * tl.cast(numerator_sums, tl.int64) + (for_b % max(N, 1)).to(tl.int64) * denominator_sums
        start += (for_b // max(N, 1)).to(tl.int64) * length
    total = tl.zeros((BLOCK,), tl.float64)
    for begin in tl.range(0, length, BLOCK, num_stages=1):
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
