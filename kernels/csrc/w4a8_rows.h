/* Quantizing activations and multiplying, for w4a8.c, once for each kind of vector. VEC(name) names what vec_*.h and
 * ints_*.h define for it, VEC_TARGET is what its functions need of the processor.
 *
 * A block of rows is multiplied with a few tiles at a time. Within a group only integers occur: the sum of code times
 * activation starts at minus zero times the sum of the activations, and is multiplied by the group's fine scale; these
 * products are added up over the groups. The scales in floating point come after all groups, once. No sum leaves 32
 * bits: a fine scale times (code - zero) fits into 8 bits, so of GRAINS and BYTES 2^31 / 127^2 inputs are allowed, and of
 * PLANES, whose doubled preview is up to 32 * 8 times an activation, 2^31 / (256 * 127); ../w4a8_layout.py holds both.
 *
 * Bytes in two planes are first taken for the middle of what their high half leaves open, 16 (high - 8) + 7.5, and twice
 * that is a whole number. A tile that may be among a row's highest is then worked out by both halves. */

/* One row of 8-bit activations: x / scale with scale = max |x| / 127, and the sum of each group. */
VEC_TARGET INLINE void VEC(quantize_row)(const w4a8_job *job, int64_t row, int kind) {
    const int64_t columns = job->layer->columns, depth = depth_of(job->layer), length = depth / job->layer->group_count;
    const char *from = (const char *)job->x + row * job->stride * size_of(kind);
    float *room = job->room;
    int64_t whole = columns - columns % VEC(width);
    for (int64_t i = 0; i < whole; i += VEC(width)) VEC(store)(room + i, VEC(load)(from, i, kind));
    for (int64_t i = whole; i < columns; i++) room[i] = number_at(from, i, kind);
    if (job->layer->input_scale)
        for (int64_t i = 0; i < columns; i++) room[i] *= job->layer->input_scale[i];
    int32_t highest = 0; /* as bits: what is no number is higher than infinity, and that than all numbers */
    for (int64_t i = 0; i < columns; i++) {
        int32_t bits;
        memcpy(&bits, room + i, sizeof bits);
        bits &= 0x7fffffff;
        highest = bits > highest ? bits : highest;
    }
    float most = float_of_bits((uint32_t)highest);
    int usable = most >= X_LEAST && most <= FLT_MAX;
    float inverse = usable ? 127.0f / most : 0.0f;
    job->row_scale[row] = usable ? most / 127.0f : most <= FLT_MAX ? 0.0f : NAN;
    int8_t *to = job->x8 + row * depth;
    if (usable)
        for (int64_t i = 0; i < columns; i++) to[i] = (int8_t)rintf(room[i] * inverse);
    else memset(to, 0, (size_t)columns);
    memset(to + columns, 0, (size_t)(depth - columns));
    for (int64_t g = 0; g < job->layer->group_count; g++) {
        int32_t sum = 0;
        for (int64_t i = g * length; i < (g + 1) * length; i++) sum += to[i];
        job->sums[row * job->layer->group_count + g] = sum;
    }
}

VEC_TARGET static void VEC(quantize)(const w4a8_job *job) {
    for (int64_t row = 0; row < job->rows; row++) {
        /* The kind as a constant: each call is compiled for one. */
        if (job->kind == FLOAT32) VEC(quantize_row)(job, row, FLOAT32);
        else if (job->kind == BFLOAT16) VEC(quantize_row)(job, row, BFLOAT16);
        else VEC(quantize_row)(job, row, FLOAT16);
    }
    int64_t depth = depth_of(job->layer), missing = padded_rows(job->rows) - job->rows;
    memset(job->x8 + job->rows * depth, 0, (size_t)(missing * depth));
    memset(job->sums + job->rows * job->layer->group_count, 0, (size_t)(missing * job->layer->group_count) * sizeof *job->sums);
}

/* `count` outputs of one row from `first` on; `totals` are their integers, of a preview twice that. */
VEC_TARGET INLINE void VEC(finish_some)(
    const w4a8_job *job, int64_t row, int64_t first, const int32_t *totals, const int preview, const int64_t count
) {
    const float *channel_scale = job->layer->channel_scale + first, scale = job->row_scale[row];
    float values[TILE] = {0};
    for (int64_t i = 0; i < count; i++) values[i] = (float)totals[i] * (preview ? 0.5f : 1.0f) * channel_scale[i] * scale;
    if (job->layer->bias)
        for (int64_t i = 0; i < count; i++) values[i] += number_at(job->layer->bias, first + i, (int)job->layer->bias_kind);
    if (preview) {
        /* Outputs without a scale, such as those that fill up a vocabulary, have nothing to refine, and do not count. */
        float counted[TILE];
        for (int64_t i = 0; i < TILE; i++) counted[i] = i < count && channel_scale[i] != 0.0f ? values[i] : -INFINITY;
        VEC(vec) top = VEC(set)(-INFINITY);
        for (int64_t i = 0; i < TILE; i += VEC(width)) top = VEC(max)(VEC(load)((const char *)counted, i, FLOAT32), top);
        job->tops[row * tiles_of(job->layer) + first / TILE] = VEC(highest)(top);
    }
    if (job->out_kind == FLOAT32) {
        memcpy((float *)job->out + row * job->out_stride + first, values, (size_t)count * sizeof *values);
        return;
    }
    uint16_t halves[TILE];
    for (int64_t i = 0; i < TILE; i++) halves[i] = bfloat_of(values[i]);
    memcpy((uint16_t *)job->out + row * job->out_stride + first, halves, (size_t)count * sizeof *halves);
}

