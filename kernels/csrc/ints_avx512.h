/* Vectors of sixteen integers, for w4a8.c: AVX512 with the dot products of VNNI. */
#ifndef TERSELY_INTS_AVX512_H
#define TERSELY_INTS_AVX512_H

#include "vec_avx512.h"

#define VNNI_TARGET __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define VNNI_INLINE INLINE VNNI_TARGET

typedef __m512i avx512_ints;
enum { avx512_parts = 1, avx512_most_tiles = 2 };

VNNI_INLINE __m512i avx512_same(int32_t value) { return _mm512_set1_epi32(value); }
VNNI_INLINE __m512i avx512_add(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
VNNI_INLINE __m512i avx512_mul(__m512i a, __m512i b) { return _mm512_mullo_epi32(a, b); }
/* The same for factors that 16 bits hold, the first of them not negative. */
VNNI_INLINE __m512i avx512_mul_16(__m512i a, __m512i b) { return _mm512_madd_epi16(a, b); }
VNNI_INLINE __m512i avx512_words(const uint8_t *from) { return _mm512_loadu_si512(from); }
VNNI_INLINE __m512i avx512_bytes(const uint8_t *from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
}
VNNI_INLINE __m512i avx512_low(__m512i words) { return _mm512_and_si512(words, _mm512_set1_epi8(15)); }
VNNI_INLINE __m512i avx512_high(__m512i words) { return avx512_low(_mm512_srli_epi16(words, 4)); }

VNNI_INLINE __m512i avx512_four(const int8_t *x) {
    int32_t word;
    memcpy(&word, x, sizeof word);
    return _mm512_set1_epi32(word);
}

/* sum += of each word the four products of a byte, which has no sign, and an activation. */
VNNI_INLINE __m512i avx512_dot_bytes(__m512i sum, __m512i words, __m512i x) {
    return _mm512_dpbusd_epi32(sum, words, x);
}
VNNI_INLINE __m512i avx512_dot(__m512i sum, __m512i words, __m512i x) { return avx512_dot_bytes(sum, words, x); }

#endif
