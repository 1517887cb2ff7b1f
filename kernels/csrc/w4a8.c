/* Linear layers with dual-grained 4-bit or 8-bit weights and 8-bit activations; ../w4a8.py defines them. */

#include "w4a8.h"

#include <float.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>

#define X_LEAST 0x1p-100f /* a row whose maximum is below this counts as zeros: the inverse of its scale would overflow */
#define UNROLLED _Pragma("GCC unroll 16")
#define AHEAD 2048    /* prefetch distance for codes, in bytes */
#define X_AHEAD 128   /* for activations */
#define PATIENCE 1000 /* pauses before a waiting thread yields */
#if defined(__x86_64__)
#define PAUSE __builtin_ia32_pause()
#else
#define PAUSE __asm__ volatile("" ::: "memory")
#endif
#define WORTH (1 << 18) /* products per thread; fewer are not worth waking another thread for */

/* An element of a row, times its input scale unless `by` is NULL. */
INLINE float smoothed_at(const char *from, const float *by, int64_t i, int kind) {
    return number_at(from, i, kind) * (by ? by[i] : 1.0f);
}

#include "ints_any.h"
#define VEC(name) any_##name
#define VEC_TARGET
#include "w4a8_rows.h"
#undef VEC
#undef VEC_TARGET

#if defined(__x86_64__)
#include "ints_avx2.h"
#define VEC(name) avx2_##name
#define VEC_TARGET AVX2_TARGET
#include "w4a8_rows.h"
#undef VEC
#undef VEC_TARGET

#include "ints_avx512.h"
#define VEC(name) avx512_##name
#define VEC_TARGET VNNI_TARGET
#include "w4a8_rows.h"
#undef VEC
#undef VEC_TARGET

/* Other systems enable AMX differently, and older compilers do not support it. */
#if defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#define HAS_AMX
#include "w4a8_amx.h"
#endif
#endif

/* Calls the variant of a function for the vector instructions of a job. */
#if defined(__x86_64__)
#define BY_LEVEL(function, ...) \
    do { \
        if (job->layer->level >= AVX512) avx512_##function(__VA_ARGS__); \
        else if (job->layer->level == AVX2) avx2_##function(__VA_ARGS__); \
        else any_##function(__VA_ARGS__); \
    } while (0)
#else
#define BY_LEVEL(function, ...) any_##function(__VA_ARGS__)
#endif

static void multiply(const w4a8_job *job, int64_t start, int64_t stop) {
#ifdef HAS_AMX
    if (job->layer->level == AMX && job->rows > AMX_FEW) {
        amx_tiles(job, start, stop);
        return;
    }
#endif
    BY_LEVEL(tiles, job, start, stop);
}

static void refine(const w4a8_job *job, int64_t start, int64_t stop) { BY_LEVEL(refine, job, start, stop); }

static void quantize(const w4a8_job *job, int64_t start, int64_t stop) { BY_LEVEL(quantize, job, start, stop); }

/* Sets the threshold from which tiles are refined; infinity for rows of NaN, which have no maximum. */
static void set_least(const w4a8_job *job, int64_t start, int64_t stop) {
    const int64_t tiles = tiles_of(job->layer);
    for (int64_t row = start; row < stop && row < job->rows; row++) {
        float best = -INFINITY;
        for (int64_t tile = 0; tile < tiles; tile++) {
            float top = job->tops[row * tiles + tile];
            best = top > best ? top : best;
        }
        job->least[row] = best > -INFINITY ? best - job->layer->margin : INFINITY;
    }
}

typedef void range_function(const w4a8_job *job, int64_t start, int64_t stop);

/* The loop of each thread: takes parts until none are left, so that slower threads take fewer. */
static void take(const w4a8_job *job, shares *of, range_function *work, int64_t *done) {
    int64_t start;
    while ((start = __atomic_fetch_add(&of->next, of->part, __ATOMIC_RELAXED)) < of->count) {
        const int64_t stop = of->count - start < of->part ? of->count : start + of->part;
        work(job, start, stop);
        if (done) __atomic_fetch_add(done, stop - start, __ATOMIC_RELEASE);
    }
}

