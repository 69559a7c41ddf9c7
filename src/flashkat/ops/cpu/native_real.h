/* The arithmetic of native.c, for one REAL. The formulas are those of arithmetic.py, with h = g / Q and y = P / Q:

     dx = g (P' - s(x) T y) / Q,   da_i = sum h x^i,   db_j = -sum h y |x|^j   (without s(b_j), which is for later) */

enum { NAME(WIDTH) = VECTOR_BYTES / sizeof(REAL) };
typedef REAL NAME(vector) __attribute__((vector_size(VECTOR_BYTES)));
typedef INTEGER NAME(integers) __attribute__((vector_size(VECTOR_BYTES)));

#define WIDTH NAME(WIDTH)
#define VECTOR NAME(vector)
#define INTEGERS NAME(integers)
#define SIGN ((INTEGERS)(-(VECTOR){0}))

INLINE VECTOR NAME(load)(const REAL *from) {
    VECTOR value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void NAME(store)(REAL *to, VECTOR value) { memcpy(to, &value, sizeof value); }

/* The larger of each pair. The bits of sizes order as they do, with NaN above infinity. */
INLINE INTEGERS NAME(larger)(INTEGERS a, INTEGERS b) {
    INTEGERS first = a > b;
    return (a & first) | (b & ~first);
}

/* Rows that are worked on together, each where it lies in memory or, where it needs converting, in ``room``. */
struct NAME(rows) {
    REAL *row[ROWS];
    _Alignas(VECTOR_BYTES) REAL room[ROWS * LANES];
};

struct NAME(work) {
    struct NAME(rows) x, grad, out;
    const char *x_ahead[ROWS], *grad_ahead[ROWS], *out_ahead[ROWS]; /* the rows after these, to be in cache by then */
    int64_t x_bytes, grad_bytes, out_bytes;                         /* of an element */
    INTEGERS reach, size; /* largest |x| and |g| so far, as bits */
};

/* A loop of its own for neighbours, which the compiler makes vectors of. */
#define EACH(statement)                                                        \
    if (stride == 1)                                                           \
        for (int64_t k = 0, i = 0; k < count; k++, i = k) statement;           \
    else                                                                       \
        for (int64_t k = 0, i = 0; k < count; k++, i += stride) statement;     \
    break

static void NAME(read)(REAL *restrict to, const void *from, int64_t dtype, int64_t stride, int64_t count) {
    switch (dtype) {
    case FLOAT64: EACH(to[k] = (REAL)((const double *)from)[i]);
    case FLOAT32: EACH(to[k] = (REAL)((const float *)from)[i]);
    case BFLOAT16: EACH(to[k] = from_bfloat16(((const uint16_t *)from)[i]));
    case FLOAT16: EACH(to[k] = from_float16(((const uint16_t *)from)[i]));
    }
}

static void NAME(write)(void *to, const REAL *restrict from, int64_t dtype, int64_t stride, int64_t count) {
    switch (dtype) {
    case FLOAT64: EACH(((double *)to)[i] = from[k]);
    case FLOAT32: EACH(((float *)to)[i] = (float)from[k]);
    case BFLOAT16: EACH(((uint16_t *)to)[i] = to_bfloat16((float)from[k]));
    case FLOAT16: EACH(((uint16_t *)to)[i] = to_float16((float)from[k]));
    }
}
#undef EACH

/* Where a row can be worked on as it lies in memory, else NULL. Rows are often a multiple of 4096 bytes apart, so the
   first cache can not keep lines of all of them until a second vector needs the other part. */
static REAL *NAME(in_place)(const struct array *array, int64_t stride, const struct place *place, int64_t lanes) {
    void *start = address(array, place);
    int fits = array->dtype == (sizeof(REAL) == 8 ? FLOAT64 : FLOAT32) && stride == 1 && place->count == lanes;
    return fits && (uintptr_t)start % VECTOR_BYTES == 0 ? start : NULL;
}

/* Rows of an array, with zeros up to the last lane: they add nothing to a sum. */
static void NAME(fetch)(struct NAME(rows) *rows, const struct array *array, int64_t stride, const struct place *place,
                        int count, int64_t lanes) {
    for (int r = 0; r < count; r++) {
        rows->row[r] = NAME(in_place)(array, stride, &place[r], lanes);
        if (rows->row[r]) continue;
        rows->row[r] = rows->room + r * LANES;
        NAME(read)(rows->row[r], address(array, &place[r]), array->dtype, stride, place[r].count);
        for (int64_t k = place[r].count; k < lanes; k++) rows->row[r][k] = 0;
    }
}

/* Rows to write to, and, once they are written, their way into the array. */
static void NAME(reserve)(struct NAME(rows) *rows, const struct array *array, int64_t stride,
                          const struct place *place, int count, int64_t lanes) {
    for (int r = 0; r < count; r++) {
        rows->row[r] = NAME(in_place)(array, stride, &place[r], lanes);
        if (!rows->row[r]) rows->row[r] = rows->room + r * LANES;
    }
}

static void NAME(deliver)(const struct NAME(rows) *rows, const struct array *array, int64_t stride,
                          const struct place *place, int count) {
    for (int r = 0; r < count; r++)
        if (rows->row[r] == rows->room + r * LANES)
            NAME(write)(address(array, &place[r]), rows->row[r], array->dtype, stride, place[r].count);
}

/* F of vector ``v`` of each row. */
INLINE void NAME(values)(struct NAME(work) *w, int rows, int64_t v, const REAL *table, int64_t stride, int m, int n) {
    INTEGERS reach = w->reach;
    for (int r = 0; r < rows; r++) {
        VECTOR x = NAME(load)(w->x.row[r] + v), u = (VECTOR)((INTEGERS)x & ~SIGN);
        reach = NAME(larger)(reach, (INTEGERS)u);
        __builtin_prefetch(w->x_ahead[r] + v * w->x_bytes, 0);
        __builtin_prefetch(w->out_ahead[r] + v * w->out_bytes, 1);
        VECTOR p = NAME(load)(table + (m - 1) * stride);
        for (int i = m - 2; i >= 0; i--) p = p * x + NAME(load)(table + i * stride);
        VECTOR q = (VECTOR){0} + 1;
        if (n) {
            q = NAME(load)(table + (m + n - 1) * stride);
            for (int j = n - 2; j >= 0; j--) q = q * u + NAME(load)(table + (m + j) * stride);
            q = q * u + 1;
        }
        NAME(store)(w->out.row[r] + v, p / q);
    }
    w->reach = reach;
}

/* The gradient of x for vector ``v`` of each row, and the sums of its terms, LANES for each coefficient. */
INLINE void NAME(gradients)(struct NAME(work) *w, int rows, int64_t v, const REAL *table, int64_t stride, int m, int n,
                            REAL *sums) {
    INTEGERS reach = w->reach, size = w->size;
    VECTOR s[2 * MOST];
    for (int k = 0; k < m + n; k++) s[k] = (VECTOR){0};
    for (int r = 0; r < rows; r++) {
        VECTOR x = NAME(load)(w->x.row[r] + v), u = (VECTOR)((INTEGERS)x & ~SIGN);
        VECTOR g = NAME(load)(w->grad.row[r] + v);
        reach = NAME(larger)(reach, (INTEGERS)u);
        size = NAME(larger)(size, (INTEGERS)g & ~SIGN);
        __builtin_prefetch(w->x_ahead[r] + v * w->x_bytes, 0);
        __builtin_prefetch(w->grad_ahead[r] + v * w->grad_bytes, 0);
        __builtin_prefetch(w->out_ahead[r] + v * w->out_bytes, 1);

        VECTOR p = NAME(load)(table + (m - 1) * stride), dp = {0};
        for (int i = m - 2; i >= 0; i--) {
            dp = i == m - 2 ? p : dp * x + p;
            p = p * x + NAME(load)(table + i * stride);
        }
        VECTOR q = (VECTOR){0} + 1, t = {0};
        if (n) {
            q = t = NAME(load)(table + (m + n - 1) * stride);
            for (int j = n - 2; j >= 0; j--) {
                q = q * u + NAME(load)(table + (m + j) * stride);
                t = t * u + q;
            }
            q = q * u + 1;
        }
        VECTOR reciprocal = 1 / q, y = p * reciprocal, h = g * reciprocal;
        /* What the rounding of the reciprocal took from both; else they would err alike, and their product twice. */
        y += (p - y * q) * reciprocal;
        h += (g - h * q) * reciprocal;
        VECTOR st = (VECTOR)((INTEGERS)t ^ ((x < 0) & SIGN));
        /* Not h times the slope: h may underflow where the product does not. */
        NAME(store)(w->out.row[r] + v, g * (reciprocal * (dp - st * y)));

        VECTOR z = h * y;
        for (int i = 0; i < m; i++) {
            s[i] += h;
            h *= x;
        }
        for (int j = 0; j < n; j++) {
            z *= u;
            s[m + j] -= z;
        }
    }
    w->reach = reach, w->size = size;
    for (int k = 0; k < m + n; k++) NAME(store)(sums + k * LANES + v, s[k]);
}

static void NAME(compute)(const struct call *call, struct NAME(work) *w, const struct place *place, int rows,
                          const struct place *next, int64_t lanes, const REAL *table, int64_t stride, double *sums) {
    int64_t step = call->lanes_are_channels ? call->x.channel : call->x.inner;
    int64_t grad_step = call->lanes_are_channels ? call->grad.channel : call->grad.inner;
    int64_t out_step = call->lanes_are_channels ? call->out.channel : call->out.inner;
    int m = (int)call->numerator.count, n = (int)call->denominator.count;
    _Alignas(VECTOR_BYTES) REAL share[2 * MOST * LANES];
    NAME(fetch)(&w->x, &call->x, step, place, rows, lanes);
    NAME(reserve)(&w->out, &call->out, out_step, place, rows, lanes);
    for (int r = 0; r < rows; r++) {
        w->x_ahead[r] = address(&call->x, &next[r]);
        w->out_ahead[r] = address(&call->out, &next[r]);
        if (call->grad.data) w->grad_ahead[r] = address(&call->grad, &next[r]);
    }
    if (call->grad.data) NAME(fetch)(&w->grad, &call->grad, grad_step, place, rows, lanes);
    for (int64_t v = 0; v < lanes; v += WIDTH) {
        /* The degrees of the published models as numbers that the compiler knows: all stays in registers. */
        if (!call->grad.data && m == 6 && n == 4)
            NAME(values)(w, rows, v, table + v, stride, 6, 4);
        else if (!call->grad.data)
            NAME(values)(w, rows, v, table + v, stride, m, n);
        else if (m == 6 && n == 4)
            NAME(gradients)(w, rows, v, table + v, stride, 6, 4, share);
        else
            NAME(gradients)(w, rows, v, table + v, stride, m, n, share);
    }
    NAME(deliver)(&w->out, &call->out, out_step, place, rows);
    if (call->grad.data)
        for (int k = 0; k < m + n; k++)
            for (int64_t lane = 0; lane < lanes; lane++) sums[k * LANES + lane] += share[k * LANES + lane];
}

/* Coefficient ``k`` of both kinds together; of the denominator's, the size. */
static REAL NAME(coefficient)(const struct call *call, int64_t k, int64_t group) {
    int64_t m = call->numerator.count;
    REAL b = (REAL)(k < m ? coefficient(&call->numerator, group, k) : coefficient(&call->denominator, group, k - m));
    return k >= m && b < 0 ? -b : b;
}

static void NAME(prepare)(struct call *call) {
    int64_t count = call->numerator.count + call->denominator.count, width = call->channels / call->groups;
    REAL *to = call->table, largest = 1;
    for (int64_t k = 0; k < count; k++) {
        for (int64_t group = 0; group < call->groups; group++) {
            REAL value = NAME(coefficient)(call, k, group), size = value < 0 ? -value : value;
            largest = size > largest ? size : largest;
            if (call->lanes_are_channels)
                for (int64_t c = 0; c < width; c++) *to++ = value;
        }
        if (call->lanes_are_channels)
            for (int c = 0; c < LANES; c++) *to++ = 0;
    }
    call->largest = largest * (double)(count + 1);
}

/* Whether plain arithmetic is right for all that was seen; a gradient that is too small next to 1 is not. */
static int NAME(stays_plain)(const struct call *call, const struct NAME(work) *w) {
    double reach = 1, size = 0, bound = call->largest;
    for (int lane = 0; lane < WIDTH; lane++) {
        double x = ((VECTOR)w->reach)[lane], g = ((VECTOR)w->size)[lane];
        if (!(x <= reach)) reach = x;
        if (!(g <= size)) size = g;
    }
    int64_t degree = call->numerator.count - 1;
    if (call->denominator.count > degree) degree = call->denominator.count;
    for (int64_t k = 0; k < degree; k++) bound *= reach;
    return bound <= MOST_POWERS && (size == 0 || size >= LEAST_GRADIENT);
}

/* The sums of some lanes, added to those of their group. */
static void NAME(add_lanes)(const struct call *call, const double *sums, int64_t from, int64_t to, double *total) {
    for (int64_t k = 0; k < call->numerator.count + call->denominator.count; k++, sums += LANES) {
        double share[8] = {0};
        int64_t lane = from;
        for (; lane + 8 <= to; lane += 8)
            for (int j = 0; j < 8; j++) share[j] += sums[lane + j];
        for (; lane < to; lane++) share[0] += sums[lane];
        for (int j = 0; j < 8; j++) total[k * call->groups] += share[j];
    }
}

static int64_t NAME(padded)(int64_t count) { return (count + WIDTH - 1) / WIDTH * WIDTH; }

static void NAME(work)(struct call *call, int64_t index) {
    const struct block *b = &call->block[index];
    int64_t count = call->numerator.count + call->denominator.count, width = call->channels / call->groups;
    double *total = call->sums + index * count * call->groups;
    struct NAME(work) w;
    struct place places[2][ROWS] = {{{0}}}, *place = places[0], *next = places[1];
    _Alignas(VECTOR_BYTES) double sums[2 * MOST * LANES];
    _Alignas(VECTOR_BYTES) REAL same[2 * MOST * LANES];
    w.reach = w.size = (INTEGERS){0};
    w.x_bytes = bytes[call->x.dtype], w.out_bytes = bytes[call->out.dtype], w.grad_bytes = bytes[call->grad.dtype];
    if (call->grad.data) memset(total, 0, sizeof(double) * count * call->groups);

    /* Neighbours in equal parts of at most LANES. */
    int64_t first = call->lanes_are_channels ? b->channel[0] : b->inner[0];
    int64_t span = (call->lanes_are_channels ? b->channel[1] : b->inner[1]) - first;
    int64_t parts = (span + LANES - 1) / LANES, part = NAME(padded)((span + parts - 1) / parts);
    int64_t channel_step = call->lanes_are_channels ? part : 1, inner_step = call->lanes_are_channels ? 1 : part;

    for (int64_t c = b->channel[0]; c < b->channel[1]; c += channel_step) {
        int64_t channels = b->channel[1] - c < channel_step ? b->channel[1] - c : channel_step;
        int64_t lanes = call->lanes_are_channels ? NAME(padded)(channels) : part;
        const REAL *table = (const REAL *)call->table + c;
        int64_t stride = call->channels + LANES;
        if (!call->lanes_are_channels) {
            for (int64_t k = 0; k < count; k++) {
                REAL value = NAME(coefficient)(call, k, c / width);
                for (int64_t lane = 0; lane < lanes; lane++) same[k * LANES + lane] = value;
            }
            table = same, stride = LANES;
        }
        if (call->grad.data)
            for (int64_t k = 0; k < count; k++) memset(sums + k * LANES, 0, sizeof(double) * lanes);

        int rows = 0, ready = 0;
        for (int64_t o = b->outer[0]; o < b->outer[1]; o++)
            for (int64_t i = b->inner[0]; i < b->inner[1]; i += inner_step) {
                int64_t left = b->inner[1] - i < inner_step ? b->inner[1] - i : inner_step;
                next[rows++] = (struct place){o, c, i, call->lanes_are_channels ? channels : left};
                if (rows < ROWS) continue;
                if (ready) NAME(compute)(call, &w, place, ROWS, next, lanes, table, stride, sums);
                struct place *swap = place;
                place = next, next = swap, ready = 1, rows = 0;
            }
        if (ready) NAME(compute)(call, &w, place, ROWS, rows ? next : place, lanes, table, stride, sums);
        if (rows) NAME(compute)(call, &w, next, rows, next, lanes, table, stride, sums);

        if (call->grad.data)
            for (int64_t lane = 0; lane < lanes;) {
                /* The lanes of a group; those after the last channel, whose sums are zero, go with the last. */
                int64_t group = (c + (lane < channels ? lane : channels - 1)) / width;
                int64_t end = (group + 1) * width - c < channels ? (group + 1) * width - c : lanes;
                NAME(add_lanes)(call, sums, lane, end, total + group);
                lane = end;
            }
    }
    int plain = NAME(stays_plain)(call, &w);
    if (call->grad.data)
        for (int64_t k = 0; k < count * call->groups; k++) plain &= total[k] - total[k] == 0;
    call->outside[index] = !plain;
}

#undef WIDTH
#undef VECTOR
#undef INTEGERS
#undef SIGN
