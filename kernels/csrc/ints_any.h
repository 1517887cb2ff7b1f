/* Vectors of four integers in the compiler's own terms, for w4a8.c. */
#ifndef TERSELY_INTS_ANY_H
#define TERSELY_INTS_ANY_H

#include "vec_any.h"

typedef uint32_t any_words_of __attribute__((vector_size(16)));
typedef uint8_t any_bytes_of __attribute__((vector_size(4)));
enum { any_parts = 4, any_most_tiles = 1 };

/* Where byte j of a word lies, whichever way round the machine keeps its words. */
#define ANY_SHIFT(j) (8 * (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 3 - (j) : (j)))

INLINE any_ints any_same(int32_t value) { return (any_ints){value, value, value, value}; }
INLINE any_ints any_add(any_ints a, any_ints b) { return a + b; }
INLINE any_ints any_mul(any_ints a, any_ints b) { return a * b; }
/* The same for factors that 16 bits hold, the first of them not negative. */
INLINE any_ints any_mul_16(any_ints a, any_ints b) { return a * b; }

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

typedef const int8_t *any_fours;
INLINE any_fours any_four(const int8_t *x) { return x; }

/* sum += of each word the four products of a byte, which has no sign, and an activation. */
INLINE any_ints any_dot_bytes(any_ints sum, any_ints words, any_fours x) {
    for (int j = 0; j < 4; j++) sum += ((words >> ANY_SHIFT(j)) & 0xff) * x[j];
    return sum;
}
INLINE any_ints any_dot(any_ints sum, any_ints words, any_fours x) { return any_dot_bytes(sum, words, x); }

#endif
