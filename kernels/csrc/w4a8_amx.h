/* Blocks of rows on the AMX matrix unit, for w4a8.c; everything else uses AVX512.
 *
 * A tile register holds 16 rows of 64 bytes: 64 inputs of 16 rows of activations, or for weights, in each of its rows four
 * inputs of 16 outputs, which is the layout of half a line. Weights are expanded to 8 bits, fine scale times (code - zero),
 * before they are multiplied, as in DGQ (arXiv:2310.04836), so nothing is left to do between groups.
 *
 * Registers: 0 to 3 hold sums, those of tile t and rows r in 2 t + r; 4 and 5 activations of rows r; 6 and 7 weights of
 * tile t. */
#ifndef TERSELY_W4A8_AMX_H
#define TERSELY_W4A8_AMX_H

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ints_avx512.h"

#define AMX_TARGET __attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512vnni")))
#define AMX_INLINE INLINE AMX_TARGET

enum {
    AMX_FEW = 4,     /* up to so many rows AVX512 is used; not measured yet */
    AMX_ROWS = 16,   /* per register */
    AMX_INPUTS = 64, /* per register */
    AMX_WEIGHTS = AMX_INPUTS * TILE,
    AMX_SUMS = AMX_ROWS * TILE
};

/* In assembly, because some compilers' intrinsics do not declare that they read and write memory. */
#define AMX_LOAD(to, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #to ::"r"(from), "r"((int64_t)(stride)) : "memory")
#define AMX_STORE(from, to) \
    __asm__ volatile("tilestored %%tmm" #from ", (%0,%1,1)" ::"r"(to), "r"((int64_t)LINE) : "memory")
#define AMX_ZERO(to) __asm__ volatile("tilezero %tmm" #to)
/* sums += activations times weights, which are signed, or unsigned for BYTES. */
#define AMX_DOT(sums, x, weights) \
    do { \
        if (form == BYTES) __asm__ volatile("tdpbsud %tmm" #weights ", %tmm" #x ", %tmm" #sums); \
        else __asm__ volatile("tdpbssd %tmm" #weights ", %tmm" #x ", %tmm" #sums); \
    } while (0)

/* Whether the processor has the unit and the system grants this process its use. */
static int amx_allowed(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18, TILES_AND_INT8 = 3 << 24 };
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & TILES_AND_INT8) != TILES_AND_INT8) return 0;
    return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA);
}

/* Configures the registers for this many rows. Needed in each call, because other code in this thread, such as oneDNN,
 * changes the configuration. */
AMX_INLINE void amx_configure(int64_t rows) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } layout = {.palette = 1};
    const int64_t first = rows < AMX_ROWS ? rows : AMX_ROWS, of[8] = {first, rows - first, first, rows - first, first,
                                                                      rows - first, AMX_INPUTS / 4, AMX_INPUTS / 4};
    for (int i = 0; i < 8; i++) {
        layout.rows[i] = (uint8_t)of[i];
        layout.bytes[i] = of[i] ? LINE : 0;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(layout) : "memory");
}

AMX_INLINE void amx_release(void) { __asm__ volatile("tilerelease" ::: "memory"); }

/* Broadcasts the lowest byte of each word to all four. */
AMX_INLINE __m512i amx_four(__m512i words) {
    return _mm512_shuffle_epi8(words, _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0));
}

/* Codes times fine scales, in bytes: two at a time, unless the first may carry into the second. */
AMX_INLINE __m512i amx_scaled(__m512i codes, __m512i fine, const int carries) {
    const __m512i low = _mm512_set1_epi16(255);
    if (!carries) return _mm512_mullo_epi16(codes, fine);
    __m512i even = _mm512_and_si512(_mm512_mullo_epi16(_mm512_and_si512(codes, low), fine), low);
    return _mm512_or_si512(even, _mm512_slli_epi16(_mm512_mullo_epi16(_mm512_srli_epi16(codes, 8), fine), 8));
}

