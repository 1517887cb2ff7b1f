/* The data structures of a W4A8 layer, which w4a8_op.c fills in, and of one matrix product. */
#ifndef TERSELY_W4A8_H
#define TERSELY_W4A8_H

#include "numbers.h"

enum {
    TILE = 16, /* outputs whose codes are interleaved */
    LINE = 64, /* bytes of one step along the inputs: a tile of 8 inputs in 4 bits (or halves of bytes), or of 4 in 8 bits */
    MOST_ROWS = 8,
    DEEPEST = 1 << 16 /* most inputs, as in ../w4a8_layout.py */
};

/* The layouts of weights: dual-grained 4 bits, bytes, or planes of the high and the low halves of bytes. */
enum { GRAINS, BYTES, PLANES };

typedef struct w4a8_layer {
    /* Codes [tiles][lines][LINE], for PLANES twice, high halves first; for GRAINS, groups [tiles][group_count][2][TILE], fine
     * scales and zeros; channel_scale [outputs]; input_scale [columns] or NULL; bias [outputs], of any kind, or NULL. */
    const uint8_t *codes, *groups;
    const float *channel_scale, *input_scale;
    const void *bias;
    int64_t form, bias_kind, columns, outputs, lines, group_count, level;
    float margin; /* PLANES: tiles whose preview is further than this below the row's maximum are not refined */
    const struct w4a8_layer *next; /* a layer on the same inputs whose outputs follow these; or NULL */
} w4a8_layer;

/* How threads share rows or tiles: each takes `part` of them, starting at `next`, until none are left. Aligned to a cache
 * line, since threads contend for it. */
typedef struct {
    int64_t count, part, next, done;
} __attribute__((aligned(LINE))) shares;

typedef struct {
    const w4a8_layer *layer;
    /* Activations: rows of `columns` elements with a stride of `stride` elements. Results: [rows][outputs] of the same kind,
     * with a stride of `out_stride` elements. */
    const void *x;
    void *out;
    int64_t kind, rows, stride, out_stride;
    /* Quantized rows [padded rows][depth], the scale of each row, and the negative sums of the groups [padded
     * rows][group_count]. For PLANES also the maximum preview of each row's tiles [rows][tiles], and the threshold from which
     * a tile of a row is refined [rows]. */
    int8_t *x8;
    float *row_scale;
    int32_t *below;
    float *tops, *least;
    shares rows_shared, tiles_shared;
} w4a8_job;

/* Calls `work` in several threads at once, like GOMP_parallel of an OpenMP library. */
typedef void parallel(void (*work)(void *), void *shared, unsigned threads, unsigned flags);

EXPORT int64_t tersely_w4a8_level(void);
EXPORT int64_t tersely_w4a8_has_amx(void);
EXPORT int64_t tersely_w4a8_amx_agrees(void);
EXPORT int64_t tersely_w4a8_room(const w4a8_layer *layer, int64_t rows);
EXPORT void tersely_w4a8_run(
    const w4a8_layer *layer, const void *x, int64_t kind, int64_t rows, int64_t stride, void *out, char *room, parallel *run,
    int64_t threads
);

/* Inputs, including the padding of the last group. */
INLINE int64_t depth_of(const w4a8_layer *layer) { return layer->lines * (layer->form == BYTES ? 4 : 8); }

INLINE int64_t tiles_of(const w4a8_layer *layer) { return (layer->outputs + TILE - 1) / TILE; }

/* Rows are processed in blocks of MOST_ROWS; the last block is padded to the next power of two. */
INLINE int64_t padded_rows(int64_t rows) {
    int64_t rest = rows % MOST_ROWS, whole = rows - rest;
    return whole + (rest > 4 ? 8 : rest > 2 ? 4 : rest);
}

INLINE uint16_t bfloat_of(float value) {
    uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u); /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

INLINE uint16_t half_of(float value) {
    uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (size >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 rounds to infinity */
    if (size >= 0x38800000u) return (uint16_t)(sign | (size + 0xfffu + (size >> 13 & 1u) - (112u << 23)) >> 13);
    return (uint16_t)(sign | (bits_of_float(float_of_bits(size) + 0.5f) - 0x3f000000u)); /* near 0.5, floats are 2^-24 apart */
}

#endif
