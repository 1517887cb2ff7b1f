/* Quantization of activations and multiplication, for w4a8.c. Included once for each set of vector instructions: VEC(name)
 * is a name that vec_*.h or ints_*.h defines for it, and VEC_TARGET the target attribute of its functions.
 *
 * A block of rows is multiplied with a few tiles at a time. All sums are in integers: within a group, the sum of code times
 * activation starts at minus the zero times the sum of the activations; it is multiplied by the group's fine scale and added
 * to the total. The floating-point scales are applied once, after all groups. No sum overflows 32 bits: a fine scale times
 * (code - zero) fits into 8 bits, which allows 2^31 / 127^2 inputs with GRAINS and BYTES, and the doubled preview of PLANES
 * is up to 256 times an activation, which allows 2^31 / (256 * 127); ../w4a8_layout.py enforces both.
 *
 * The preview of a byte in planes is the middle of the range that its high half leaves open, 16 (high - 8) + 7.5; twice that
 * is an integer. Tiles whose preview is close to the row's maximum are then refined with both halves. */

/* A vector of a row, times the input scales unless `by` is NULL. */
VEC_TARGET INLINE VEC(vec) VEC(smoothed)(const char *from, const float *by, int64_t i, int kind) {
    VEC(vec) x = VEC(load)(from, i, kind);
    if (by) x *= VEC(load)((const char *)by, i, FLOAT32);
    return x;
}

