/* Vectors of four floats as compiler extensions: SSE2, NEON, VSX, or plain code. */
#ifndef TERSELY_VEC_ANY_H
#define TERSELY_VEC_ANY_H

#include "numbers.h"

typedef float any_vec __attribute__((vector_size(16)));
typedef int32_t any_ints __attribute__((vector_size(16)));
typedef uint16_t any_halves __attribute__((vector_size(8)));
enum { any_width = 4 };

INLINE any_vec any_set(float value) { return (any_vec){value, value, value, value}; }
INLINE any_vec any_where(any_ints mask, any_vec a, any_vec b) {
    return (any_vec)(((any_ints)a & mask) | ((any_ints)b & ~mask));
}

INLINE any_vec any_load(const char *from, int64_t i, int kind) {
    any_vec value;
    any_halves halves;
    if (kind == FLOAT32) {
        memcpy(&value, from + 4 * i, sizeof value);
        return value;
    }
    memcpy(&halves, from + 2 * i, sizeof halves);
    any_ints ints = __builtin_convertvector(halves, any_ints);
    if (kind == BFLOAT16) return (any_vec)(ints << 16);
    any_ints size = (ints & 0x7fff) << 13, sign = (ints & 0x8000) << 16;
    any_ints special = size >= 0x7c00 << 13; /* infinity or NaN */
    value = any_where(special, (any_vec)(size | 0x7f800000), (any_vec)size * 0x1p112f);
    return (any_vec)((any_ints)value | sign);
}

INLINE void any_store(float *to, any_vec value) { memcpy(to, &value, sizeof value); }
/* Like the x86 instructions: the second operand if either is NaN. */
INLINE any_vec any_max(any_vec a, any_vec b) { return any_where(a > b, a, b); }
INLINE any_vec any_min(any_vec a, any_vec b) { return any_where(a < b, a, b); }
INLINE float any_sum(any_vec v) { return (v[0] + v[1]) + (v[2] + v[3]); }
INLINE void any_prefetch(uintptr_t from) { __builtin_prefetch((const void *)from); }

INLINE float any_highest(any_vec v) {
    float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}

/* sum += exp(x - top), weighted += exp(x - top) * (x - top). */
INLINE void any_add_exp(any_vec x, any_vec top, any_vec *sum, any_vec *weighted) {
    const any_vec whole = any_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to the nearest integer */
    any_vec y = x - top;
    any_ints kept = ~(y <= EXP_CUT); /* NaN is kept and propagates to the sums */
    y = (any_vec)((any_ints)y & kept);
    any_vec shifted = y * LOG2_E + whole, f = y * LOG2_E - (shifted - whole);
    any_vec p = 1.0f + f * (EXP_C1 + f * (EXP_C2 + f * (EXP_C3 + f * (EXP_C4 + f * EXP_C5))));
    any_vec e = p * (any_vec)(((any_ints)shifted - (any_ints)whole + 127) << 23);
    e = (any_vec)((any_ints)e & kept);
    *sum += e;
    *weighted += e * y;
}

#endif
