/* Entropy, the two likeliest tokens and the log-sum-exp of rows of logits; ../signals.py says what they mean. */

#include <float.h>
#include <math.h>

#include "numbers.h"

enum {
    BLOCK = 2048, /* elements looked at twice: 8 KiB at most, with the next one on its way */
    UNROLL = 4,
    LINE = 64 /* bytes of a cache line */
};

/* The last step of a row: `lanes` hold its two highest logits among others. */
static void finish(
    const float *lanes, int64_t count, double sum, double weighted, float top, float *out, int64_t out_stride
) {
    float first = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < count; i++) {
        float low = lanes[i] < first ? lanes[i] : first;
        second = low > second ? low : second;
        first = lanes[i] > first ? lanes[i] : first;
    }
    double total = log(sum), spoilt = sum > 0 ? 0 : NAN; /* all -inf, or NaN or +inf among them */
    out[0] = (float)(total - weighted / sum + spoilt);
    out[out_stride] = (float)(1 / sum + spoilt);
    out[2 * out_stride] = (float)(-expm1((double)second - (double)first) / sum + spoilt);
    out[3 * out_stride] = (float)(top + total + spoilt);
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

/* logits: rows of `columns` numbers side by side, `stride` numbers from row to row. out: four floats for each row
 * (entropy, top, margin, log_total), `out_stride` floats from one to the next. level: at most tersely_level(). */
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
