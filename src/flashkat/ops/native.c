/* The operator on a CPU, in one pass over memory: native.py loads this, native_real.h has the arithmetic.

   A tensor is seen as (outer, channels, inner) with any strides. It is cut into blocks, always the same for the same
   shape, which any number of threads take from a counter. Each block has sums of its own, so the result does not
   depend on who took it. */

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
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

struct call {
    struct array x, grad, out; /* out takes F(x), or the gradient of x where there is a grad */
    const void *numerator, *denominator; /* (groups or 1, m) and (groups or 1, n) in the dtype of the arithmetic */
    int64_t numerator_rows, denominator_rows, m, n;
    int64_t channels, groups;
    int64_t lanes_are_channels; /* whether neighbours in memory are channels of a position, or positions of a channel */
    int64_t blocks;
    const struct block *block;
    double *sums;     /* (blocks, m + n, groups), for a grad */
    uint8_t *outside; /* (blocks,): set where plain arithmetic will not do */
    void *table;      /* room for (m + n) * (channels + LANES) numbers of the arithmetic */
    double largest;   /* for prepare to fill: bounds the polynomials where |x| <= 1 */
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

/* Once per call, before the threads work on it. */
__attribute__((visibility("default"))) void flashkat_prepare(struct call *call) {
    atomic_init(&call->next, 0);
    if (call->x.dtype == FLOAT64)
        prepare_double(call);
    else
        prepare_float(call);
}

/* Take blocks until there are none. */
__attribute__((visibility("default"))) void flashkat_work(struct call *call) {
    for (;;) {
        long long index = atomic_fetch_add(&call->next, 1);
        if (index >= call->blocks) return;
        if (call->x.dtype == FLOAT64)
            work_double(call, index);
        else
            work_float(call, index);
    }
}
