/* Vectors of eight floats: AVX2 and FMA. Every processor with AVX2 has the instructions for float16 (F16C) too. */
#ifndef TERSELY_VEC_AVX2_H
#define TERSELY_VEC_AVX2_H

#include <immintrin.h>

#include "numbers.h"

#define AVX2_TARGET __attribute__((target("avx2,fma,f16c")))
#define AVX2_INLINE INLINE AVX2_TARGET

typedef __m256 avx2_vec;
enum { avx2_width = 8 };

AVX2_INLINE __m256 avx2_set(float value) { return _mm256_set1_ps(value); }

AVX2_INLINE __m256 avx2_load(const char *from, int64_t i, int kind) {
    if (kind == FLOAT32) return _mm256_loadu_ps((const float *)(from + 4 * i));
    __m128i halves = _mm_loadu_si128((const __m128i *)(from + 2 * i));
    if (kind == FLOAT16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

AVX2_INLINE void avx2_store(float *to, __m256 value) { _mm256_storeu_ps(to, value); }
AVX2_INLINE __m256 avx2_max(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
AVX2_INLINE __m256 avx2_min(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }

AVX2_INLINE float avx2_highest(__m256 value) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

AVX2_INLINE float avx2_sum(__m256 value) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

AVX2_INLINE void avx2_prefetch(uintptr_t from) { _mm_prefetch((const char *)from, _MM_HINT_T0); }

/* sum += exp(x - top), weighted += exp(x - top) * (x - top). */
AVX2_INLINE void avx2_add_exp(__m256 x, __m256 top, __m256 *sum, __m256 *weighted) {
    __m256 y = _mm256_sub_ps(x, top);
    __m256 kept = _mm256_cmp_ps(y, _mm256_set1_ps(EXP_CUT), _CMP_NLE_UQ); /* NaN is kept and propagates to the sums */
    y = _mm256_and_ps(kept, y);
    __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(y, _mm256_set1_ps(LOG2_E)));
    __m256 f = _mm256_fmsub_ps(y, _mm256_set1_ps(LOG2_E), _mm256_cvtepi32_ps(whole));
    __m256 p = _mm256_fmadd_ps(f, _mm256_set1_ps(EXP_C5), _mm256_set1_ps(EXP_C4));
    p = _mm256_fmadd_ps(f, p, _mm256_set1_ps(EXP_C3));
    p = _mm256_fmadd_ps(f, p, _mm256_set1_ps(EXP_C2));
    p = _mm256_fmadd_ps(f, p, _mm256_set1_ps(EXP_C1));
    p = _mm256_fmadd_ps(f, p, _mm256_set1_ps(1.0f));
    __m256 e = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(whole, 23)));
    e = _mm256_and_ps(kept, e);
    *sum = _mm256_add_ps(*sum, e);
    *weighted = _mm256_fmadd_ps(e, y, *weighted);
}

#endif