/* Waits until the other threads have finished the parts that they took. If there are more threads than processors, some of
 * them may not be running, hence the yield. */
static void wait_for(const int64_t *done, int64_t count) {
    for (int64_t turn = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < count; turn++) {
        if (turn < PATIENCE) PAUSE;
        else sched_yield();
    }
}

/* Runs a function on all rows, and then another one on all tiles. */
static void take_both(w4a8_job *job, range_function *on_rows, range_function *on_tiles) {
    take(job, &job->rows_shared, on_rows, &job->rows_shared.done);
    wait_for(&job->rows_shared.done, job->rows_shared.count);
    take(job, &job->tiles_shared, on_tiles, NULL);
}

static void multiply_quantized(void *job) { take_both(job, quantize, multiply); }
static void refine_highest(void *job) { take_both(job, set_least, refine); }

/* Chooses the size of a part, a multiple of `unit`: a few parts per thread, as many as balance the threads best. */
static shares shared_out(int64_t count, int64_t unit, int64_t threads) {
    shares of = {.count = count, .part = count};
    int64_t least = count;
    for (int64_t parts = 4 * threads; threads > 1 && parts <= 8 * threads; parts += threads) {
        const int64_t part = (count + parts * unit - 1) / (parts * unit) * unit;
        const int64_t most = (count + part * threads - 1) / (part * threads) * part; /* the largest share of a thread */
        if (most >= least) continue;
        least = most;
        of.part = part;
    }
    return of;
}

/* Runs `work` in up to `threads` threads, depending on the amount of work. */
static void share(w4a8_job *job, void (*work)(void *), parallel *run, int64_t threads) {
    const int64_t tiles = tiles_of(job->layer), worth = job->rows * tiles * TILE * depth_of(job->layer) / WORTH;
    threads = worth < threads ? worth : threads;
    threads = tiles < threads ? tiles : threads;
    job->rows_shared = shared_out(padded_rows(job->rows), 1, threads);
    job->tiles_shared = shared_out(tiles, 2, threads); /* tiles are multiplied in pairs */
    if (threads > 1) run(work, job, (unsigned)threads, 0);
    else work(job);
}

/* Allocates `bytes` from the workspace, aligned to a line. */
static void *take_bytes(char **room, int64_t bytes) {
    char *at = *room;
    *room += (bytes + LINE - 1) / LINE * LINE;
    return at;
}

/* Divides an aligned workspace; returns its size in bytes. */
static int64_t divide(w4a8_job *job, char *room) {
    const w4a8_layer *layer = job->layer;
    const int64_t padded = padded_rows(job->rows), planes = layer->form == PLANES;
    char *start = room;
    job->x8 = take_bytes(&room, padded * depth_of(layer)); /* AMX reads up to a line past its end */
    job->row_scale = take_bytes(&room, job->rows * 4);
    job->below = take_bytes(&room, padded * layer->group_count * 4);
    job->tops = take_bytes(&room, planes * job->rows * tiles_of(layer) * 4);
    job->least = take_bytes(&room, planes * job->rows * 4);
    return room - start;
}

/* The size in bytes of the workspace for this many rows. */
EXPORT int64_t tersely_w4a8_room(const w4a8_layer *layer, int64_t rows) {
    int64_t most = 0;
    for (; layer; layer = layer->next) {
        w4a8_job job = {.layer = layer, .rows = rows};
        char anywhere[LINE];
        int64_t bytes = divide(&job, anywhere);
        most = bytes > most ? bytes : most;
    }
    return most + LINE; /* for alignment */
}

static void run_one(w4a8_job *job, char *room, parallel *run, int64_t threads) {
    divide(job, room);
    share(job, multiply_quantized, run, threads);
    if (job->layer->form == PLANES) share(job, refine_highest, run, threads);
}

