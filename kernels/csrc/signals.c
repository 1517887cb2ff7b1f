/* Entropy, the two highest probabilities and the log-sum-exp of rows of logits; ../signals.py defines them. */

#include <float.h>
#include <math.h>

#include "numbers.h"

enum {
    BLOCK = 2048, /* elements per block: at most 8 KiB, so that the next block can be prefetched into the same cache */
    UNROLL = 4,
    LINE = 64 /* bytes of a cache line */
};

/* The last step of a row; `lanes` contain its two highest logits. */
static void finish(
    const float *lanes, int64_t count, double sum, double weighted, float top, float *out, int64_t out_stride
) {
    float first = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < count; i++) {
        float low = lanes[i] < first ? lanes[i] : first;
        second = low > second ? low : second;
        first = lanes[i] > first ? lanes[i] : first;
    }
    double total = log(sum), invalid = sum > 0 ? 0 : NAN; /* only -inf, or any NaN or +inf */
    out[0] = (float)(total - weighted / sum + invalid);
    out[out_stride] = (float)(1 / sum + invalid);
    out[2 * out_stride] = (float)(-expm1((double)second - (double)first) / sum + invalid);
    out[3 * out_stride] = (float)(top + total + invalid);
}

#include "vec_any.h"
#define VEC(name) any_##name
#define VEC_TARGET
#include "signals_rows.h"
#undef VEC
#undef VEC_TARGET

#if defined(__x86_64__)
#include "vec_avx2.h"
#define VEC(name) avx2_##name
#define VEC_TARGET AVX2_TARGET
#include "signals_rows.h"
#undef VEC
#undef VEC_TARGET

#include "vec_avx512.h"
#define VEC(name) avx512_##name
#define VEC_TARGET AVX512_TARGET
#include "signals_rows.h"
#undef VEC
#undef VEC_TARGET
#endif

/* logits: rows of `columns` contiguous elements with a stride of `stride` elements. out: four floats per row (entropy, top,
 * margin, log_total) with a stride of `out_stride` floats. level: at most tersely_level(). */
EXPORT void tersely_signals(
    const void *logits, int kind, int64_t rows, int64_t columns, int64_t stride, float *out, int64_t out_stride,
    int level
) {
#if defined(__x86_64__)
    if (level == AVX512) {
        avx512_rows(logits, kind, rows, columns, stride, out, out_stride);
        return;
    }
    if (level == AVX2) {
        avx2_rows(logits, kind, rows, columns, stride, out, out_stride);
        return;
    }
#endif
    (void)level;
    any_rows(logits, kind, rows, columns, stride, out, out_stride);
}
