/* The pass of signals.c over rows. Included once for each set of vector instructions: VEC(name) is a name that vec_*.h
 * defines for it, and VEC_TARGET the target attribute of its functions.
 *
 * A row is read in blocks that stay in the L1 cache. Each block is processed twice: first for its maximum; then the sums so
 * far are rescaled to the new maximum, and its exponentials are added. So memory is read once, with one exponential per
 * element (the online softmax of Milakov and Gimelshein, arXiv:1805.02867, by blocks). Sums within a block are floats, sums
 * over blocks doubles. */

typedef struct {
    VEC(vec) first[UNROLL], second[UNROLL]; /* the two highest values of each lane */
    double sum, weighted;                   /* of exp(x - top) and of exp(x - top) * (x - top) */
    float top;
} VEC(state);

VEC_TARGET INLINE void VEC(block)(VEC(state) * state, const char *from, int64_t count, int kind) {
    const int64_t step = UNROLL * VEC(width);
    for (int64_t i = 0; i < count; i += step)
        for (int u = 0; u < UNROLL; u++) {
            VEC(vec) x = VEC(load)(from, i + u * VEC(width), kind);
            state->second[u] = VEC(max)(state->second[u], VEC(min)(x, state->first[u]));
            state->first[u] = VEC(max)(x, state->first[u]);
        }
    VEC(vec) highest = state->first[0];
    for (int u = 1; u < UNROLL; u++) highest = VEC(max)(highest, state->first[u]);
    float top = VEC(highest)(highest);
    if (top > state->top) {
        double down = (double)state->top - (double)top, scale = exp(down);
        state->weighted = scale * (state->weighted + down * state->sum);
        state->sum *= scale;
        state->top = top;
    }
    VEC(vec) tops = VEC(set)(state->top), sum = VEC(set)(0.0f), weighted = sum;
    uintptr_t next = (uintptr_t)from + count * size_of(kind);
    for (int64_t i = 0; i < count; i += step) {
        for (int64_t b = 0; b < step * size_of(kind); b += LINE) VEC(prefetch)(next + i * size_of(kind) + b);
        for (int u = 0; u < UNROLL; u++)
            VEC(add_exp)(VEC(load)(from, i + u * VEC(width), kind), tops, &sum, &weighted);
    }
    state->sum += VEC(sum)(sum);
    state->weighted += VEC(sum)(weighted);
}

VEC_TARGET INLINE void VEC(row)(const char *from, int64_t columns, int kind, float *out, int64_t out_stride) {
    enum { step = UNROLL * VEC(width) };
    VEC(state) state = {.sum = 0, .weighted = 0, .top = -FLT_MAX}; /* not -inf: -inf - -inf would be NaN */
    for (int u = 0; u < UNROLL; u++) state.first[u] = state.second[u] = VEC(set)(-INFINITY);
    int64_t whole = columns - columns % step;
    for (int64_t i = 0; i < whole; i += BLOCK)
        VEC(block)(&state, from + i * size_of(kind), whole - i < BLOCK ? whole - i : BLOCK, kind);
    if (whole < columns) {
        float rest[step];
        for (int64_t i = 0; i < step; i++)
            rest[i] = whole + i < columns ? number_at(from, whole + i, kind) : -INFINITY;
        VEC(block)(&state, (const char *)rest, step, FLOAT32);
    }
    float lanes[2 * step];
    for (int u = 0; u < UNROLL; u++) {
        VEC(store)(lanes + u * VEC(width), state.first[u]);
        VEC(store)(lanes + step + u * VEC(width), state.second[u]);
    }
    finish(lanes, 2 * step, state.sum, state.weighted, state.top, out, out_stride);
}

VEC_TARGET static void VEC(rows)(
    const char *from, int kind, int64_t rows, int64_t columns, int64_t stride, float *out, int64_t out_stride
) {
    for (int64_t r = 0; r < rows; r++, from += stride * size_of(kind), out++) {
        /* Constant kinds, so that each call is specialized. */
        if (kind == FLOAT32) VEC(row)(from, columns, FLOAT32, out, out_stride);
        else if (kind == BFLOAT16) VEC(row)(from, columns, BFLOAT16, out, out_stride);
        else VEC(row)(from, columns, FLOAT16, out, out_stride);
    }
}
