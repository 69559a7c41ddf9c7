/* The operator on a CPU, in one pass over memory: native.py loads this, native_real.h has the arithmetic.

   A tensor is seen as (outer, channels, inner) with any strides. It is cut into blocks, always the same for the same
   shape, which any number of threads take from a counter. Each block has sums of its own, so the result does not
   depend on who took it. */

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

enum { FLOAT64, FLOAT32, BFLOAT16, FLOAT16 };

struct array {
    char *data;
    int64_t outer, channel, inner; /* strides, in elements */
    int64_t dtype;
};

struct block {
    int64_t outer[2], channel[2], inner[2]; /* first, and one after the last */
};

struct coefficients {
    const char *data;
    char *gradient; /* (rows, count), contiguous */
    int64_t rows, count, row, column, dtype; /* row and column: strides, in elements */
};

/* All that depends on no number; run() adds the addresses to a copy. */
struct call {
    struct array x, grad, out; /* out takes F(x), or the gradient of x where there is a grad */
    struct coefficients numerator, denominator;
    int64_t channels, groups;
    int64_t lanes_are_channels; /* whether neighbours in memory are channels of a position, or positions of a channel */
    int64_t blocks;
    const struct block *block;
    int64_t table_start, outside_start; /* in the scratch, in bytes */

    double *sums;     /* (blocks, m + n, groups), for a grad: the first part of the scratch */
    void *table;      /* (m + n, channels + LANES) numbers of the arithmetic, where lanes are channels */
    uint8_t *outside; /* (blocks,): set where plain arithmetic will not do */
    double largest;   /* bounds the polynomials where |x| <= 1 */
    atomic_llong next;
};

/* A piece of a block, which the first cache holds: ROWS rows of at most LANES neighbours in memory. The sums of ROWS
   terms are taken in the dtype of the arithmetic and go on in double. No more than MOST coefficients of a kind. */
enum { ROWS = 8, LANES = 128, MOST = 16 };

struct place {
    int64_t outer, channel, inner; /* of a row's first element */
    int64_t count;                 /* of its elements */
};

static const int64_t bytes[] = {[FLOAT64] = 8, [FLOAT32] = 4, [BFLOAT16] = 2, [FLOAT16] = 2};

static inline void *address(const struct array *array, const struct place *place) {
    int64_t offset = place->outer * array->outer + place->channel * array->channel + place->inner * array->inner;
    return array->data + offset * bytes[array->dtype];
}

#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64 };
#elif defined(__AVX2__)
enum { VECTOR_BYTES = 32 };
#else
enum { VECTOR_BYTES = 16 };
#endif

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float from_bfloat16(uint16_t bits) { return float_of((uint32_t)bits << 16); }

/* To nearest, ties to even: the carry of half a step, less one where the last bit that stays is even. */
static inline uint16_t to_bfloat16(float value) {
    uint32_t bits = bits_of(value), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (uint16_t)rounded;
}

/* A float16's exponent and fraction, in place in a float, are its value times 2^-112, its subnormals included. */
static inline float from_float16(uint16_t bits) {
    float size = float_of((uint32_t)(bits & 0x7fff) << 13) * 0x1p112f;
    uint32_t special = size >= 65536.0f ? 0x7f800000 : 0;
    return float_of(bits_of(size) | special | (uint32_t)(bits & 0x8000) << 16);
}

static inline uint16_t to_float16(float value) {
    uint32_t bits = bits_of(value), size = bits & 0x7fffffff;
    uint32_t normal = (size + 0xfff + ((size >> 13) & 1) - (112u << 23)) >> 13;
    /* A step of the floats from 1/2 is one of the subnormal float16s. */
    uint32_t subnormal = bits_of(float_of(size) + 0.5f) - 0x3f000000;
    uint32_t finite = size < 0x38800000 ? subnormal : normal < 0x7c00 ? normal : 0x7c00;
    return (uint16_t)((bits >> 16 & 0x8000) | (size > 0x7f800000 ? 0x7e00 : finite));
}

static double coefficient(const struct coefficients *of, int64_t group, int64_t k) {
    const char *at = of->data + ((of->rows > 1 ? group : 0) * of->row + k * of->column) * bytes[of->dtype];
    switch (of->dtype) {
    case FLOAT64: return *(const double *)at;
    case FLOAT32: return *(const float *)at;
    case BFLOAT16: return from_bfloat16(*(const uint16_t *)at);
    default: return from_float16(*(const uint16_t *)at);
    }
}

