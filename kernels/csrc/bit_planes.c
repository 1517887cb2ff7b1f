/* Products of bit planes; ../research/bit_planes.py defines them and their layout. */

#include "numbers.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define PLANES_AVX2 __attribute__((target("avx2")))
#define PLANES_AVX512 __attribute__((target("avx512f,avx512vpopcntdq")))
#endif

/* The best vector instructions here; AVX512 requires its popcount. */
EXPORT int tersely_planes_level(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512vpopcntdq")) return AVX512;
    if (__builtin_cpu_supports("avx2")) return AVX2;
#endif
    return PORTABLE;
}

/* Step 1: converts codes, rows of `columns` bytes with a stride of `stride`, to planes [rows][bits][words]. Returns the
 * bitwise or of all codes, so that the caller can check their range. */
EXPORT int tersely_planes_pack(
    const uint8_t *codes, int64_t rows, int64_t columns, int64_t stride, int64_t bits, uint64_t *planes, int64_t words
) {
    uint64_t seen = 0;
    for (int64_t r = 0; r < rows; r++, codes += stride, planes += bits * words) {
        memset(planes, 0, (size_t)(bits * words) * sizeof *planes);
        for (int64_t k = 0; k < columns; k += 8) {
            uint64_t eight = 0;
            memcpy(&eight, codes + k, (size_t)(columns - k < 8 ? columns - k : 8));
            if (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__) eight = __builtin_bswap64(eight);
            seen |= eight;
            for (int64_t i = 0; i < bits; i++) {
                /* Gathers the lowest bits of eight bytes in the highest byte of the product. */
                uint64_t byte = (eight >> i & 0x0101010101010101u) * 0x0102040810204080u >> 56;
                planes[i * words + k / 64] |= byte << k % 64;
            }
        }
    }
    for (int shift = 32; shift >= 8; shift /= 2) seen |= seen >> shift;
    return (int)(seen & 0xff);
}

/* The weighted number of differing bits of x and w; those of planes i and j count 2^(i + j) times. */
static int64_t any_differ(const uint64_t *x, int64_t x_bits, const uint64_t *w, int64_t w_bits, int64_t words) {
    int64_t total = 0;
    for (int64_t j = 0; j < w_bits; j++)
        for (int64_t i = 0; i < x_bits; i++) {
            uint64_t count = 0;
            for (int64_t k = 0; k < words; k++) {
                uint64_t v = x[i * words + k] ^ w[j * words + k];
                v -= v >> 1 & 0x5555555555555555u;
                v = (v & 0x3333333333333333u) + (v >> 2 & 0x3333333333333333u);
                v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fu;
                v += v >> 8;
                v += v >> 16;
                count += (v + (v >> 32)) & 0x7f;
            }
            total += (int64_t)(count << (i + j));
        }
    return total;
}

#if defined(__x86_64__)
PLANES_AVX2 static int64_t avx2_differ(
    const uint64_t *x, int64_t x_bits, const uint64_t *w, int64_t w_bits, int64_t words
) {
    const __m256i counts = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i low = _mm256_set1_epi8(15), none = _mm256_setzero_si256();
    __m256i total = none;
    for (int64_t j = 0; j < w_bits; j++)
        for (int64_t i = 0; i < x_bits; i++) {
            __m256i sum = none;
            for (int64_t k = 0; k < words; k += 4) {
                __m256i v = _mm256_xor_si256(
                    _mm256_loadu_si256((const void *)(x + i * words + k)),
                    _mm256_loadu_si256((const void *)(w + j * words + k))
                );
                __m256i few = _mm256_shuffle_epi8(counts, _mm256_and_si256(v, low));
                __m256i more = _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
                sum = _mm256_add_epi64(sum, _mm256_sad_epu8(_mm256_add_epi8(few, more), none));
            }
            total = _mm256_add_epi64(total, _mm256_sll_epi64(sum, _mm_cvtsi32_si128((int)(i + j))));
        }
    int64_t parts[4];
    memcpy(parts, &total, sizeof parts);
    return parts[0] + parts[1] + parts[2] + parts[3];
}

PLANES_AVX512 static int64_t avx512_differ(
    const uint64_t *x, int64_t x_bits, const uint64_t *w, int64_t w_bits, int64_t words
) {
    __m512i total = _mm512_setzero_si512();
    for (int64_t j = 0; j < w_bits; j++)
        for (int64_t i = 0; i < x_bits; i++) {
            __m512i sum = _mm512_setzero_si512();
            for (int64_t k = 0; k < words; k += 8) {
                __m512i v = _mm512_xor_si512(
                    _mm512_loadu_si512(x + i * words + k), _mm512_loadu_si512(w + j * words + k)
                );
                sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(v));
            }
            total = _mm512_add_epi64(total, _mm512_sll_epi64(sum, _mm_cvtsi32_si128((int)(i + j))));
        }
    return _mm512_reduce_add_epi64(total);
}
#endif

/* Step 2, for outputs from `start` up to `stop`, so that threads can share it. x: planes [rows][x_bits][words]; w: planes
 * [outputs][w_bits][words], words a multiple of 8; out: [rows][outputs]; level: at most tersely_planes_level(). */
EXPORT void tersely_planes_rows(
    const uint64_t *x, int64_t rows, int64_t x_bits, const uint64_t *w, int64_t outputs, int64_t w_bits, int64_t words,
    int64_t inputs, int32_t *out, int64_t start, int64_t stop, int level
) {
    int64_t (*differ)(const uint64_t *, int64_t, const uint64_t *, int64_t, int64_t) = any_differ;
    int64_t all = (((int64_t)1 << x_bits) - 1) * (((int64_t)1 << w_bits) - 1) * inputs;
#if defined(__x86_64__)
    if (level == AVX512) differ = avx512_differ;
    else if (level == AVX2) differ = avx2_differ;
#endif
    (void)level;
    for (int64_t n = start; n < stop; n++)
        for (int64_t r = 0; r < rows; r++) {
            int64_t count = differ(x + r * x_bits * words, x_bits, w + n * w_bits * words, w_bits, words);
            out[r * outputs + n] = (int32_t)(all - 2 * count);
        }
}