/* Expands lines of codes to weights, modulo 256, which is exact because fine times (code - zero) fits into 8 bits. */
AMX_INLINE void amx_widen(
    const uint8_t *codes, int64_t lines, __m512i fine, __m512i zero, int8_t *to, const int carries
) {
    const __m512i pairs = _mm512_or_si512(fine, _mm512_slli_epi32(fine, 16));
    const __m512i below = amx_four(avx512_mul_16(fine, zero));
    for (; lines > 0; lines--, codes += LINE, to += 2 * LINE) {
        __m512i words = avx512_words(codes);
        avx512_prefetch((uintptr_t)codes + AHEAD);
        _mm512_storeu_si512(to, _mm512_sub_epi8(amx_scaled(avx512_low(words), pairs, carries), below));
        _mm512_storeu_si512(to + LINE, _mm512_sub_epi8(amx_scaled(avx512_high(words), pairs, carries), below));
    }
}

/* The weights of one tile for 64 inputs from a line on, zeros after the last: written to `to`, or in place if they already
 * have this layout. A group has 2^shared lines. */
AMX_INLINE const void *amx_weights(
    const w4a8_layer *layer, int64_t tile, int64_t line, int shared, int8_t *to, const int form
) {
    enum { LEAST = 4 }; /* divides the number of lines per group */
    const int64_t all = AMX_INPUTS / (form == BYTES ? 4 : 8), rest = layer->lines - line, lines = rest < all ? rest : all;
    const uint8_t *codes = layer->codes + (tile * layer->lines + line) * LINE;
    if (lines < all) memset(to, 0, AMX_WEIGHTS);
    if (form == BYTES) {
        for (int64_t i = 0; i < lines; i++) avx512_prefetch((uintptr_t)codes + (uintptr_t)(i * LINE) + AHEAD);
        return lines < all ? memcpy(to, codes, (size_t)(lines * LINE)) : codes;
    }
    if (form == PLANES) amx_widen(codes, lines, avx512_same(1), avx512_same(8), to, 0);
    else
        for (int64_t i = 0; i < lines; i += LEAST) {
            const int64_t group = tile * layer->group_count + ((line + i) >> shared);
            const uint8_t *about = layer->groups + group * 2 * TILE;
            const __m512i fine = avx512_bytes(about), zero = avx512_bytes(about + TILE);
            const int carries = _mm512_cmpgt_epi32_mask(fine, avx512_same(255 / 15)) != 0;
            if (carries) amx_widen(codes + i * LINE, LEAST, fine, zero, to + 2 * i * LINE, 1);
            else amx_widen(codes + i * LINE, LEAST, fine, zero, to + 2 * i * LINE, 0);
        }
    return to;
}

