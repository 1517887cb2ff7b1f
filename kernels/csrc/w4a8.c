/* Linear layers of 4-bit weights in two grains, or of 8-bit weights, times 8-bit activations; ../w4a8.py says what the
 * numbers mean. */

#include "w4a8.h"

#include <float.h>
#include <math.h>

#define X_LEAST 0x1p-100f /* a row that stays below this counts as zeros: the inverse of its scale would not be finite */
#define UNROLLED _Pragma("GCC unroll 16")
#define AHEAD 2048    /* bytes of codes fetched ahead */

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
#endif

/* The best kind of vectors here: AVX512 only with its instructions for 8 bits. */
EXPORT int tersely_w4a8_level(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return PORTABLE;
}

/* A function for the vectors of a job. */
#if defined(__x86_64__)
#define BY_LEVEL(function, ...) \
    do { \
        if (job->level == AVX512) avx512_##function(__VA_ARGS__); \
        else if (job->level == AVX2) avx2_##function(__VA_ARGS__); \
        else any_##function(__VA_ARGS__); \
    } while (0)
#else
#define BY_LEVEL(function, ...) any_##function(__VA_ARGS__)
#endif

/* The first step: rows to 8 bits. */
EXPORT void tersely_w4a8_quantize(const w4a8_job *job) { BY_LEVEL(quantize, job); }

/* The second step, of tiles from `start` up to `stop`; threads may share a job. */
EXPORT void tersely_w4a8_tiles(const w4a8_job *job, int64_t start, int64_t stop) { BY_LEVEL(tiles, job, start, stop); }

/* The third step, of planes only: what tiles have to reach. A row of no numbers has no highest. */
EXPORT void tersely_w4a8_least(const w4a8_job *job) {
    for (int64_t row = 0; row < job->rows; row++) {
        const float *tops = job->tops + row * tiles_of(job);
        float best = -INFINITY;
        for (int64_t tile = 0; tile < tiles_of(job); tile++) best = tops[tile] > best ? tops[tile] : best;
        job->least[row] = best > -INFINITY ? best - job->margin : INFINITY;
    }
}

/* The fourth step, of planes only; shared as the second. */
EXPORT void tersely_w4a8_refine(const w4a8_job *job, int64_t start, int64_t stop) { BY_LEVEL(refine, job, start, stop); }

typedef void on_tiles(const w4a8_job *job, int64_t start, int64_t stop);

/* What each thread does: take some tiles until none are left. So a thread that others slow down takes fewer. */
static void take(w4a8_job *job, on_tiles *work) {
    int64_t tiles = tiles_of(job), start;
    while ((start = __atomic_fetch_add(&job->next, job->chunk, __ATOMIC_RELAXED)) < tiles)
        work(job, start, tiles - start < job->chunk ? tiles : start + job->chunk);
}

static void take_tiles(void *job) { take(job, tersely_w4a8_tiles); }
static void take_refining(void *job) { take(job, tersely_w4a8_refine); }

typedef void parallel(void (*work)(void *), void *shared, unsigned threads, unsigned flags);

/* All steps, those that can be shared by the threads of `run`, the GOMP_parallel of an OpenMP library that is loaded
 * already. */
EXPORT void tersely_w4a8_all(w4a8_job *job, parallel *run, int threads) {
    int64_t parts = 4 * threads;
    tersely_w4a8_quantize(job);
    job->next = 0;
    job->chunk = (tiles_of(job) + parts - 1) / parts;
    job->chunk += job->chunk % 2; /* tiles go in pairs */
    run(take_tiles, job, (unsigned)threads, 0);
    if (job->form != PLANES) return;
    tersely_w4a8_least(job);
    job->next = 0;
    run(take_refining, job, (unsigned)threads, 0);
}
