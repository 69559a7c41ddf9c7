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
    REAL room[ROWS * LANES];
};

struct NAME(work) {
    struct NAME(rows) x, grad, out;
    INTEGERS reach, size; /* largest |x| and |g| so far, as bits */
};

static int NAME(in_place)(const struct array *array, int64_t stride, int64_t count) {
    return array->dtype == (sizeof(REAL) == 8 ? FLOAT64 : FLOAT32) && stride == 1 && count % WIDTH == 0;
}

static void *NAME(address)(const struct array *array, const struct place *place) {
    static const int bytes[] = {[FLOAT64] = 8, [FLOAT32] = 4, [BFLOAT16] = 2, [FLOAT16] = 2};
    int64_t offset = place->outer * array->outer + place->channel * array->channel + place->inner * array->inner;
    return array->data + offset * bytes[array->dtype];
}

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

/* Rows of an array, with zeros up to the next vector: they add nothing to a sum. */
static void NAME(fetch)(struct NAME(rows) *rows, const struct array *array, int64_t stride, const struct place *place,
                        int count) {
    for (int r = 0; r < count; r++) {
        void *from = NAME(address)(array, &place[r]);
        if (NAME(in_place)(array, stride, place[r].count)) {
            rows->row[r] = from;
            continue;
        }
        rows->row[r] = rows->room + r * LANES;
        NAME(read)(rows->row[r], from, array->dtype, stride, place[r].count);
        for (int64_t k = place[r].count; k % WIDTH; k++) rows->row[r][k] = 0;
    }
}

/* Rows to write to, and, once they are written, their way into the array. */
static void NAME(reserve)(struct NAME(rows) *rows, const struct array *array, int64_t stride,
                          const struct place *place, int count) {
    for (int r = 0; r < count; r++)
        rows->row[r] = NAME(in_place)(array, stride, place[r].count) ? NAME(address)(array, &place[r])
                                                                     : rows->room + r * LANES;
}

static void NAME(deliver)(const struct NAME(rows) *rows, const struct array *array, int64_t stride,
                          const struct place *place, int count) {
    for (int r = 0; r < count; r++)
        if (!NAME(in_place)(array, stride, place[r].count))
            NAME(write)(NAME(address)(array, &place[r]), rows->row[r], array->dtype, stride, place[r].count);
}

