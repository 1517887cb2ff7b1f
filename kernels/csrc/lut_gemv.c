/* Products by table lookup; ../research/lut_gemv.py defines them and the layout of the weights. */

#include "numbers.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define LUT_AVX2 __attribute__((target("avx2")))
#define LUT_AVX512 __attribute__((target("avx512f,avx512bw")))
#endif

#define UNROLLED _Pragma("GCC unroll 8")

enum {
    TILE = 32, /* outputs per line */
    LINE = 64, /* bytes for one bit of 16 inputs of a tile */
    KEPT = 8,  /* sums per table */
    SAFE = 15  /* chunks whose sums fit into 16 bits: 4 * 15 times 4 * 128 */
};

/* The best vector instructions here. */
EXPORT int tersely_lut_level(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bw")) return AVX512;
    if (__builtin_cpu_supports("avx2")) return AVX2;
#endif
    return PORTABLE;
}

/* Step 1: for every four activations, the 8 sums in which the last one is subtracted. x: rows of `columns` elements with a
 * stride of `stride`; tables: [rows][4 * chunks][KEPT]. */
EXPORT void tersely_lut_tables(
    const int8_t *x, int64_t rows, int64_t columns, int64_t stride, int16_t *tables, int64_t chunks
) {
    for (int64_t r = 0; r < rows; r++, x += stride)
        for (int64_t k = 0; k < 16 * chunks; k += 4, tables += KEPT) {
            int four[4];
            for (int j = 0; j < 4; j++) four[j] = k + j < columns ? x[k + j] : 0;
            for (int i = 0; i < KEPT; i++)
                tables[i] = (int16_t)((i & 1 ? four[0] : -four[0]) + (i & 2 ? four[1] : -four[1]) +
                                      (i & 4 ? four[2] : -four[2]) - four[3]);
        }
}

/* One row times one tile, TILE sums, for each set of vector instructions. */
static void any_tile(const int16_t *tables, const uint8_t *lines, int64_t chunks, int bits, int32_t *totals) {
    memset(totals, 0, TILE * sizeof *totals);
    for (int p = 0; p < bits; p++) {
        int32_t sums[TILE] = {0};
        for (int64_t c = 0; c < chunks; c++)
            for (int j = 0; j < 4; j++) {
                const uint8_t *at = lines + (c * bits + p) * LINE + j / 2;
                const int16_t *kept = tables + (4 * c + j) * KEPT;
                for (int n = 0; n < TILE; n++) {
                    int half = at[2 * n] >> (j % 2 * 4) & 15, sum = kept[half & 7];
                    sums[n] += half & 8 ? -sum : sum;
                }
            }
        for (int n = 0; n < TILE; n++) totals[n] += sums[n] * (1 << p);
    }
}

#if defined(__x86_64__)
/* A table of 8 words is exactly the source of a byte shuffle. */
LUT_AVX2 INLINE __m256i avx2_found(__m256i words, const int j, __m256i kept) {
    __m256i index = _mm256_and_si256(_mm256_srli_epi16(words, 4 * j), _mm256_set1_epi16(7));
    __m256i bytes = _mm256_mullo_epi16(index, _mm256_set1_epi16(0x0202));
    __m256i sum = _mm256_shuffle_epi8(kept, _mm256_add_epi16(bytes, _mm256_set1_epi16(0x0100)));
    __m256i sign = _mm256_slli_epi16(words, 12 - 4 * j);
    return _mm256_sign_epi16(sum, _mm256_or_si256(sign, _mm256_set1_epi16(1)));
}

LUT_AVX2 INLINE void avx2_bits(
    const int16_t *tables, const uint8_t *lines, int64_t chunks, const int bits, int32_t *totals
) {
    memset(totals, 0, TILE * sizeof *totals);
    for (int64_t from = 0; from < chunks; from += SAFE) {
        __m256i sums[4][2] = {0};
        for (int64_t c = from; c < chunks && c < from + SAFE; c++)
            UNROLLED
            for (int j = 0; j < 4; j++) {
                __m256i kept = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)(tables + (4 * c + j) * KEPT)));
                UNROLLED
                for (int i = 0; i < 2 * bits; i++) {
                    const uint8_t *at = lines + c * bits * LINE + i * LINE / 2;
                    __m256i sum = avx2_found(_mm256_loadu_si256((const void *)at), j, kept);
                    sums[i / 2][i % 2] = _mm256_add_epi16(sums[i / 2][i % 2], sum);
                }
            }
        int16_t words[4][TILE];
        memcpy(words, sums, sizeof words);
        UNROLLED
        for (int p = 0; p < bits; p++)
            for (int n = 0; n < TILE; n++) totals[n] += words[p][n] * (1 << p);
    }
}

