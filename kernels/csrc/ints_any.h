/* Vectors of four integers as compiler extensions, for w4a8.c. */
#ifndef TERSELY_INTS_ANY_H
#define TERSELY_INTS_ANY_H

#include "vec_any.h"

typedef int8_t any_signed __attribute__((vector_size(4)));
typedef uint8_t any_bytes_of __attribute__((vector_size(4)));
enum { any_parts = 4, any_most_tiles = 1 };

/* The bit position of byte j of a word, for either byte order. */
#define ANY_SHIFT(j) (8 * (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 3 - (j) : (j)))

INLINE any_ints any_same(int32_t value) { return (any_ints){value, value, value, value}; }
INLINE any_ints any_add(any_ints a, any_ints b) { return a + b; }
INLINE any_ints any_mul(any_ints a, any_ints b) { return a * b; }
/* The same for factors that fit into 16 bits, the first not negative. */
INLINE any_ints any_mul_16(any_ints a, any_ints b) { return a * b; }

INLINE int32_t any_total(any_ints v) { return v[0] + v[1] + v[2] + v[3]; }

INLINE int32_t any_highest_int(any_ints v) {
    int32_t a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}

/* The maximum of a and |x|, as bits. */
INLINE any_ints any_max_bits(any_ints a, any_vec x) {
    any_ints bits = (any_ints)x & 0x7fffffff, higher = bits > a;
    return (bits & higher) | (a & ~higher);
}

/* Rounds to the nearest integer, for |x| well below 2^22. */
INLINE any_ints any_rounded(any_vec x) {
    const any_vec whole = any_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to the nearest integer */
    return (any_ints)(x + whole) - (any_ints)whole;
}

INLINE void any_store_bytes(int8_t *to, any_ints values) {
    any_signed bytes = __builtin_convertvector(values, any_signed);
    memcpy(to, &bytes, sizeof bytes);
}

INLINE any_ints any_words(const uint8_t *from) {
    any_ints value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* Four bytes as integers. */
INLINE any_ints any_bytes(const uint8_t *from) {
    any_bytes_of bytes;
    memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, any_ints);
}

INLINE any_ints any_low(any_ints words) { return words & 0x0f0f0f0f; }
INLINE any_ints any_high(any_ints words) { return (words >> 4) & 0x0f0f0f0f; }

INLINE any_vec any_floats(any_ints values) { return __builtin_convertvector(values, any_vec); }

/* `value` where `unit` is not zero, else `other`. */
INLINE any_vec any_where_scaled(any_vec unit, any_vec value, any_vec other) {
    return any_where(unit != 0.0f, value, other);
}

INLINE void any_store_bfloats(void *to, any_vec value) {
    uint16_t halves[any_width];
    for (int i = 0; i < any_width; i++) halves[i] = bfloat_of(value[i]);
    memcpy(to, halves, sizeof halves);
}

INLINE void any_store_halves(void *to, any_vec value) {
    uint16_t halves[any_width];
    for (int i = 0; i < any_width; i++) halves[i] = half_of(value[i]);
    memcpy(to, halves, sizeof halves);
}

typedef const int8_t *any_fours;
INLINE any_fours any_four(const int8_t *x) { return x; }

/* sum += for each word, the four products of an unsigned byte and an activation. */
INLINE any_ints any_dot_bytes(any_ints sum, any_ints words, any_fours x) {
    for (int j = 0; j < 4; j++) sum += ((words >> ANY_SHIFT(j)) & 0xff) * x[j];
    return sum;
}
INLINE any_ints any_dot(any_ints sum, any_ints words, any_fours x) { return any_dot_bytes(sum, words, x); }

#endif
