/* A W4A8 layer, as w4a8_op.c fills it in, and one product of it: what lies where. */
#ifndef TERSELY_W4A8_H
#define TERSELY_W4A8_H

#include "numbers.h"

enum {
    TILE = 16, /* outputs whose codes lie side by side */
    LINE = 64, /* bytes of one step along the inputs: a tile of 8 inputs in 4 bits (or halves of bytes), or of 4 in 8 bits */
    MOST_ROWS = 8,
    DEEPEST = 1 << 16 /* inputs, as ../w4a8_layout.py has it */
};

/* How weights lie: 4 bits in two grains, bytes, or the high and the low halves of bytes apart. */
enum { GRAINS, BYTES, PLANES };

typedef struct w4a8_layer {
    /* Codes [tiles][lines][LINE], of PLANES two of them, high halves first; groups [tiles][group_count][2][TILE] of GRAINS,
     * fine scales and zeros; channel_scale [outputs]; input_scale [columns] or NULL; bias [outputs], of any kind, or NULL. */
    const uint8_t *codes, *groups;
    const float *channel_scale, *input_scale;
    const void *bias;
    int64_t form, bias_kind, columns, outputs, lines, group_count, level;
    float margin; /* of PLANES: a tile this much below its row's highest is not worked out by low halves */
    const struct w4a8_layer *beside; /* on the same inputs, its outputs behind these; or NULL */
} w4a8_layer;

/* How threads share so many rows or tiles: `part` at a time, which are taken from `next` on. On a line of its own, which
 * threads take from each other. */
typedef struct {
    int64_t count, part, next, done;
} __attribute__((aligned(LINE))) shares;

typedef struct {
    const w4a8_layer *layer;
    /* Activations: rows of `columns` numbers, `stride` numbers from row to row. Results: [rows][outputs] of the same kind,
     * `out_stride` numbers from row to row. */
    const void *x;
    void *out;
    int64_t kind, rows, stride, out_stride;
    /* Quantized rows [padded rows][depth], a float of each row, and minus the sums of the groups [padded rows][group_count].
     * Of PLANES also the highest result of each row's tiles by high halves alone [rows][tiles], and what a tile of each
     * row has to reach to be worked out by both [rows]. */
    int8_t *x8;
    float *row_scale;
    int32_t *below;
    float *tops, *least;
    shares rows_shared, tiles_shared;
} w4a8_job;

/* Calls `work` in so many threads at once, as GOMP_parallel of an OpenMP library does. */
typedef void parallel(void (*work)(void *), void *shared, unsigned threads, unsigned flags);

EXPORT int64_t tersely_w4a8_level(void);
EXPORT int64_t tersely_w4a8_has_amx(void);
EXPORT int64_t tersely_w4a8_amx_agrees(void);
EXPORT int64_t tersely_w4a8_room(const w4a8_layer *layer, int64_t rows);
EXPORT void tersely_w4a8_run(
    const w4a8_layer *layer, const void *x, int64_t kind, int64_t rows, int64_t stride, void *out, char *room, parallel *run,
    int64_t threads
);

/* Inputs with the padding that fills the last group. */
INLINE int64_t depth_of(const w4a8_layer *layer) { return layer->lines * (layer->form == BYTES ? 4 : 8); }

INLINE int64_t tiles_of(const w4a8_layer *layer) { return (layer->outputs + TILE - 1) / TILE; }

/* Rows are worked on in blocks of MOST_ROWS; the last one is filled up to the next power of two. */
INLINE int64_t padded_rows(int64_t rows) {
    int64_t rest = rows % MOST_ROWS, whole = rows - rest;
    return whole + (rest > 4 ? 8 : rest > 2 ? 4 : rest);
}

INLINE uint16_t bfloat_of(float value) {
    uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u); /* no number stays none */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

INLINE uint16_t half_of(float value) {
    uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (size >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 rounds to infinity */
    if (size >= 0x38800000u) return (uint16_t)(sign | (size + 0xfffu + (size >> 13 & 1u) - (112u << 23)) >> 13);
    return (uint16_t)(sign | (bits_of_float(float_of_bits(size) + 0.5f) - 0x3f000000u)); /* a step from 0.5 on is 2^-24 */
}

#endif