/* Up to 32 rows from `row` on times `tiles` tiles, `apart` from each other; two: whether a second register has rows. */
AMX_INLINE void amx_block(
    const w4a8_job *job, int64_t row, int64_t tile, int64_t apart, const int two, const int tiles, const int form
) {
    const w4a8_layer *layer = job->layer;
    const int64_t depth = depth_of(layer), step = AMX_INPUTS / (form == BYTES ? 4 : 8), last = layer->lines;
    const int8_t *x = job->x8 + row * depth, *more = x + two * AMX_ROWS * depth;
    const int shared = __builtin_ctzll((uint64_t)(layer->lines / layer->group_count));
    const void *ready[2][2];
    int8_t weights[2][2][AMX_WEIGHTS] __attribute__((aligned(LINE)));
    int32_t sums[4][AMX_SUMS] __attribute__((aligned(LINE)));
    AMX_ZERO(0);
    if (two) AMX_ZERO(1);
    if (tiles > 1) AMX_ZERO(2);
    if (two && tiles > 1) AMX_ZERO(3);
    for (int t = 0; t < tiles; t++)
        ready[0][t] = amx_weights(layer, tile + t * apart, 0, shared, weights[0][t], form);
    for (int64_t line = 0, turn = 0; line < last; line += step, turn = !turn, x += AMX_INPUTS, more += AMX_INPUTS) {
        /* One step ahead, because tile loads cannot be forwarded from recent stores, but wait until these are in the cache. */
        if (line + step < last)
            for (int t = 0; t < tiles; t++)
                ready[!turn][t] = amx_weights(layer, tile + t * apart, line + step, shared, weights[!turn][t], form);
        AMX_LOAD(4, x, depth);
        if (two) AMX_LOAD(5, more, depth);
        AMX_LOAD(6, ready[turn][0], LINE);
        AMX_DOT(0, 4, 6);
        if (two) AMX_DOT(1, 5, 6);
        if (tiles == 1) continue;
        AMX_LOAD(7, ready[turn][1], LINE);
        AMX_DOT(2, 4, 7);
        if (two) AMX_DOT(3, 5, 7);
    }
    AMX_STORE(0, sums[0]);
    if (two) AMX_STORE(1, sums[1]);
    if (tiles > 1) AMX_STORE(2, sums[2]);
    if (two && tiles > 1) AMX_STORE(3, sums[3]);
    for (int i = 0; i < 2 * AMX_ROWS && row + i < job->rows && (two || i < AMX_ROWS); i++)
        for (int t = 0; t < tiles; t++) {
            __m512i total = _mm512_load_si512(sums[2 * t + i / AMX_ROWS] + i % AMX_ROWS * TILE);
            const int32_t below = job->below[(row + i) * layer->group_count];
            if (form == BYTES) total = avx512_add(total, avx512_same(128 * below));
            else if (form == PLANES) total = avx512_add(_mm512_slli_epi32(total, 5), avx512_same(-15 * below));
            avx512_finish(job, row + i, tile + t * apart, &total, form == PLANES);
        }
}

/* Weights are expanded again for every 32 rows. */
AMX_INLINE void amx_tiles_of(const w4a8_job *job, int64_t start, int64_t stop, const int form) {
    const int64_t padded = padded_rows(job->rows), share = (stop - start) / 2;
    int64_t configured = 0;
    for (int64_t i = 0; i < stop - start - share; i++)
        for (int64_t row = 0; row < padded; row += 2 * AMX_ROWS) {
            const int64_t left = padded - row, rows = left < 2 * AMX_ROWS ? left : 2 * AMX_ROWS;
            const int pair = i < share, two = rows > AMX_ROWS;
            const int64_t tile = pair ? start + i : stop - 1;
            if (rows != configured) amx_configure(configured = rows);
            if (pair && two) amx_block(job, row, tile, share, 1, 2, form);
            else if (pair) amx_block(job, row, tile, share, 0, 2, form);
            else if (two) amx_block(job, row, tile, 0, 1, 1, form);
            else amx_block(job, row, tile, 0, 0, 1, form);
        }
    amx_release();
}

/* Separate functions, because register allocation is worse in very long ones. */
AMX_TARGET static NOINLINE void amx_grains(const w4a8_job *job, int64_t start, int64_t stop) {
    amx_tiles_of(job, start, stop, GRAINS);
}
AMX_TARGET static NOINLINE void amx_bytes(const w4a8_job *job, int64_t start, int64_t stop) {
    amx_tiles_of(job, start, stop, BYTES);
}
AMX_TARGET static NOINLINE void amx_planes(const w4a8_job *job, int64_t start, int64_t stop) {
    amx_tiles_of(job, start, stop, PLANES);
}

/* See VEC(tiles) in w4a8_rows.h. */
static void amx_tiles(const w4a8_job *job, int64_t start, int64_t stop) {
    static void (*const of[])(const w4a8_job *, int64_t, int64_t) = {amx_grains, amx_bytes, amx_planes};
    of[job->layer->form](job, start, stop);
}
#endif
