/* Vectors of eight integers, for w4a8.c: AVX2. */
#ifndef TERSELY_INTS_AVX2_H
#define TERSELY_INTS_AVX2_H

#include "vec_avx2.h"

typedef __m256i avx2_ints;
enum { avx2_parts = 2, avx2_most_tiles = 1 };

AVX2_INLINE __m256i avx2_same(int32_t value) { return _mm256_set1_epi32(value); }
AVX2_INLINE __m256i avx2_add(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
AVX2_INLINE __m256i avx2_mul(__m256i a, __m256i b) { return _mm256_mullo_epi32(a, b); }
/* The same for factors that fit into 16 bits, the first not negative. */
AVX2_INLINE __m256i avx2_mul_16(__m256i a, __m256i b) { return _mm256_madd_epi16(a, b); }
AVX2_INLINE int32_t avx2_total(__m256i values) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

AVX2_INLINE int32_t avx2_highest_int(__m256i values) {
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
    __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}

/* The maximum of a and |x|, as bits. */
AVX2_INLINE __m256i avx2_max_bits(__m256i a, __m256 x) {
    return _mm256_max_epi32(a, _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)));
}
AVX2_INLINE __m256i avx2_rounded(__m256 x) { return _mm256_cvtps_epi32(x); }

AVX2_INLINE void avx2_store_bytes(int8_t *to, __m256i values) {
    __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packs_epi16(halves, halves));
}

AVX2_INLINE __m256i avx2_words(const uint8_t *from) { return _mm256_loadu_si256((const __m256i *)from); }
AVX2_INLINE __m256i avx2_bytes(const uint8_t *from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
}
AVX2_INLINE __m256i avx2_low(__m256i words) { return _mm256_and_si256(words, _mm256_set1_epi8(15)); }
AVX2_INLINE __m256i avx2_high(__m256i words) { return avx2_low(_mm256_srli_epi16(words, 4)); }

AVX2_INLINE __m256 avx2_floats(__m256i values) { return _mm256_cvtepi32_ps(values); }

/* `value` where `unit` is not zero, else `other`. */
AVX2_INLINE __m256 avx2_where_scaled(__m256 unit, __m256 value, __m256 other) {
    return _mm256_blendv_ps(other, value, _mm256_cmp_ps(unit, _mm256_setzero_ps(), _CMP_NEQ_UQ));
}

/* Like bfloat_of. */
AVX2_INLINE void avx2_store_bfloats(void *to, __m256 value) {
    __m256i bits = _mm256_castps_si256(value), high = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i none = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), none);
    __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(halves));
}

AVX2_INLINE void avx2_store_halves(void *to, __m256 value) {
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

AVX2_INLINE __m256i avx2_four(const int8_t *x) {
    int32_t word;
    memcpy(&word, x, sizeof word);
    return _mm256_set1_epi32(word);
}

/* sum += for each word, the four products of a byte of at most 15 and an activation. Two of them sum up to at most 3810, so
 * the 16-bit intermediate results cannot saturate; with larger bytes they could. */
AVX2_INLINE __m256i avx2_dot(__m256i sum, __m256i words, __m256i x) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(words, x), _mm256_set1_epi16(1)));
}

/* The same for all bytes. */
AVX2_INLINE __m256i avx2_dot_bytes(__m256i sum, __m256i words, __m256i x) {
    __m256i high = _mm256_maddubs_epi16(avx2_high(words), x);
    return avx2_dot(_mm256_add_epi32(sum, _mm256_madd_epi16(high, _mm256_set1_epi16(16))), avx2_low(words), x);
}

#endif
