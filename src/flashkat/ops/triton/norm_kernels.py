"""Triton kernels of a residual addition, LayerNorm and the rational function in one pass, forward and backward.

    total = x + branch,   z = (total - mean) rstd weight + bias,   out = F(z)

with mean and rstd = 1 / sqrt(variance + eps) over the channels of each row. The backward pass recomputes z, and
computes all gradients in one pass over memory. It can store out again, with the same bits. With dz = g F'(z),
w = dz weight and averages over the channels:

    dtotal  = g_total + rstd (w - average(w) - n average(w n)),   n = (total - mean) rstd
    dweight = sum over rows of dz n,   dbias = sum over rows of dz,   da and db as in ``arithmetic.py`` with x = z

Rows are contiguous. A program takes runs of BLOCK_ROWS whole rows, in CHUNKS tiles (V, BLOCK_ROWS, BLOCK_VECTORS).
The V channels of a vector share their coefficients. A thread keeps its channels, so that it loads coefficients once
and adds up its sums in registers. As in ``rational_kernels.py``, a program repeats its work on the overflow-safe path
if plain arithmetic may have overflowed. Each sum has a fixed order.

x, branch, total, out and gradients are float32, bfloat16 or float16, each on its own. Arithmetic is float32. Sums for
da and db are float32 over the V channels of a vector, then float64. Those for weight and bias are float32 over a
program's rows, and float64 over programs.
"""

import triton
import triton.language as tl

from .arithmetic import (
    largest_coefficient,
    load_coefficients,
    plain_gradients,
    plain_value,
    scaled_gradients,
    stays_plain,
)
from .rational_kernels import add_in_memory, add_up_coefficients, add_up_columns, careful_value


@triton.jit
def _vectors(chunk, CHANNELS: tl.constexpr, V: tl.constexpr, BLOCK_VECTORS: tl.constexpr):
    """Return the vectors of a chunk, and the mask of those that exist."""
    vectors = chunk * BLOCK_VECTORS + tl.arange(0, BLOCK_VECTORS)
    return vectors, vectors < CHANNELS // V