/* The maximum of |x| as bits, in which NaN is above infinity, and infinity above all numbers. */
VEC_TARGET INLINE uint32_t VEC(most)(const char *from, const float *by, int64_t columns, int kind) {
    const int64_t whole = columns - columns % VEC(width);
    VEC(ints) highest = VEC(same)(0);
    for (int64_t i = 0; i < whole; i += VEC(width)) highest = VEC(max_bits)(highest, VEC(smoothed)(from, by, i, kind));
    uint32_t most = (uint32_t)VEC(highest_int)(highest);
    for (int64_t i = whole; i < columns; i++) {
        uint32_t bits = bits_of_float(smoothed_at(from, by, i, kind)) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

/* Quantizes one row to x / scale with scale = max |x| / 127, and computes the negative sum of each group. */
VEC_TARGET INLINE void VEC(quantize_row)(const w4a8_job *job, int64_t row, int kind) {
    const int64_t columns = job->layer->columns, depth = depth_of(job->layer), groups = job->layer->group_count;
    const int64_t whole = columns - columns % VEC(width), length = depth / groups;
    const char *from = (const char *)job->x + row * job->stride * size_of(kind);
    const float *by = job->layer->input_scale;
    const float most = float_of_bits(VEC(most)(from, by, columns, kind));
    const int usable = most >= X_LEAST && most <= FLT_MAX;
    const float inverse = usable ? 127.0f / most : 0.0f;
    int8_t *to = job->x8 + row * depth;
    int32_t *below = job->below + row * groups;
    job->row_scale[row] = usable ? most / 127.0f : most <= FLT_MAX ? 0.0f : NAN;
    memset(to + (usable ? columns : 0), 0, (size_t)(usable ? depth - columns : depth));
    memset(below, 0, (size_t)groups * sizeof *below);
    if (!usable) return;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t end = (g + 1) * length, stop = end < whole ? end : whole;
        VEC(ints) sum = VEC(same)(0);
        for (int64_t i = g * length; i < stop; i += VEC(width)) {
            VEC(ints) x = VEC(rounded)(VEC(smoothed)(from, by, i, kind) * VEC(set)(inverse));
            VEC(store_bytes)(to + i, x);
            sum = VEC(add)(sum, x);
        }
        below[g] = -VEC(total)(sum);
    }
    for (int64_t i = whole; i < columns; i++) {
        to[i] = (int8_t)rintf(smoothed_at(from, by, i, kind) * inverse);
        below[i / length] -= to[i];
    }
}

/* Rows after the last one, which pad a block, are zeros. */
VEC_TARGET static void VEC(quantize)(const w4a8_job *job, int64_t start, int64_t stop) {
    const int64_t depth = depth_of(job->layer), groups = job->layer->group_count;
    for (int64_t row = start; row < stop; row++) {
        if (row >= job->rows) {
            memset(job->x8 + row * depth, 0, (size_t)depth);
            memset(job->below + row * groups, 0, (size_t)groups * sizeof *job->below);
        }
        /* Constant kinds, so that each call is specialized. */
        else if (job->kind == FLOAT32) VEC(quantize_row)(job, row, FLOAT32);
        else if (job->kind == BFLOAT16) VEC(quantize_row)(job, row, BFLOAT16);
        else VEC(quantize_row)(job, row, FLOAT16);
    }
}

/* Converts a tile's integer totals of one row to sixteen floats; for a preview, half of that. */
VEC_TARGET INLINE void VEC(results)(
    const w4a8_job *job, int64_t row, int64_t tile, const VEC(ints) *totals, const int preview,
    const float *channel_scale, const char *bias, VEC(vec) *values
) {
    const VEC(vec) scale = VEC(set)(job->row_scale[row]);
    VEC(vec) top = VEC(set)(-INFINITY);
    for (int p = 0; p < VEC(parts); p++) {
        VEC(vec) unit = VEC(load)((const char *)channel_scale, p * VEC(width), FLOAT32);
        values[p] = VEC(floats)(totals[p]) * VEC(set)(preview ? 0.5f : 1.0f) * unit * scale;
        if (bias) values[p] += VEC(load)(bias, p * VEC(width), (int)job->layer->bias_kind);
        /* Outputs of scale 0, such as vocabulary padding, have nothing to refine and are ignored. */
        if (preview) top = VEC(max)(VEC(where_scaled)(unit, values[p], VEC(set)(-INFINITY)), top);
    }
    if (preview) job->tops[row * tiles_of(job->layer) + tile] = VEC(highest)(top);
}

VEC_TARGET INLINE void VEC(store_tile)(const VEC(vec) *values, void *to, int kind) {
    for (int p = 0; p < VEC(parts); p++) {
        if (kind == FLOAT32) VEC(store)((float *)to + p * VEC(width), values[p]);
        else if (kind == BFLOAT16) VEC(store_bfloats)((uint16_t *)to + p * VEC(width), values[p]);
        else VEC(store_halves)((uint16_t *)to + p * VEC(width), values[p]);
    }
}

/* The last tile if it has fewer outputs: inputs and outputs go through full-sized buffers. */
VEC_TARGET static NOINLINE void VEC(finish_last)(
    const w4a8_job *job, int64_t row, int64_t tile, const VEC(ints) *totals, const int preview
) {
    const w4a8_layer *layer = job->layer;
    const int64_t first = tile * TILE;
    const size_t left = (size_t)(layer->outputs - first), width = (size_t)size_of((int)layer->bias_kind);
    float scales[TILE] = {0}, bias[TILE] = {0}, out[TILE];
    VEC(vec) values[VEC(parts)];
    memcpy(scales, layer->channel_scale + first, left * sizeof *scales);
    if (layer->bias) memcpy(bias, (const char *)layer->bias + (size_t)first * width, left * width);
    VEC(results)(job, row, tile, totals, preview, scales, layer->bias ? (const char *)bias : NULL, values);
    VEC(store_tile)(values, out, (int)job->kind);
    const int64_t size = size_of((int)job->kind);
    memcpy((char *)job->out + (row * job->out_stride + first) * size, out, left * (size_t)size);
}

/* Stores the outputs of a tile. */
VEC_TARGET INLINE void VEC(finish)(
    const w4a8_job *job, int64_t row, int64_t tile, const VEC(ints) *totals, const int preview
) {
    const w4a8_layer *layer = job->layer;
    const int64_t first = tile * TILE;
    if (layer->outputs - first < TILE) {
        VEC(finish_last)(job, row, tile, totals, preview);
        return;
    }
    const char *bias = layer->bias ? (const char *)layer->bias + first * size_of((int)layer->bias_kind) : NULL;
    VEC(vec) values[VEC(parts)];
    VEC(results)(job, row, tile, totals, preview, layer->channel_scale + first, bias, values);
    VEC(store_tile)(values, (char *)job->out + (row * job->out_stride + first) * size_of((int)job->kind), (int)job->kind);
}

/* Multiplies `rows` rows, from `row` on, by `tiles` tiles, from `tile` on with a distance of `apart` tiles. `rows`, `tiles`
 * and `form` are constants in all calls. */
VEC_TARGET INLINE void VEC(block)(
    const w4a8_job *job, int64_t row, int64_t tile, int64_t apart, const int rows, const int tiles, const int form
) {
    enum { parts = VEC(parts), most = MOST_ROWS * VEC(most_tiles) * VEC(parts) };
    const int64_t lines = job->layer->lines, groups = job->layer->group_count, per_group = lines / groups;
    const int64_t depth = depth_of(job->layer), step = form == BYTES ? 4 : 8; /* inputs of a line */
    const uint8_t *codes = job->layer->codes + tile * lines * LINE;
    const int8_t *x = job->x8 + row * depth;
    VEC(ints) total[most], sum[most];
    UNROLLED
    for (int i = 0; i < rows * tiles * parts; i++) total[i] = VEC(same)(0);
    for (int64_t g = 0; g < groups; g++) {
        const uint8_t *about = form == GRAINS ? job->layer->groups + (tile * groups + g) * 2 * TILE : NULL;
        UNROLLED
        for (int t = 0; t < tiles; t++)
            UNROLLED
            for (int p = 0; p < parts; p++) {
                VEC(ints) zero = VEC(same)(form == BYTES ? 128 : 8);
                if (form == GRAINS) zero = VEC(bytes)(about + t * apart * groups * 2 * TILE + TILE + p * TILE / parts);
                UNROLLED
                for (int r = 0; r < rows; r++) {
                    VEC(ints) below = VEC(same)(job->below[(row + r) * groups + g]);
                    sum[(r * tiles + t) * parts + p] = form == GRAINS ? VEC(mul_16)(zero, below) : VEC(mul)(zero, below);
                }
            }
        for (int64_t line = g * per_group; line < (g + 1) * per_group; line++) {
            VEC(ints) words[VEC(most_tiles) * VEC(parts)];
            UNROLLED
            for (int i = 0; i < tiles * parts; i++) {
                const uint8_t *at = codes + (i / parts * apart * lines + line) * LINE + i % parts * LINE / parts;
                /* With one row, the processor's own prefetching suffices. */
                if (rows > 1) VEC(prefetch)((uintptr_t)at + AHEAD);
                words[i] = VEC(words)(at);
            }
            /* The loop over rows is outside, so that each activation is loaded once for all tiles. */
            UNROLLED
            for (int r = 0; r < rows; r++) {
                const int8_t *activations = x + r * depth + line * step;
                /* In deep tiles, codes have evicted the activations from the L1 cache since the previous tile. With
                 * more rows there is enough other work to hide the latency. */
                if (rows == 1 && line % (LINE / step) == 0) VEC(prefetch)((uintptr_t)activations + X_AHEAD);
                UNROLLED
                for (int i = 0; i < tiles * parts; i++) {
                    VEC(ints) *to = sum + r * tiles * parts + i;
                    if (form != BYTES) {
                        *to = VEC(dot)(*to, VEC(low)(words[i]), VEC(four)(activations));
                        *to = VEC(dot)(*to, VEC(high)(words[i]), VEC(four)(activations + 4));
                    } else *to = VEC(dot_bytes)(*to, words[i], VEC(four)(activations));
                }
            }
        }
        UNROLLED
        for (int t = 0; t < tiles; t++)
            UNROLLED
            for (int p = 0; p < parts; p++) {
                VEC(ints) fine = VEC(same)(1);
                if (form == GRAINS) fine = VEC(bytes)(about + t * apart * groups * 2 * TILE + p * TILE / parts);
                UNROLLED
                for (int r = 0; r < rows; r++) {
                    int i = (r * tiles + t) * parts + p;
                    VEC(ints) middle = VEC(same)(-15 * job->below[(row + r) * groups + g]);
                    if (form == GRAINS) total[i] = VEC(add)(total[i], VEC(mul)(sum[i], fine));
                    else if (form == BYTES) total[i] = sum[i];
                    else total[i] = VEC(add)(VEC(mul)(sum[i], VEC(same)(32)), middle);
                }
            }
    }
    for (int r = 0; r < rows && row + r < job->rows; r++)
        for (int t = 0; t < tiles; t++)
            VEC(finish)(job, row + r, tile + t * apart, total + (r * tiles + t) * parts, form == PLANES);
}

/* Multiplies one row by one tile, using both halves of its bytes. */
VEC_TARGET static void VEC(both)(const w4a8_job *job, int64_t row, int64_t tile) {
    enum { parts = VEC(parts) };
    const int64_t lines = job->layer->lines;
    const uint8_t *high = job->layer->codes + tile * lines * LINE, *low = high + tiles_of(job->layer) * lines * LINE;
    const int8_t *x = job->x8 + row * depth_of(job->layer);
    VEC(ints) highs[parts], lows[parts];
    for (int p = 0; p < parts; p++) {
        highs[p] = VEC(same)(8 * job->below[row]);
        lows[p] = VEC(same)(0);
    }
    for (int64_t line = 0; line < lines; line++) {
        UNROLLED
        for (int p = 0; p < parts; p++) {
            int64_t at = line * LINE + p * LINE / parts;
            VEC(ints) words = VEC(words)(high + at), rest = VEC(words)(low + at);
            highs[p] = VEC(dot)(highs[p], VEC(low)(words), VEC(four)(x + line * 8));
            highs[p] = VEC(dot)(highs[p], VEC(high)(words), VEC(four)(x + line * 8 + 4));
            lows[p] = VEC(dot)(lows[p], VEC(low)(rest), VEC(four)(x + line * 8));
            lows[p] = VEC(dot)(lows[p], VEC(high)(rest), VEC(four)(x + line * 8 + 4));
        }
    }
    for (int p = 0; p < parts; p++) highs[p] = VEC(add)(VEC(mul)(highs[p], VEC(same)(16)), lows[p]);
    VEC(finish)(job, row, tile, highs, 0);
}

/* Refines the tiles that reach the threshold of a row. */
VEC_TARGET static void VEC(refine)(const w4a8_job *job, int64_t start, int64_t stop) {
    for (int64_t tile = start; tile < stop; tile++)
        for (int64_t row = 0; row < job->rows; row++)
            if (job->tops[row * tiles_of(job->layer) + tile] >= job->least[row]) VEC(both)(job, row, tile);
}

/* Multiplies all rows by `tiles` tiles with a distance of `apart` tiles. */
VEC_TARGET INLINE void VEC(strip)(
    const w4a8_job *job, int64_t tile, int64_t apart, const int tiles, const int form
) {
    int64_t padded = padded_rows(job->rows), row = 0;
    for (; row + 8 <= padded; row += 8) VEC(block)(job, row, tile, apart, 8, tiles, form);
    if (padded - row == 4) VEC(block)(job, row, tile, apart, 4, tiles, form);
    else if (padded - row == 2) VEC(block)(job, row, tile, apart, 2, tiles, form);
    else if (padded - row == 1) VEC(block)(job, row, tile, apart, 1, tiles, form);
}

/* One function for each layout and number of tiles, because register allocation is worse in very long functions. */
#define STRIP(name, tiles, form) \
    VEC_TARGET static NOINLINE void VEC(name)(const w4a8_job *job, int64_t tile, int64_t apart) { \
        VEC(strip)(job, tile, apart, tiles, form); \
    }
STRIP(strip_grains, VEC(most_tiles), GRAINS)
STRIP(strip_bytes, VEC(most_tiles), BYTES)
STRIP(strip_planes, VEC(most_tiles), PLANES)
STRIP(tile_grains, 1, GRAINS)
STRIP(tile_bytes, 1, BYTES)
STRIP(tile_planes, 1, PLANES)
#undef STRIP

/* Processes several tiles at a time, each from a contiguous share of the tiles, so that memory is read in as many sequential
 * streams, which can be prefetched across tiles. */
VEC_TARGET static void VEC(tiles)(const w4a8_job *job, int64_t start, int64_t stop) {
    typedef void strip_function(const w4a8_job *job, int64_t tile, int64_t apart);
    static strip_function *const strips[] = {VEC(strip_grains), VEC(strip_bytes), VEC(strip_planes)};
    static strip_function *const single[] = {VEC(tile_grains), VEC(tile_bytes), VEC(tile_planes)};
    const int64_t share = (stop - start) / VEC(most_tiles), rest = start + share * VEC(most_tiles);
    for (int64_t tile = start; tile < start + share; tile++) strips[job->layer->form](job, tile, share);
    for (int64_t tile = rest; tile < stop; tile++) single[job->layer->form](job, tile, 1);
}