/* F of vector ``v`` of each row. */
INLINE void NAME(values)(struct NAME(work) *w, int rows, int64_t v, const REAL *table, int64_t stride, int m, int n) {
    INTEGERS reach = w->reach;
    for (int r = 0; r < rows; r++) {
        VECTOR x = NAME(load)(w->x.row[r] + v), u = (VECTOR)((INTEGERS)x & ~SIGN);
        reach = NAME(larger)(reach, (INTEGERS)u);
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

/* The gradient of x for vector ``v`` of each row, and its terms added to ``sums``, LANES for each coefficient. */
INLINE void NAME(gradients)(struct NAME(work) *w, int rows, int64_t v, const REAL *table, int64_t stride, int m, int n,
                            double *sums) {
    INTEGERS reach = w->reach, size = w->size;
    VECTOR s[2 * MOST];
    for (int k = 0; k < m + n; k++) s[k] = (VECTOR){0};
    for (int r = 0; r < rows; r++) {
        VECTOR x = NAME(load)(w->x.row[r] + v), u = (VECTOR)((INTEGERS)x & ~SIGN);
        VECTOR g = NAME(load)(w->grad.row[r] + v);
        reach = NAME(larger)(reach, (INTEGERS)u);
        size = NAME(larger)(size, (INTEGERS)g & ~SIGN);

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
    for (int k = 0; k < m + n; k++)
        for (int lane = 0; lane < WIDTH; lane++) sums[k * LANES + v + lane] += s[k][lane];
}

static void NAME(compute)(const struct call *call, struct NAME(work) *w, const struct place *place, int rows,
                          const REAL *table, int64_t stride, double *sums) {
    int64_t step = call->lanes_are_channels ? call->x.channel : call->x.inner;
    int64_t grad_step = call->lanes_are_channels ? call->grad.channel : call->grad.inner;
    int64_t out_step = call->lanes_are_channels ? call->out.channel : call->out.inner;
    int m = (int)call->m, n = (int)call->n;
    NAME(fetch)(&w->x, &call->x, step, place, rows);
    NAME(reserve)(&w->out, &call->out, out_step, place, rows);
    if (call->grad.data) NAME(fetch)(&w->grad, &call->grad, grad_step, place, rows);
    for (int64_t v = 0; v < place->count; v += WIDTH) {
        /* The degrees of the published models as numbers that the compiler knows: all stays in registers. */
        if (!call->grad.data && m == 6 && n == 4)
            NAME(values)(w, rows, v, table + v, stride, 6, 4);
        else if (!call->grad.data)
            NAME(values)(w, rows, v, table + v, stride, m, n);
        else if (m == 6 && n == 4)
            NAME(gradients)(w, rows, v, table + v, stride, 6, 4, sums);
        else
            NAME(gradients)(w, rows, v, table + v, stride, m, n, sums);
    }
    NAME(deliver)(&w->out, &call->out, out_step, place, rows);
}

static REAL NAME(coefficient)(const struct call *call, int64_t k, int64_t group) {
    if (k < call->m) return ((const REAL *)call->numerator)[(call->numerator_rows > 1 ? group : 0) * call->m + k];
    REAL b = ((const REAL *)call->denominator)[(call->denominator_rows > 1 ? group : 0) * call->n + k - call->m];
    return b < 0 ? -b : b;
}

static void NAME(prepare)(struct call *call) {
    int64_t count = call->m + call->n, width = call->channels / call->groups;
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
    for (int64_t k = 0; k < (call->m - 1 > call->n ? call->m - 1 : call->n); k++) bound *= reach;
    return bound <= MOST_POWERS && (size == 0 || size >= LEAST_GRADIENT);
}

/* The sums of some lanes, added to those of their group. */
static void NAME(add_lanes)(const struct call *call, const double *sums, int64_t from, int64_t to, double *total) {
    double share[2 * MOST] = {0};
    for (int64_t lane = from; lane < to; lane++)
        for (int64_t k = 0; k < call->m + call->n; k++) share[k] += sums[k * LANES + lane];
    for (int64_t k = 0; k < call->m + call->n; k++) total[k * call->groups] += share[k];
}

static void NAME(work)(struct call *call, int64_t index) {
    const struct block *b = &call->block[index];
    int64_t count = call->m + call->n, width = call->channels / call->groups;
    double *total = call->sums + index * count * call->groups;
    struct NAME(work) w;
    struct place place[ROWS];
    double sums[2 * MOST * LANES];
    REAL same[2 * MOST * WIDTH];
    w.reach = w.size = (INTEGERS){0};
    if (call->grad.data) memset(total, 0, sizeof(double) * count * call->groups);

    int64_t step = call->lanes_are_channels ? LANES : 1;
    for (int64_t c = b->channel[0]; c < b->channel[1]; c += step) {
        int64_t lanes = call->lanes_are_channels ? (b->channel[1] - c < LANES ? b->channel[1] - c : LANES) : WIDTH;
        const REAL *table = (const REAL *)call->table + c;
        int64_t stride = call->channels + LANES;
        if (!call->lanes_are_channels) {
            for (int64_t k = 0; k < count; k++)
                for (int lane = 0; lane < WIDTH; lane++) same[k * WIDTH + lane] = NAME(coefficient)(call, k, c / width);
            table = same, stride = WIDTH;
        }
        int64_t padded = (lanes + WIDTH - 1) / WIDTH * WIDTH;
        if (call->grad.data)
            for (int64_t k = 0; k < count; k++) memset(sums + k * LANES, 0, sizeof(double) * padded);

        int rows = 0;
        for (int64_t o = b->outer[0]; o < b->outer[1]; o++)
            for (int64_t i = b->inner[0]; i < b->inner[1]; i += call->lanes_are_channels ? 1 : WIDTH) {
                int64_t left = call->lanes_are_channels || b->inner[1] - i > lanes ? lanes : b->inner[1] - i;
                place[rows++] = (struct place){o, c, i, left};
                if (rows == ROWS) {
                    NAME(compute)(call, &w, place, rows, table, stride, sums);
                    rows = 0;
                }
            }
        if (rows) NAME(compute)(call, &w, place, rows, table, stride, sums);

        if (call->grad.data)
            for (int64_t lane = 0; lane < lanes;) {
                int64_t group = (c + (call->lanes_are_channels ? lane : 0)) / width;
                int64_t end = call->lanes_are_channels ? (group + 1) * width - c : lanes;
                NAME(add_lanes)(call, sums, lane, end < lanes ? end : lanes, total + group);
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