@triton.jit
def _offsets(vectors, CHANNELS: tl.constexpr, V: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Return the offsets (V, R, C) within a run of rows."""
    return _offsets_of_first(vectors, CHANNELS, V, BLOCK_ROWS) + tl.arange(0, V)[:, None, None]


@triton.jit
def _offsets_of_first(vectors, CHANNELS: tl.constexpr, V: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Return the offsets (1, R, C) of the first channel of each vector."""
    return (tl.arange(0, BLOCK_ROWS)[:, None] * CHANNELS + vectors[None, :] * V)[None, :, :]


@triton.jit
def _tile(
    chunk, row_mask, CHANNELS: tl.constexpr, V: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_VECTORS: tl.constexpr
):  # fmt: skip
    """Return the offsets (V, R, C) of a chunk of a run of rows, and the mask (1, R, C) of those that exist."""
    vectors, mask = _vectors(chunk, CHANNELS, V, BLOCK_VECTORS)
    return _offsets(vectors, CHANNELS, V, BLOCK_ROWS), (row_mask[:, None] & mask[None, :])[None, :, :]


@triton.jit
def _load_per_channel(pointer, CHANNELS: tl.constexpr, CHUNKS: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr):
    """Load a number per channel, as a tuple of CHUNKS tensors (V, 1, C)."""
    found = ()
    for k in tl.static_range(CHUNKS):
        vectors, mask = _vectors(k, CHANNELS, V, BLOCK)
        values = tl.load(pointer + _offsets(vectors, CHANNELS, V, 1), mask=mask[None, None, :], other=0.0)
        found = found + (values.to(tl.float32),)
    return found


@triton.jit
def _load_coefficients(
    pointer, width, COUNT: tl.constexpr, SHARED: tl.constexpr, ABSOLUTE: tl.constexpr,
    CHANNELS: tl.constexpr, CHUNKS: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Load the coefficients of all chunks as one tuple, or only once if they are SHARED."""
    found = ()
    for k in tl.static_range(1 if SHARED else CHUNKS):
        vectors, mask = _vectors(k, CHANNELS, V, BLOCK)
        row = vectors * 0 if SHARED else vectors // width
        found = found + load_coefficients(pointer, row, mask, COUNT, ABSOLUTE, tl.float32)
    return found


@triton.jit
def _load_parameters(
    weight_ptr, bias_ptr, numerator_ptr, denominator_ptr, width,
    M: tl.constexpr, N: tl.constexpr, NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    CHANNELS: tl.constexpr, CHUNKS: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Load weight, bias, numerator and denominator, for all chunks."""
    weight = _load_per_channel(weight_ptr, CHANNELS, CHUNKS, V, BLOCK)
    bias = _load_per_channel(bias_ptr, CHANNELS, CHUNKS, V, BLOCK)
    a = _load_coefficients(numerator_ptr, width, M, NUMERATOR_SHARED, False, CHANNELS, CHUNKS, V, BLOCK)
    b = _load_coefficients(denominator_ptr, width, N, DENOMINATOR_SHARED, True, CHANNELS, CHUNKS, V, BLOCK)
    return weight, bias, a, b


@triton.jit
def _pick(values, chunk: tl.constexpr, COUNT: tl.constexpr, SHARED: tl.constexpr):
    """Return the COUNT values of a chunk."""
    return _slice(values, 0 if SHARED else chunk * COUNT, COUNT)


@triton.jit
def _slice(values, BEGIN: tl.constexpr, COUNT: tl.constexpr):
    picked = ()
    for i in tl.static_range(COUNT):
        picked = picked + (values[BEGIN + i],)
    return picked


@triton.jit
def _over_row(values, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the average over the channels of a tuple of chunks, (1, R, 1)."""
    total = values[0]
    for k in tl.static_range(1, CHUNKS):
        total += values[k]
    return (tl.sum(tl.sum(total, axis=0), axis=1) / CHANNELS)[None, :, None]


@triton.jit
def _forward_rows(
    x_ptr, branch_ptr, total_ptr, mean_ptr, rstd_ptr, out_ptr, start, rows, eps, weight, bias, a, b,
    M: tl.constexpr, N: tl.constexpr, NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    CHANNELS: tl.constexpr, CHUNKS: tl.constexpr, V: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_VECTORS: tl.constexpr,
):  # fmt: skip
    """Compute a run of rows, forward, and return the largest |z| of each thread's vectors, (R, C)."""
    row = tl.arange(0, BLOCK_ROWS)
    row_mask = row < rows - start
    base = tl.cast(start, tl.int64) * CHANNELS
    total = ()
    for k in tl.static_range(CHUNKS):
        offsets, inside = _tile(k, row_mask, CHANNELS, V, BLOCK_ROWS, BLOCK_VECTORS)
        value = tl.load(x_ptr + base + offsets, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(branch_ptr + base + offsets, mask=inside, other=0.0).to(tl.float32)
        value = value.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + base + offsets, value, mask=inside)
        total = total + (value.to(tl.float32),)
    mean = _over_row(total, CHUNKS, CHANNELS)
    squares = ()
    for k in tl.static_range(CHUNKS):
        _, mask = _vectors(k, CHANNELS, V, BLOCK_VECTORS)
        centred = tl.where(mask[None, None, :], total[k] - mean, 0.0)
        squares = squares + (centred * centred,)
    # Compilers that launch the kernel themselves may hand eps over in float64.
    rstd = tl.rsqrt(_over_row(squares, CHUNKS, CHANNELS) + tl.cast(eps, tl.float32))
    tl.store(mean_ptr + start + row, tl.reshape(mean, (BLOCK_ROWS,)), mask=row_mask)
    tl.store(rstd_ptr + start + row, tl.reshape(rstd, (BLOCK_ROWS,)), mask=row_mask)
    reach = tl.zeros((BLOCK_ROWS, BLOCK_VECTORS), tl.float32)
    for k in tl.static_range(CHUNKS):
        offsets, inside = _tile(k, row_mask, CHANNELS, V, BLOCK_ROWS, BLOCK_VECTORS)
        z = (total[k] - mean) * rstd * weight[k] + bias[k]
        reach = tl.maximum(reach, tl.max(tl.abs(z), axis=0))
        a_here, b_here = _pick(a, k, M, NUMERATOR_SHARED), _pick(b, k, N, DENOMINATOR_SHARED)
        out = plain_value(z, a_here, b_here, M, N)
        tl.store(out_ptr + base + offsets, out.to(out_ptr.dtype.element_ty), mask=inside)
    return reach


@triton.jit
def _stays_plain(
    reach, a, b, M: tl.constexpr, N: tl.constexpr, NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    plain = True
    for k in tl.static_range(CHUNKS):
        a_here, b_here = _pick(a, k, M, NUMERATOR_SHARED), _pick(b, k, N, DENOMINATOR_SHARED)
        plain = plain & stays_plain(reach, largest_coefficient(a_here, b_here, M, N), M, N)
    return plain


@triton.jit
def _careful_place(
    start, slice, rows, CHANNELS: tl.constexpr, V: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_VECTORS: tl.constexpr
):  # fmt: skip
    """Return the offsets (1, R, C) of one channel per vector and their mask. Each chunk has V such slices."""
    row = tl.arange(0, BLOCK_ROWS)
    vectors, mask = _vectors(slice // V, CHANNELS, V, BLOCK_VECTORS)
    offsets = tl.cast(start, tl.int64) * CHANNELS + _offsets_of_first(vectors, CHANNELS, V, BLOCK_ROWS) + slice % V
    return offsets, ((row < rows - start)[:, None] & mask[None, :])[None, :, :]


@triton.jit
def _careful_tile(
    total_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, numerator_ptr, denominator_ptr, start, slice, rows, width,
    M: tl.constexpr, N: tl.constexpr, NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    CHANNELS: tl.constexpr, V: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_VECTORS: tl.constexpr,
):  # fmt: skip
    """Load or compute n, z, weight, rstd and coefficients of a slice anew: little code, as this seldom runs."""
    row = tl.arange(0, BLOCK_ROWS)
    row_mask = row < rows - start
    vectors, mask = _vectors(slice // V, CHANNELS, V, BLOCK_VECTORS)
    offsets, inside = _careful_place(start, slice, rows, CHANNELS, V, BLOCK_ROWS, BLOCK_VECTORS)
    mean = tl.load(mean_ptr + start + row, mask=row_mask, other=0.0)[None, :, None]
    rstd = tl.load(rstd_ptr + start + row, mask=row_mask, other=0.0)[None, :, None]
    n = (tl.load(total_ptr + offsets, mask=inside, other=0.0).to(tl.float32) - mean) * rstd
    channel = (vectors * V + slice % V)[None, None, :]
    weight = tl.load(weight_ptr + channel, mask=mask[None, None, :], other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=mask[None, None, :], other=0.0).to(tl.float32)
    group = vectors // width
    a = load_coefficients(numerator_ptr, group * 0 if NUMERATOR_SHARED else group, mask, M, False, tl.float32)
    b = load_coefficients(denominator_ptr, group * 0 if DENOMINATOR_SHARED else group, mask, N, True, tl.float32)
    return n, n * weight + bias, weight, rstd, a, b


# A new batch size compiles nothing.
@triton.jit(do_not_specialize=["rows", "width"])
def add_norm_forward_kernel(
    x_ptr, branch_ptr, weight_ptr, bias_ptr, numerator_ptr, denominator_ptr, total_ptr, mean_ptr, rstd_ptr, out_ptr,
    rows, width, eps,
    M: tl.constexpr, N: tl.constexpr, NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    CHANNELS: tl.constexpr, CHUNKS: tl.constexpr, V: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_VECTORS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store total, mean and rstd (rows,), and out.

    A group has ``width`` vectors. Numerator (1 or G, M) and denominator (1 or G, N) are contiguous.
    """
    weight, bias, a, b = _load_parameters(
        weight_ptr, bias_ptr, numerator_ptr, denominator_ptr, width,
        M, N, NUMERATOR_SHARED, DENOMINATOR_SHARED, CHANNELS, CHUNKS, V, BLOCK_VECTORS,
    )  # fmt: skip
    first, step = tl.program_id(0), tl.num_programs(0)
    runs = tl.cdiv(rows, BLOCK_ROWS)
    reach = tl.zeros((BLOCK_ROWS, BLOCK_VECTORS), tl.float32)
    for run in tl.range(first, runs, step, num_stages=STAGES):
        here = _forward_rows(
            x_ptr, branch_ptr, total_ptr, mean_ptr, rstd_ptr, out_ptr, run * BLOCK_ROWS, rows, eps, weight, bias, a, b,
            M, N, NUMERATOR_SHARED, DENOMINATOR_SHARED, CHANNELS, CHUNKS, V, BLOCK_ROWS, BLOCK_VECTORS,
        )  # fmt: skip
        reach = tl.maximum(reach, here)
    if not _stays_plain(tl.max(reach), a, b, M, N, NUMERATOR_SHARED, DENOMINATOR_SHARED, CHUNKS):
        tl.debug_barrier()  # what other threads have written is there
        for run in tl.range(first, runs, step):
            for slice in tl.range(CHUNKS * V):
                offsets, inside = _careful_place(
                    run * BLOCK_ROWS, slice, rows, CHANNELS, V, BLOCK_ROWS, BLOCK_VECTORS
                )  # fmt: skip
                _, z, _, _, a_here, b_here = _careful_tile(
                    total_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, numerator_ptr, denominator_ptr,
                    run * BLOCK_ROWS, slice, rows, width,
                    M, N, NUMERATOR_SHARED, DENOMINATOR_SHARED, CHANNELS, V, BLOCK_ROWS, BLOCK_VECTORS,
                )  # fmt: skip
                out = careful_value(z, a_here, b_here, largest_coefficient(a_here, b_here, M, N), M, N)
                tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_to(sums, terms, chunk: tl.constexpr, COUNT: tl.constexpr, SHARED: tl.constexpr, CHUNKS: tl.constexpr):
    """Return the sums of all chunks plus one chunk's terms. If they are SHARED, all chunks have the same sums."""
    total = ()
    for i in tl.static_range(COUNT if SHARED else CHUNKS * COUNT):
        if SHARED or (i >= chunk * COUNT and i < (chunk + 1) * COUNT):
            total = total + (sums[i] + terms[i % COUNT].to(tl.float64),)
        else:
            total = total + (sums[i],)
    return total


@triton.jit
def _backward_rows(
    grad_total_ptr, grad_out_ptr, total_ptr, mean_ptr, rstd_ptr, grad_ptr, grad_branch_ptr, out_ptr, start, rows,
    weight, bias, a, b, sums_a, sums_b, sums_weight, sums_bias,
    M: tl.constexpr, N: tl.constexpr, NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    GRAD_TOTAL: tl.constexpr, GRAD_BRANCH: tl.constexpr, OUT: tl.constexpr, CHANNELS: tl.constexpr,
    CHUNKS: tl.constexpr, V: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_VECTORS: tl.constexpr,
):  # fmt: skip
    """Compute a run of rows, backward, and return the largest |z| (R, C) and the sums with this run's terms."""
    row = tl.arange(0, BLOCK_ROWS)
    row_mask = row < rows - start
    base = tl.cast(start, tl.int64) * CHANNELS
    mean = tl.load(mean_ptr + start + row, mask=row_mask, other=0.0)[None, :, None]
    rstd = tl.load(rstd_ptr + start + row, mask=row_mask, other=0.0)[None, :, None]
    reach = tl.zeros((BLOCK_ROWS, BLOCK_VECTORS), tl.float32)
    normal, slopes, products = (), (), ()
    for k in tl.static_range(CHUNKS):
        offsets, inside = _tile(k, row_mask, CHANNELS, V, BLOCK_ROWS, BLOCK_VECTORS)
        total = tl.load(total_ptr + base + offsets, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_out_ptr + base + offsets, mask=inside, other=0.0).to(tl.float32)
        n = (total - mean) * rstd
        z = n * weight[k] + bias[k]
        reach = tl.maximum(reach, tl.max(tl.abs(z), axis=0))
        a_here, b_here = _pick(a, k, M, NUMERATOR_SHARED), _pick(b, k, N, DENOMINATOR_SHARED)
        out, dz, terms = plain_gradients(grad, z, a_here, b_here, M, N, False)
        if OUT:
            tl.store(out_ptr + base + offsets, out.to(out_ptr.dtype.element_ty), mask=inside)
        for_a, for_b = _slice(terms, 0, M), _slice(terms, M, N)
        sums_a = _add_to(sums_a, for_a, k, M, NUMERATOR_SHARED, CHUNKS)
        sums_b = _add_to(sums_b, for_b, k, N, DENOMINATOR_SHARED, CHUNKS)
        slope = dz * weight[k]
        normal, slopes, products = normal + (n,), slopes + (slope,), products + (slope * n,)
        more_weight, more_bias = (), ()
        for i in tl.static_range(CHUNKS):
            more_weight = more_weight + ((sums_weight[i] + dz * n) if i == k else sums_weight[i],)
            more_bias = more_bias + ((sums_bias[i] + dz) if i == k else sums_bias[i],)
        sums_weight, sums_bias = more_weight, more_bias
    average, product = _over_row(slopes, CHUNKS, CHANNELS), _over_row(products, CHUNKS, CHANNELS)
    for k in tl.static_range(CHUNKS):
        offsets, inside = _tile(k, row_mask, CHANNELS, V, BLOCK_ROWS, BLOCK_VECTORS)
        grad = rstd * (slopes[k] - average - normal[k] * product)
        if GRAD_TOTAL:
            grad += tl.load(grad_total_ptr + base + offsets, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_ptr + base + offsets, grad.to(grad_ptr.dtype.element_ty), mask=inside)
        if GRAD_BRANCH:
            tl.store(grad_branch_ptr + base + offsets, grad.to(grad_branch_ptr.dtype.element_ty), mask=inside)
    return reach, sums_a, sums_b, sums_weight, sums_bias


@triton.jit(do_not_specialize=["rows", "width"])
def add_norm_backward_kernel(
    grad_total_ptr, grad_out_ptr, total_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, numerator_ptr, denominator_ptr,
    grad_ptr, grad_branch_ptr, out_ptr, partial_ptr, channel_partial_ptr,
    rows, width,
    M: tl.constexpr, N: tl.constexpr, NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    GRAD_TOTAL: tl.constexpr, GRAD_BRANCH: tl.constexpr, OUT: tl.constexpr, CHANNELS: tl.constexpr,
    CHUNKS: tl.constexpr, V: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_VECTORS: tl.constexpr,
    STAGES: tl.constexpr, FOLD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Store the gradient of total, and each program's share of the sums.

    GRAD_TOTAL adds the gradient of total's other uses. GRAD_BRANCH writes the gradient twice, in two dtypes. OUT stores
    the bits of out that the forward kernel stored.

    ``partial`` is float64: (M, sums, programs) for da, then (N, sums, programs) for db without the factor s(b). A
    program has one sum if all channels share the coefficients, else one for every FOLD vectors. ``channel_partial`` is
    float32, (programs, 2, CHANNELS) for weight and bias.
    """
    weight, bias, a, b = _load_parameters(
        weight_ptr, bias_ptr, numerator_ptr, denominator_ptr, width,
        M, N, NUMERATOR_SHARED, DENOMINATOR_SHARED, CHANNELS, CHUNKS, V, BLOCK_VECTORS,
    )  # fmt: skip
    first, step = tl.program_id(0), tl.num_programs(0)
    runs = tl.cdiv(rows, BLOCK_ROWS)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()

    reach = tl.zeros((BLOCK_ROWS, BLOCK_VECTORS), tl.float32)
    zero = tl.zeros((BLOCK_ROWS, BLOCK_VECTORS), tl.float64)
    nothing = tl.zeros((V, BLOCK_ROWS, BLOCK_VECTORS), tl.float32)
    sums_a = (zero,) * (M if NUMERATOR_SHARED else CHUNKS * M)
    sums_b = (zero,) * (N if DENOMINATOR_SHARED else CHUNKS * N)
    sums_weight, sums_bias = (nothing,) * CHUNKS, (nothing,) * CHUNKS
    for run in tl.range(first, runs, step, num_stages=STAGES):
        here, sums_a, sums_b, sums_weight, sums_bias = _backward_rows(
            grad_total_ptr, grad_out_ptr, total_ptr, mean_ptr, rstd_ptr, grad_ptr, grad_branch_ptr, out_ptr,
            run * BLOCK_ROWS, rows, weight, bias, a, b, sums_a, sums_b, sums_weight, sums_bias,
            M, N, NUMERATOR_SHARED, DENOMINATOR_SHARED, GRAD_TOTAL, GRAD_BRANCH, OUT, CHANNELS, CHUNKS, V, BLOCK_ROWS,
            BLOCK_VECTORS,
        )  # fmt: skip
        reach = tl.maximum(reach, here)

    # A large gradient shows in the sums: they overflow, or are no numbers.
    overflow = zero
    for i in tl.static_range(M if NUMERATOR_SHARED else CHUNKS * M):
        overflow += sums_a[i] - sums_a[i]
    for j in tl.static_range(N if DENOMINATOR_SHARED else CHUNKS * N):
        overflow += sums_b[j] - sums_b[j]
    plain = _stays_plain(tl.max(reach), a, b, M, N, NUMERATOR_SHARED, DENOMINATOR_SHARED, CHUNKS)
    plain = plain & (tl.sum(tl.sum(overflow, axis=1), axis=0) == 0)

    channel_partial_ptr += first.to(tl.int64) * 2 * CHANNELS
    partial_b_ptr = partial_ptr + M * (1 if NUMERATOR_SHARED else CHANNELS // V // FOLD) * step
    if plain:
        for k in tl.static_range(CHUNKS):
            if not NUMERATOR_SHARED or k == 0:
                own = _pick(sums_a, k, M, NUMERATOR_SHARED)
                _store_sums(partial_ptr, own, k, M, NUMERATOR_SHARED, CHANNELS // V, BLOCK_VECTORS, FOLD)
            if not DENOMINATOR_SHARED or k == 0:
                own = _pick(sums_b, k, N, DENOMINATOR_SHARED)
                _store_sums(partial_b_ptr, own, k, N, DENOMINATOR_SHARED, CHANNELS // V, BLOCK_VECTORS, FOLD)
            vectors, mask = _vectors(k, CHANNELS, V, BLOCK_VECTORS)
            pointers = channel_partial_ptr + (vectors * V)[None, :] + tl.arange(0, V)[:, None]
            tl.store(pointers, tl.sum(sums_weight[k], axis=1), mask=mask[None, :])
            tl.store(pointers + CHANNELS, tl.sum(sums_bias[k], axis=1), mask=mask[None, :])
    else:
        _backward_carefully(
            grad_total_ptr, grad_out_ptr, total_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, numerator_ptr,
            denominator_ptr, grad_ptr, grad_branch_ptr, out_ptr, partial_ptr, partial_b_ptr, channel_partial_ptr, rows,
            width, M, N, NUMERATOR_SHARED, DENOMINATOR_SHARED, GRAD_TOTAL, GRAD_BRANCH, OUT, CHANNELS, CHUNKS, V,
            BLOCK_ROWS, BLOCK_VECTORS, FOLD,
        )  # fmt: skip


@triton.jit
def _store_sums(
    partial_ptr, sums, chunk: tl.constexpr, COUNT: tl.constexpr, SHARED: tl.constexpr, VECTORS: tl.constexpr,
    BLOCK_VECTORS: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """Fold (R, C) sums of a chunk and store them in (COUNT, sums, programs)."""
    for i in tl.static_range(COUNT):
        pointers, mask = _places(partial_ptr, chunk, i, SHARED, VECTORS, BLOCK_VECTORS, FOLD)
        tl.store(pointers, _fold(sums[i], SHARED, BLOCK_VECTORS, FOLD), mask=mask)


@triton.jit
def _places(
    partial_ptr, chunk, i: tl.constexpr, SHARED: tl.constexpr, VECTORS: tl.constexpr, BLOCK_VECTORS: tl.constexpr,
    FOLD: tl.constexpr,
):  # fmt: skip
    """Return the pointers to this program's sums for a coefficient and a chunk, and the mask of those that exist."""
    folds: tl.constexpr = 1 if SHARED else BLOCK_VECTORS // FOLD
    rows: tl.constexpr = 1 if SHARED else VECTORS // FOLD
    fold = tl.arange(0, folds) + (0 if SHARED else chunk * folds)
    return partial_ptr + (i * rows + fold) * tl.num_programs(0) + tl.program_id(0), fold < rows


@triton.jit
def _fold(sums, SHARED: tl.constexpr, BLOCK_VECTORS: tl.constexpr, FOLD: tl.constexpr):
    length: tl.constexpr = BLOCK_VECTORS if SHARED else FOLD
    return tl.sum(tl.reshape(tl.sum(sums, axis=0), (BLOCK_VECTORS // length, length)), axis=1)


@triton.jit
def _backward_carefully(
    grad_total_ptr, grad_out_ptr, total_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, numerator_ptr, denominator_ptr,
    grad_ptr, grad_branch_ptr, out_ptr, partial_a_ptr, partial_b_ptr, channel_partial_ptr, rows, width,
    M: tl.constexpr, N: tl.constexpr, NUMERATOR_SHARED: tl.constexpr, DENOMINATOR_SHARED: tl.constexpr,
    GRAD_TOTAL: tl.constexpr, GRAD_BRANCH: tl.constexpr, OUT: tl.constexpr, CHANNELS: tl.constexpr,
    CHUNKS: tl.constexpr, V: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_VECTORS: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """Repeat a program's rows on the overflow-safe path, one channel per vector at a time, with sums in memory.

    It computes each row twice. A gradient needs the row's averages of dz, and no memory holds a row's dz in float32.
    """
    first, step = tl.program_id(0), tl.num_programs(0)
    tl.debug_barrier()  # other threads have written results of theirs where this one will
    for run in tl.range(first, tl.cdiv(rows, BLOCK_ROWS), step, num_stages=1):
        slopes = tl.zeros((1, BLOCK_ROWS, BLOCK_VECTORS), tl.float32)
        products = tl.zeros((1, BLOCK_ROWS, BLOCK_VECTORS), tl.float32)
        for turn in tl.range(2, num_stages=1):
            average, product = _over_row((slopes,), 1, CHANNELS), _over_row((products,), 1, CHANNELS)
            for slice in tl.range(CHUNKS * V, num_stages=1):
                offsets, inside = _careful_place(
                    run * BLOCK_ROWS, slice, rows, CHANNELS, V, BLOCK_ROWS, BLOCK_VECTORS
                )  # fmt: skip
                n, z, weight, rstd, a, b = _careful_tile(
                    total_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, numerator_ptr, denominator_ptr,
                    run * BLOCK_ROWS, slice, rows, width,
                    M, N, NUMERATOR_SHARED, DENOMINATOR_SHARED, CHANNELS, V, BLOCK_ROWS, BLOCK_VECTORS,
                )  # fmt: skip
                grad = tl.load(grad_out_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
                dz, terms = scaled_gradients(grad, z, a, b, M, N)
                slope = dz * weight
                if turn == 0:
                    if OUT:
                        out = careful_value(z, a, b, largest_coefficient(a, b, M, N), M, N)
                        tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=inside)
                    slopes += slope
                    products += slope * n
                    _add_sums_in_memory(
                        partial_a_ptr, _slice(terms, 0, M), slice, run - first,
                        M, NUMERATOR_SHARED, CHANNELS, V, BLOCK_VECTORS, FOLD,
                    )  # fmt: skip
                    _add_sums_in_memory(
                        partial_b_ptr, _slice(terms, M, N), slice, run - first,
                        N, DENOMINATOR_SHARED, CHANNELS, V, BLOCK_VECTORS, FOLD,
                    )  # fmt: skip
                    vectors, mask = _vectors(slice // V, CHANNELS, V, BLOCK_VECTORS)
                    pointers = channel_partial_ptr + vectors * V + slice % V
                    add_in_memory(pointers, tl.sum(tl.sum(dz * n, axis=0), axis=0), mask, run - first)
                    add_in_memory(pointers + CHANNELS, tl.sum(tl.sum(dz, axis=0), axis=0), mask, run - first)
                else:
                    result = rstd * (slope - average - n * product)
                    if GRAD_TOTAL:
                        result += tl.load(grad_total_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
                    tl.store(grad_ptr + offsets, result.to(grad_ptr.dtype.element_ty), mask=inside)
                    if GRAD_BRANCH:
                        tl.store(grad_branch_ptr + offsets, result.to(grad_branch_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_sums_in_memory(
    partial_ptr, sums, slice, before, COUNT: tl.constexpr, SHARED: tl.constexpr, CHANNELS: tl.constexpr,
    V: tl.constexpr, BLOCK_VECTORS: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """Add the sums of a slice of channels to those in memory, placed as by ``_store_sums``."""
    for i in tl.static_range(COUNT):
        pointers, mask = _places(partial_ptr, slice // V, i, SHARED, CHANNELS // V, BLOCK_VECTORS, FOLD)
        values = _fold(sums[i], SHARED, BLOCK_VECTORS, FOLD)
        add_in_memory(pointers, values, mask, before + (slice if SHARED else slice % V))


_COUNTS = ["numerator_sums", "denominator_sums", "numerator_rows", "denominator_rows", "programs"]


@triton.jit(do_not_specialize=_COUNTS)
def sum_norm_partials_kernel(
    partial_ptr, channel_partial_ptr, denominator_ptr, grad_numerator_ptr, grad_denominator_ptr, grad_weight_ptr,
    grad_bias_ptr,
    numerator_sums, denominator_sums, numerator_rows, denominator_rows, programs,
    M: tl.constexpr, N: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_PROGRAMS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Store da and db, a program for each number, then dweight and dbias, a program for BLOCK_COLUMNS numbers."""
    index = tl.program_id(0)
    coefficients = numerator_rows * M + denominator_rows * N
    if EARLY:
        tl.extra.cuda.gdc_wait()
    if index < coefficients:
        add_up_coefficients(
            index, partial_ptr, denominator_ptr, grad_numerator_ptr, grad_denominator_ptr,
            numerator_sums, denominator_sums, numerator_rows, denominator_rows, M, N, BLOCK,
        )  # fmt: skip
    else:
        column = (index - coefficients) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        total = add_up_columns(channel_partial_ptr, column, programs, 2 * CHANNELS, BLOCK_PROGRAMS, BLOCK_COLUMNS)
        is_weight = column < CHANNELS
        tl.store(grad_weight_ptr + column, total.to(grad_weight_ptr.dtype.element_ty), mask=is_weight)
        is_bias = (column >= CHANNELS) & (column < 2 * CHANNELS)
        tl.store(grad_bias_ptr + column - CHANNELS, total.to(grad_bias_ptr.dtype.element_ty), mask=is_bias)
