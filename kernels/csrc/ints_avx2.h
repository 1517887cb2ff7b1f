/* Vectors of eight integers, for w4a8.c: AVX2. */
#ifndef TERSELY_INTS_AVX2_H
#define TERSELY_INTS_AVX2_H

#include "vec_avx2.h"

typedef __m256i avx2_ints;
enum { avx2_parts = 2, avx2_most_tiles = 1 };

AVX2_INLINE __m256i avx2_same(int32_t value) { return _mm256_set1_epi32(value); }
AVX2_INLINE __m256i avx2_add(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
AVX2_INLINE __m256i avx2_mul(__m256i a, __m256i b) { return _mm256_mullo_epi32(a, b); }
/* The same for factors that 16 bits hold, the first of them not negative. */
AVX2_INLINE __m256i avx2_mul_16(__m256i a, __m256i b) { return _mm256_madd_epi16(a, b); }
AVX2_INLINE __m256i avx2_words(const uint8_t *from) { return _mm256_loadu_si256((const __m256i *)from); }
AVX2_INLINE __m256i avx2_bytes(const uint8_t *from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
}
AVX2_INLINE __m256i avx2_low(__m256i words) { return _mm256_and_si256(words, _mm256_set1_epi8(15)); }
AVX2_INLINE __m256i avx2_high(__m256i words) { return avx2_low(_mm256_srli_epi16(words, 4)); }

AVX2_INLINE __m256i avx2_four(const int8_t *x) {
    int32_t word;
    memcpy(&word, x, sizeof word);
    return _mm256_set1_epi32(word);
}

/* sum += of each word the four products of a byte up to 15 and an activation. Two of them add up to 3810 at most, so
 * the 16 bits between the two steps hold them; with larger bytes they would not. */
AVX2_INLINE __m256i avx2_dot(__m256i sum, __m256i words, __m256i x) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(words, x), _mm256_set1_epi16(1)));
}

/* The same for any byte. */
AVX2_INLINE __m256i avx2_dot_bytes(__m256i sum, __m256i words, __m256i x) {
    __m256i high = _mm256_maddubs_epi16(avx2_high(words), x);
    return avx2_dot(_mm256_add_epi32(sum, _mm256_madd_epi16(high, _mm256_set1_epi16(16))), avx2_low(words), x);
}

#endif
