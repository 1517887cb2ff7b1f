/* Vectors of sixteen floats: AVX512F. */
#ifndef TERSELY_VEC_AVX512_H
#define TERSELY_VEC_AVX512_H

#include <immintrin.h>

#include "numbers.h"

#define AVX512_TARGET __attribute__((target("avx512f")))
#define AVX512_INLINE INLINE AVX512_TARGET

typedef __m512 avx512_vec;
enum { avx512_width = 16 };

AVX512_INLINE __m512 avx512_set(float value) { return _mm512_set1_ps(value); }

AVX512_INLINE __m512 avx512_load(const char *from, int64_t i, int kind) {
    if (kind == FLOAT32) return _mm512_loadu_ps((const float *)(from + 4 * i));
    __m256i halves = _mm256_loadu_si256((const __m256i *)(from + 2 * i));
    if (kind == FLOAT16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

AVX512_INLINE void avx512_store(float *to, __m512 value) { _mm512_storeu_ps(to, value); }
AVX512_INLINE __m512 avx512_max(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
AVX512_INLINE __m512 avx512_min(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
AVX512_INLINE float avx512_highest(__m512 value) { return _mm512_reduce_max_ps(value); }
AVX512_INLINE float avx512_sum(__m512 value) { return _mm512_reduce_add_ps(value); }
AVX512_INLINE void avx512_prefetch(uintptr_t from) { _mm_prefetch((const char *)from, _MM_HINT_T0); }

/* sum += exp(x - top), weighted += exp(x - top) * (x - top). */
AVX512_INLINE void avx512_add_exp(__m512 x, __m512 top, __m512 *sum, __m512 *weighted) {
    __m512 y = _mm512_sub_ps(x, top);
    __mmask16 kept = _mm512_cmp_ps_mask(y, _mm512_set1_ps(EXP_CUT), _CMP_NLE_UQ); /* NaN is kept and propagates to the sums */
    __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(y, _mm512_set1_ps(LOG2_E)), _MM_FROUND_TO_NEAREST_INT);
    __m512 f = _mm512_fmsub_ps(y, _mm512_set1_ps(LOG2_E), whole);
    __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(EXP_C5), _mm512_set1_ps(EXP_C4));
    p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(EXP_C3));
    p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(EXP_C2));
    p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(EXP_C1));
    p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(1.0f));
    __m512 e = _mm512_maskz_scalef_ps(kept, p, whole);
    *sum = _mm512_add_ps(*sum, e);
    *weighted = _mm512_mask3_fmadd_ps(e, y, *weighted, kept);
}

#endif