/* Applies a layer, and those linked to it, in up to `threads` threads; results have the kind of x. With one thread, `run` may
 * be NULL. */
EXPORT void tersely_w4a8_run(
    const w4a8_layer *layer, const void *x, int64_t kind, int64_t rows, int64_t stride, void *out, char *room, parallel *run,
    int64_t threads
) {
    int64_t outputs = 0, first = 0;
    for (const w4a8_layer *one = layer; one; one = one->next) outputs += one->outputs;
    room = (char *)(((uintptr_t)room + LINE - 1) / LINE * LINE);
    for (; layer; first += layer->outputs, layer = layer->next) {
        w4a8_job job = {
            .layer = layer, .x = x, .kind = kind, .rows = rows, .stride = stride,
            .out = (char *)out + first * size_of((int)kind), .out_stride = outputs,
        };
        run_one(&job, room, run, threads);
    }
}

/* Whether AMX code was compiled. */
EXPORT int64_t tersely_w4a8_has_amx(void) {
#ifdef HAS_AMX
    return 1;
#else
    return 0;
#endif
}

/* Whether AMX gives the same results as AVX512 for small layers of all layouts. The AMX code was written without access to
 * such a processor, so it is checked before it is used. */
EXPORT int64_t tersely_w4a8_amx_agrees(void) {
    enum { ROWS = 33, TILES = 3, OUTPUTS = 40, GROUPS = 3, SHARED = 4, LINES = SHARED * GROUPS };
    static const int64_t some[] = {5, 17, ROWS};
    uint8_t codes[2 * TILES * LINES * LINE], groups[TILES * GROUPS][2][TILE];
    float x[ROWS * LINES * 8], scale[OUTPUTS], out[2][ROWS * OUTPUTS];
    for (size_t i = 0; i < sizeof codes; i++) codes[i] = (uint8_t)(i * 2654435761u >> 13);
    for (int i = 0; i < TILES * GROUPS; i++) {
        /* Every other group has such large scales that only a few codes are allowed. */
        for (int n = 0; n < TILE; n++) groups[i][0][n] = (uint8_t)(i % 2 ? 18 + n : 1 + n % 8);
        for (int n = 0; n < TILE; n++) groups[i][1][n] = (uint8_t)(i % 2 ? 8 : n);
        if (i % 2) memset(codes + i * SHARED * LINE, 0x6a, SHARED * LINE);
    }
    for (int i = 0; i < ROWS * LINES * 8; i++) x[i] = (float)(i * 37 % 101 - 50);
    for (int i = 0; i < OUTPUTS; i++) scale[i] = 1.0f;
    int64_t agree = 1;
    for (int i = 0; i < 9 && agree; i++) {
        const int64_t form = i / 3, rows = some[i % 3];
        w4a8_layer layer = {.codes = codes, .groups = groups[0][0], .channel_scale = scale, .form = form, .outputs = OUTPUTS,
                            .lines = LINES, .group_count = form == GRAINS ? GROUPS : 1};
        layer.columns = depth_of(&layer);
        char *room = malloc((size_t)tersely_w4a8_room(&layer, rows));
        for (layer.level = AVX512; room && layer.level <= AMX; layer.level++)
            tersely_w4a8_run(&layer, x, FLOAT32, rows, layer.columns, out[layer.level - AVX512], room, NULL, 1);
        agree = room && !memcmp(out[0], out[1], (size_t)(rows * OUTPUTS) * sizeof out[0][0]);
        free(room);
    }
    return agree;
}

/* The best vector instructions here; AVX512 requires its 8-bit instructions. */
EXPORT int64_t tersely_w4a8_level(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) {
#ifdef HAS_AMX
        if (amx_allowed() && tersely_w4a8_amx_agrees()) return AMX;
#endif
        return AVX512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return PORTABLE;
}
