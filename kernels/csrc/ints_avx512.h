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
/* The same for factors that fit into 16 bits, the first not negative. */
VNNI_INLINE __m512i avx512_mul_16(__m512i a, __m512i b) { return _mm512_madd_epi16(a, b); }
VNNI_INLINE int32_t avx512_total(__m512i values) { return _mm512_reduce_add_epi32(values); }
VNNI_INLINE int32_t avx512_highest_int(__m512i values) { return _mm512_reduce_max_epi32(values); }
/* The maximum of a and |x|, as bits. */
VNNI_INLINE __m512i avx512_max_bits(__m512i a, __m512 x) {
    return _mm512_max_epi32(a, _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)));
}
VNNI_INLINE __m512i avx512_rounded(__m512 x) { return _mm512_cvtps_epi32(x); }
VNNI_INLINE void avx512_store_bytes(int8_t *to, __m512i values) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(values));
}
VNNI_INLINE __m512i avx512_words(const uint8_t *from) { return _mm512_loadu_si512(from); }
VNNI_INLINE __m512i avx512_bytes(const uint8_t *from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
}
VNNI_INLINE __m512i avx512_low(__m512i words) { return _mm512_and_si512(words, _mm512_set1_epi8(15)); }
VNNI_INLINE __m512i avx512_high(__m512i words) { return avx512_low(_mm512_srli_epi16(words, 4)); }

VNNI_INLINE __m512 avx512_floats(__m512i values) { return _mm512_cvtepi32_ps(values); }

/* `value` where `unit` is not zero, else `other`. */
VNNI_INLINE __m512 avx512_where_scaled(__m512 unit, __m512 value, __m512 other) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(unit, _mm512_setzero_ps(), _CMP_NEQ_UQ), other, value);
}

/* Like bfloat_of. */
VNNI_INLINE void avx512_store_bfloats(void *to, __m512 value) {
    __m512i bits = _mm512_castps_si512(value), high = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __mmask16 none = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, none, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(rounded));
}

VNNI_INLINE void avx512_store_halves(void *to, __m512 value) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

VNNI_INLINE __m512i avx512_four(const int8_t *x) {
    int32_t word;
    memcpy(&word, x, sizeof word);
    return _mm512_set1_epi32(word);
}

/* sum += for each word, the four products of an unsigned byte and an activation. */
VNNI_INLINE __m512i avx512_dot_bytes(__m512i sum, __m512i words, __m512i x) {
    return _mm512_dpbusd_epi32(sum, words, x);
}
VNNI_INLINE __m512i avx512_dot(__m512i sum, __m512i words, __m512i x) { return avx512_dot_bytes(sum, words, x); }

#endif