static void set_gradient(const struct coefficients *of, int64_t row, int64_t k, double value) {
    char *at = of->gradient + (row * of->count + k) * bytes[of->dtype];
    switch (of->dtype) {
    case FLOAT64: *(double *)at = value; break;
    case FLOAT32: *(float *)at = (float)value; break;
    case BFLOAT16: *(uint16_t *)at = to_bfloat16((float)value); break;
    default: *(uint16_t *)at = to_float16((float)value);
    }
}

#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(name) JOIN(name, REAL)

#define REAL float
#define INTEGER int32_t
#define MOST_POWERS 0x1p60
#define LEAST_GRADIENT 0x1p-60
#include "native_real.h"
#undef REAL
#undef INTEGER
#undef MOST_POWERS
#undef LEAST_GRADIENT

#define REAL double
#define INTEGER int64_t
#define MOST_POWERS 0x1p480
#define LEAST_GRADIENT 0x1p-600
#include "native_real.h"

#define EXPORT __attribute__((visibility("default")))

/* Take blocks until there are none. */
static void work(void *argument) {
    struct call *call = argument;
    for (;;) {
        long long index = atomic_fetch_add(&call->next, 1);
        if (index >= call->blocks) return;
        if (call->x.dtype == FLOAT64)
            work_double(call, index);
        else
            work_float(call, index);
    }
}

/* Sums this large may have lost terms that were cut to 2^960, so they count as infinite. */
#define SATURATED 0x1p959

/* The gradients of one kind of coefficients, from sums (count, groups). */
static void finish(const struct coefficients *of, const double *sums, int64_t groups, int has_sizes) {
    int64_t width = groups / of->rows;
    for (int64_t row = 0; row < of->rows; row++)
        for (int64_t k = 0; k < of->count; k++) {
            double total = 0;
            for (int64_t group = row * width; group < (row + 1) * width; group++) {
                double sum = sums[k * groups + group];
                total += fabs(sum) >= SATURATED ? sum * INFINITY : sum;
            }
            set_gradient(of, row, k, has_sizes && coefficient(of, row, k) < 0 ? -total : total);
        }
}

/* The gradients of the coefficients, from the sums of all blocks in their order. */
EXPORT void flashkat_finish(const struct call *plan, const char *numerator, const char *denominator,
                            char *numerator_gradient, char *denominator_gradient, double *sums) {
    struct coefficients a = plan->numerator, b = plan->denominator;
    int64_t count = (a.count + b.count) * plan->groups;
    a.data = numerator, a.gradient = numerator_gradient;
    b.data = denominator, b.gradient = denominator_gradient;
    for (int64_t block = 1; block < plan->blocks; block++)
        for (int64_t k = 0; k < count; k++) sums[k] += sums[block * count + k];
    finish(&a, sums, plan->groups, 0);
    finish(&b, sums + a.count * plan->groups, plan->groups, 1);
}

/* All that OpenMP has to offer: call a function on some threads, and wait until all have returned. */
typedef void parallel(void (*function)(void *), void *argument, unsigned threads, unsigned flags);

/* Returns how many blocks are outside. The gradients of the coefficients are there only if none is. */
EXPORT int64_t flashkat_run(const struct call *plan, char *x, char *grad, char *out, const char *numerator,
                            const char *denominator, char *numerator_gradient, char *denominator_gradient,
                            char *scratch, parallel *on_threads, unsigned threads) {
    struct call call = *plan;
    int64_t outside = 0;
    call.x.data = x, call.grad.data = grad, call.out.data = out;
    call.numerator.data = numerator, call.denominator.data = denominator;
    call.sums = (double *)scratch;
    call.table = scratch + plan->table_start;
    call.outside = (uint8_t *)scratch + plan->outside_start;
    atomic_init(&call.next, 0);
    if (call.x.dtype == FLOAT64)
        prepare_double(&call);
    else
        prepare_float(&call);
    if (threads > 1)
        on_threads(work, &call, threads, 0);
    else
        work(&call);
    for (int64_t block = 0; block < call.blocks; block++) outside += call.outside[block];
    if (grad && !outside)
        flashkat_finish(plan, numerator, denominator, numerator_gradient, denominator_gradient, call.sums);
    return outside;
}