/* The 16 sums of a table, twice, because a word shuffle uses five index bits, the fifth of which belongs to the next index. */
LUT_AVX512 INLINE __m512i avx512_table(const int16_t *kept) {
    __m512i four = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)kept));
    return _mm512_mask_sub_epi16(four, 0xff00ff00u, _mm512_setzero_si512(), four);
}

LUT_AVX512 INLINE void avx512_bits(
    const int16_t *tables, const uint8_t *lines, int64_t chunks, const int bits, int32_t *totals
) {
    __m512i low = _mm512_setzero_si512(), high = low;
    for (int64_t from = 0; from < chunks; from += SAFE) {
        __m512i sums[4];
        UNROLLED
        for (int p = 0; p < bits; p++) sums[p] = _mm512_setzero_si512();
        for (int64_t c = from; c < chunks && c < from + SAFE; c++) {
            __m512i words[4];
            UNROLLED
            for (int p = 0; p < bits; p++) words[p] = _mm512_loadu_si512(lines + (c * bits + p) * LINE);
            UNROLLED
            for (int j = 0; j < 4; j++) {
                __m512i table = avx512_table(tables + (4 * c + j) * KEPT);
                UNROLLED
                for (int p = 0; p < bits; p++) {
                    __m512i index = _mm512_srli_epi16(words[p], 4 * j);
                    sums[p] = _mm512_add_epi16(sums[p], _mm512_permutexvar_epi16(index, table));
                }
            }
        }
        UNROLLED
        for (int p = 0; p < bits; p++) {
            __m512i half = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(sums[p]));
            low = _mm512_add_epi32(low, _mm512_slli_epi32(half, p));
            half = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(sums[p], 1));
            high = _mm512_add_epi32(high, _mm512_slli_epi32(half, p));
        }
    }
    _mm512_storeu_si512(totals, low);
    _mm512_storeu_si512(totals + 16, high);
}

/* Constant widths, so that each call is specialized. */
#define OF_BITS(name)                                                         \
    (bits == 1   ? name(tables, lines, chunks, 1, totals)                     \
     : bits == 2 ? name(tables, lines, chunks, 2, totals)                     \
     : bits == 3 ? name(tables, lines, chunks, 3, totals)                     \
                 : name(tables, lines, chunks, 4, totals))

LUT_AVX2 static void avx2_tile(const int16_t *tables, const uint8_t *lines, int64_t chunks, int bits, int32_t *totals) {
    OF_BITS(avx2_bits);
}
LUT_AVX512 static void avx512_tile(
    const int16_t *tables, const uint8_t *lines, int64_t chunks, int bits, int32_t *totals
) {
    OF_BITS(avx512_bits);
}
#endif

/* Step 2, for tiles from `start` up to `stop`, so that threads can share it. out: [rows][outputs]; level: at most
 * tersely_lut_level(). */
EXPORT void tersely_lut_tiles(
    const int16_t *tables, int64_t rows, const uint8_t *lines, int64_t chunks, int64_t bits, int64_t outputs,
    int32_t *out, int64_t start, int64_t stop, int level
) {
    void (*tile_of)(const int16_t *, const uint8_t *, int64_t, int, int32_t *) = any_tile;
#if defined(__x86_64__)
    if (level == AVX512) tile_of = avx512_tile;
    else if (level == AVX2) tile_of = avx2_tile;
#endif
    (void)level;
    for (int64_t tile = start; tile < stop; tile++)
        for (int64_t r = 0; r < rows; r++) {
            int32_t totals[TILE];
            int64_t left = outputs - tile * TILE;
            tile_of(tables + r * 4 * chunks * KEPT, lines + tile * chunks * bits * LINE, chunks, (int)bits, totals);
            memcpy(out + r * outputs + tile * TILE, totals, (size_t)(left < TILE ? left : TILE) * sizeof *totals);
        }
}