/* The outputs of a tile that there are. */
VEC_TARGET INLINE void VEC(finish)(
    const w4a8_job *job, int64_t row, int64_t tile, const VEC(ints) *total, const int preview
) {
    int32_t totals[TILE];
    memcpy(totals, total, sizeof totals);
    int64_t first = tile * TILE, left = job->layer->outputs - first;
    if (left >= TILE) VEC(finish_some)(job, row, first, totals, preview, TILE);
    else VEC(finish_some)(job, row, first, totals, preview, left);
}

/* `rows` rows from `row` on times `tiles` tiles from `tile` on, `apart` tiles from each other; rows, tiles and form are
 * constants where this is used. */
VEC_TARGET INLINE void VEC(block)(
    const w4a8_job *job, int64_t row, int64_t tile, int64_t apart, const int rows, const int tiles, const int form
) {
    enum { parts = VEC(parts), most = MOST_ROWS * VEC(most_tiles) * VEC(parts) };
    const int64_t lines = job->layer->lines, groups = job->layer->group_count, per_group = lines / groups;
    const int64_t depth = depth_of(job->layer);
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
                    VEC(ints) below = VEC(same)(-job->sums[(row + r) * groups + g]);
                    sum[(r * tiles + t) * parts + p] = form == GRAINS ? VEC(mul_16)(zero, below) : VEC(mul)(zero, below);
                }
            }
        for (int64_t line = g * per_group; line < (g + 1) * per_group; line++) {
            VEC(ints) words[VEC(most_tiles) * VEC(parts)];
            UNROLLED
            for (int i = 0; i < tiles * parts; i++) {
                const uint8_t *at = codes + (i / parts * apart * lines + line) * LINE + i % parts * LINE / parts;
                VEC(prefetch)((uintptr_t)at + AHEAD);
                words[i] = VEC(words)(at);
            }
            /* Rows outside: each activation is loaded once for all tiles, and is not kept. */
            UNROLLED
            for (int r = 0; r < rows; r++) {
                const int8_t *activations = x + r * depth + line * (form == BYTES ? 4 : 8);
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
                    VEC(ints) middle = VEC(same)(15 * job->sums[(row + r) * groups + g]);
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

/* One row times one tile by both halves of its bytes. */
VEC_TARGET static void VEC(both)(const w4a8_job *job, int64_t row, int64_t tile) {
    enum { parts = VEC(parts) };
    const int64_t lines = job->layer->lines;
    const uint8_t *high = job->layer->codes + tile * lines * LINE, *low = high + tiles_of(job->layer) * lines * LINE;
    const int8_t *x = job->x8 + row * depth_of(job->layer);
    VEC(ints) highs[parts], lows[parts];
    for (int p = 0; p < parts; p++) {
        highs[p] = VEC(same)(-8 * job->sums[row]);
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

/* The tiles that may be among the highest of a row. */
VEC_TARGET static void VEC(refine)(const w4a8_job *job, int64_t start, int64_t stop) {
    for (int64_t tile = start; tile < stop; tile++)
        for (int64_t row = 0; row < job->rows; row++)
            if (job->tops[row * tiles_of(job->layer) + tile] >= job->least[row]) VEC(both)(job, row, tile);
}

/* All rows times `tiles` tiles, `apart` from each other. */
VEC_TARGET INLINE void VEC(strip)(
    const w4a8_job *job, int64_t tile, int64_t apart, const int tiles, const int form
) {
    int64_t padded = padded_rows(job->rows), row = 0;
    for (; row + 8 <= padded; row += 8) VEC(block)(job, row, tile, apart, 8, tiles, form);
    if (padded - row == 4) VEC(block)(job, row, tile, apart, 4, tiles, form);
    else if (padded - row == 2) VEC(block)(job, row, tile, apart, 2, tiles, form);
    else if (padded - row == 1) VEC(block)(job, row, tile, apart, 1, tiles, form);
}

/* Form and tiles as constants: each of these is compiled for one of each, and by itself, since registers are allotted
 * worse in functions that are very long. */
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

/* As many streams as tiles are worked on at a time, each from the first to the last of its share: what comes next is
 * where a stream goes on, also from tile to tile, and so is fetched ahead. */
VEC_TARGET static void VEC(tiles)(const w4a8_job *job, int64_t start, int64_t stop) {
    typedef void on_strip(const w4a8_job *job, int64_t tile, int64_t apart);
    static on_strip *const strips[] = {VEC(strip_grains), VEC(strip_bytes), VEC(strip_planes)};
    static on_strip *const single[] = {VEC(tile_grains), VEC(tile_bytes), VEC(tile_planes)};
    const int64_t share = (stop - start) / VEC(most_tiles), rest = start + share * VEC(most_tiles);
    for (int64_t tile = start; tile < start + share; tile++) strips[job->layer->form](job, tile, share);
    for (int64_t tile = rest; tile < stop; tile++) single[job->layer->form](job, tile, 1);
}
